"""The short options arrive in the configuration as they were given, whatever characters they hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from textdistill.arguments import task_name, to_overrides
from textdistill.config import compose

# Blanks, brackets, quotes and the signs of Hydra, OmegaConf and the shells.
AWKWARD = [
    "reviews (1).csv",
    "a=b.csv",
    "it's [new], {old}.csv",
    '"quoted".csv',
    "données é.csv",
    "a${b}.csv",
    "back\\slash.csv",
    "back\\${slash}.csv",
    "#1 *?.csv",
    "-dash.csv",
    "null",
    "1",
]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def values(overrides: list[str]) -> dict[str, Any]:
    return {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(overrides)}


@pytest.mark.parametrize("name", AWKWARD)
def test_path_arrives_as_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    config = compose(*to_overrides(name, text=[name], label=name, model=name, output=name))
    assert config.data.path == config.data.label_column == config.model.model_name == config.base.save_dir == name
    assert config.data.text_columns == [name]
    assert config.data.task_name == task_name(name)


def test_options_stand_for_keys() -> None:
    assert to_overrides("sst2", text="title, body", label="stars", model="minilm-l6", steps=5, output="out") == [
        "data.task_name=sst2",
        "data.text_columns=[title,body]",
        "data.label_column=stars",
        "model.model_name=minilm-l6",
        "train.max_steps=5",
        "base.save_dir=out",
    ]
    assert to_overrides() == []


def test_output_of_many_runs_is_the_folder_of_all() -> None:
    assert to_overrides(output="out", many_runs=True) == ["base.save_dir_root=out"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "reviews.csv").touch()
    expected = {
        "data.path": f"{tmp_path}/reviews.csv",
        "data.task_name": "reviews",
        "model.model_name": f"{tmp_path}/model",
        "base.save_dir": f"{tmp_path}/out",
    }
    assert values(to_overrides("~/reviews.csv", model="~/model", output=Path("~/out"))) == expected


def test_name_that_begins_with_the_sign_of_home(tmp_path: Path) -> None:
    (tmp_path / "~old.csv").touch()
    assert values(to_overrides("~old.csv"))["data.path"] == "~old.csv"


def test_several_files_are_named_after_their_folder(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    files = [f"reviews/{year}.csv" for year in (2001, 2002)]
    for file in files:
        Path(file).touch()
    assert values(to_overrides(files)) == {"data.path": files, "data.task_name": "reviews"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("reviews.csv", "reviews"),
        ("reviews (1).csv", "reviews_1"),
        ("reviews.2024.tar.jsonl.gz", "reviews.2024.tar"),
        ("Ann's reviews.TSV", "Ann_s_reviews"),
        ("cafe\N{COMBINING ACUTE ACCENT}.csv", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("(*).csv", "data"),
        (".csv", "data"),
        ("-x.csv", "x"),
        ("sst2.csv", "sst2_data"),
        ("folder/", "folder"),
        ("x" * 300, "x" * 60),
    ],
)
def test_task_is_named_after_the_path(path: str, name: str) -> None:
    assert task_name(path) == name


def test_task_of_the_working_folder_has_its_name(tmp_path: Path) -> None:
    assert task_name(".") == task_name(str(tmp_path))


def test_given_name_of_the_task_counts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    assert to_overrides("a.csv", given=["data.task_name=sst2"]) == ["data.path=a.csv"]


@pytest.mark.parametrize("name", ["nyu-mll/glue", "user/name.v2", "stanfordnlp/imdb"])
def test_dataset_on_the_hub(name: str) -> None:
    assert values(to_overrides(name)) == {"data.task_name": name}


def test_path_goes_before_task_and_hub(tmp_path: Path) -> None:
    for name in ("sst2", "user/name"):
        (tmp_path / name).mkdir(parents=True)
        assert values(to_overrides(name))["data.path"] == name


@pytest.mark.parametrize(
    ("data", "nearest"),
    [
        ("reveiws.csv", "'reviews.csv'"),
        ("here/reveiws.csv", "'reviews.csv'"),
        ("here/reviews", "'reviews.csv'"),
        ("agnews", "'ag_news'"),
        ("AG-News", "'ag_news'"),
        ("sst-2", "'sst2'"),
        (["here/reviews.csv", "here/review.csv"], "'reviews.csv'"),
    ],
)
def test_unknown_data_names_the_nearest(data: str | list[str], nearest: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "reviews.csv").touch()
    (tmp_path / "here" / "reviews.csv").touch()
    with pytest.raises(FileNotFoundError, match=f"did you mean {nearest}"):
        to_overrides(data)


@pytest.mark.parametrize("data", ["", "xyz", "none/such/file", "a/b.csv", "https://example.org/x.csv", "x" * 5000])
def test_unknown_data_says_what_may_stand_there(data: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"DATA must be .*task \(ag_news, .*user/name"):
        to_overrides(data)


@pytest.mark.parametrize(
    ("options", "given", "option"),
    [
        ({"steps": 5}, "train.max_steps=6", "steps"),
        ({"text": "a"}, "+data.text_columns=[a]", "text"),
        ({"model": "a"}, "++model.model_name=a", "model"),
        ({"data": os.curdir}, "data.path=b", "DATA"),
        ({"data": "sst2"}, "data.task_name=qnli", "DATA"),
    ],
)
def test_option_and_its_key_exclude_each_other(options: dict[str, Any], given: str, option: str) -> None:
    with pytest.raises(ValueError, match=r"must be given once") as error:
        to_overrides(**options, given=[given])
    assert f"the option {option}," in str(error.value)
    assert given in str(error.value)
