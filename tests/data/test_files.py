"""Which file is which split: names, shards, archives, folders of the hub, saved datasets, folders of texts."""

import logging
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.tables import labelled, rows
from textdistill.data.readers import FileOptions, read_files
from textdistill.data.task import DataConfig, load_task

CSV = "text,label\n" + "".join(f"{{}} {i},{'ab'[i % 2]}\n" for i in range(20))


def write(folder: Path, *names: str) -> Path:
    """Writes tables whose texts begin with the name of their file."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            pq.write_table(pa.table({"text": [f"{name} {i}" for i in range(4)], "label": list("abab")}), file)
        else:
            file.write_text(CSV.replace("{}", name))
    return folder


def splits(path: object, config_name: str | None = None) -> dict[str, list[str]]:
    """The files of each split, as far as the texts tell."""
    found = read_files(path, FileOptions(config_name=config_name))
    return {
        name: list(
            dict.fromkeys(
                text.rpartition(" ")[0] for table in split.scan(["text"]) for text in table["text"].to_pylist()
            )
        )
        for name, split in found.items()
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.csv", "val.csv"], {"train": ["train.csv"], "validation": ["val.csv"]}),
        (["train.csv", "eval.csv"], {"train": ["train.csv"], "validation": ["eval.csv"]}),
        (["Train.csv", "DEV.csv"], {"train": ["Train.csv"], "validation": ["DEV.csv"]}),
        (["train.csv", "Testing.csv"], {"train": ["train.csv"], "test": ["Testing.csv"]}),
        (["training.csv", "evaluation.csv"], {"train": ["training.csv"], "validation": ["evaluation.csv"]}),
        (
            ["train.csv", "dev.csv", "eval.csv"],
            {"train": ["train.csv"], "validation": ["dev.csv"], "test": ["eval.csv"]},
        ),
        (["reviews_train.csv", "reviews-test.csv"], {"train": ["reviews_train.csv"], "test": ["reviews-test.csv"]}),
        (["train.csv", "train_old.csv"], {"train": ["train.csv"]}),
        (["train-00000-of-00001.parquet"], {"train": ["train-00000-of-00001.parquet"]}),
        (["data/train-00000-of-00001-3f2a9c0d1b.parquet"], {"train": ["data/train-00000-of-00001-3f2a9c0d1b.parquet"]}),
        ([f"train_{i}.csv" for i in range(11)], {"train": [f"train_{i}.csv" for i in range(11)]}),
        (
            ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
            {"train": ["train/0000.parquet", "train/0001.parquet"], "test": ["test/0000.parquet"]},
        ),
        (["default/train/0000.parquet"], {"train": ["default/train/0000.parquet"]}),
        (["reviews.csv"], {"train": ["reviews.csv"]}),
        (["part-0.csv", "part-1.csv"], {"train": ["part-0.csv", "part-1.csv"]}),
    ],
)
def test_splits_are_found_by_name(tmp_path, names, expected):
    assert splits(write(tmp_path, *names)) == expected


@pytest.mark.parametrize(
    ("names", "unused"),
    [
        (["train.csv", "extra.csv"], "extra.csv"),
        (["train.csv", "val.xlsx"], "val.xlsx"),
        (["train.csv", "data/notes.csv.gz"], "notes.csv"),
        (["train.csv", "test_a.csv", "test_b.csv"], "test_a.csv, test_b.csv"),
        (["train.csv", *(f"{name}.csv" for name in "abcdefg")], "a.csv, b.csv, c.csv, d.csv, e.csv and 2 more"),
    ],
)
def test_files_that_are_not_used_are_named(tmp_path, caplog, names, unused):
    assert splits(write(tmp_path, *names)) == {"train": ["train.csv"]}
    assert f"not used: {unused};" in caplog.text


def test_what_describes_the_data_is_not_warned_of(tmp_path, caplog):
    splits(write(tmp_path, "train.csv", "README.md", "dataset_infos.json", ".train.csv", "__pycache__/x.py"))
    assert not caplog.records


@pytest.mark.parametrize(
    "names",
    [
        ["train.csv", "train.tsv"],
        ["train.csv", "data/train.csv"],
        ["train.csv", "valid.csv", "val.csv"],
        ["train.csv", "train-0.csv"],
        ["train.csv", "train/0.csv"],
        ["train.csv", "train.csv.gz"],
    ],
)
def test_two_files_for_a_split_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match=r"must hold one file a split, got .* and .*; remove one, or name the files"):
        splits(write(tmp_path, *names))


@pytest.mark.parametrize("missing", ["train-00001-of-00003", "train-00002-of-00003"])
def test_a_missing_shard_is_refused(tmp_path, missing):
    names = {f"train-0000{i}-of-00003" for i in range(3)} - {missing}
    with pytest.raises(ValueError, match=r"is one of 3 files, but there are 2; fetch the others"):
        splits(write(tmp_path, *(f"{name}.csv" for name in names)))


def test_shards_must_have_the_same_columns(tmp_path):
    write(tmp_path, "train-0.csv", "train-1.csv")
    (tmp_path / "train-1.csv").write_text("text,stars\na,1\n")
    with pytest.raises(
        ValueError, match=r"train-1\.csv must have the columns of .*train-0\.csv, text, label, got text, stars"
    ):
        splits(tmp_path)


def test_several_files(tmp_path):
    write(tmp_path, "a.csv", "b.csv", "my_test.csv", "c.xlsx")
    assert splits([str(tmp_path / name) for name in ("b.csv", "a.csv")]) == {"train": ["b.csv", "a.csv"]}
    both = [str(tmp_path / name) for name in ("a.csv", "my_test.csv")]
    assert splits(both) == {"train": ["a.csv"], "test": ["my_test.csv"]}
    with pytest.raises(ValueError, match=r"must end in one of .*c\.xlsx"):
        splits([*both, str(tmp_path / "c.xlsx")])
    with pytest.raises(FileNotFoundError, match="nothing at"):
        splits([*both, str(tmp_path / "d.csv")])
    with pytest.raises(ValueError, match="one folder or a list of files"):
        splits([*both, str(tmp_path)])


@pytest.mark.parametrize("path", [[], 3, ["a.csv", 1], {"train": "a.csv"}])
def test_a_path_of_another_kind_is_refused(path):
    with pytest.raises(ValueError, match=r"data\.path must be a file, a folder or a list of files"):
        DataConfig("mine", path=path).check()


def test_archives(tmp_path):
    names = ["train.csv", "__MACOSX/._train.csv", "deep/test.csv", "notes.txt"]
    write(tmp_path / "files", *names)
    for archive, members in (("one.zip", names[:2]), ("two.zip", names)):
        with zipfile.ZipFile(tmp_path / archive, "w") as file:
            for name in members:
                file.write(tmp_path / "files" / name, name)
    assert splits(tmp_path / "one.zip") == {"train": ["train.csv"]}
    assert splits(tmp_path / "two.zip") == {"train": ["train.csv"], "test": ["deep/test.csv"]}
    (tmp_path / "folder").mkdir()
    (tmp_path / "one.zip").rename(tmp_path / "folder" / "train.csv.zip")
    assert splits(tmp_path / "folder") == {"train": ["train.csv"]}


@pytest.mark.parametrize("layout", ["{}", "data/{}", "a corpus/{}"])
@pytest.mark.parametrize("suffix", [".txt", ""])
def test_folders_of_texts_are_classes(tmp_path, layout, suffix, caplog):
    for split, count in (("train", 6), ("test", 2)):
        for label in ("pos", "neg", *(["unsup"] if split == "train" else [])):
            for i in range(count):
                file = tmp_path / layout.format(split) / label / f"{i}_7{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{split} é\n{label} {i}", encoding="utf-8")
    found = read_files(tmp_path)
    assert {name: sum(map(len, split.scan(["text", "label"]))) for name, split in found.items()} == {
        "train": 12,
        "test": 4,
    }
    assert "unsup have no label" in caplog.text
    task = load_task(DataConfig("mine", path=str(tmp_path), text_columns=["text"], label_column="label"), 0)
    assert task.class_names == ("neg", "pos")
    assert all(text.split()[2] == task.class_names[label] for text, label in labelled(task).items())


def test_folders_of_texts_without_a_split_are_train(tmp_path):
    for label in ("alt.atheism", "sci.space"):
        write(tmp_path, *(f"{label}/{49960 + i}" for i in range(3)))
    assert [*read_files(tmp_path)] == ["train"]
    (tmp_path / "sci.space" / "1").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"data\.encoding: .*sci\.space/1 must be utf-8, but byte 0xe9 in line 1"):
        list(read_files(tmp_path)["train"].scan(["text"]))
    assert sum(map(len, read_files(tmp_path, FileOptions(encoding="cp1252"))["train"].scan(["label"]))) == 7


README = {
    "pattern": "configs:\n- config_name: a\n  data_files: a/*.csv\n- config_name: b\n  data_files: b/*.csv\n",
    "splits": "configs:\n- config_name: a\n  data_files:\n  - split: train\n    path: a/train*\n- config_name: b\n"
    "  data_files:\n    train:\n    - b/train.csv\n",
    "folder": "configs:\n- config_name: a\n  data_dir: a\n- config_name: b\n  data_dir: b\n",
    "none": "",
}


@pytest.mark.parametrize("stated", README)
def test_a_configuration_is_named_or_asked_for(tmp_path, stated):
    write(tmp_path, "a/train.csv", "b/train.csv")
    if README[stated]:
        (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{README[stated]}---\n# Data\n")
    assert splits(tmp_path, "b") == {"train": ["b/train.csv"]}
    for name in (None, "c"):
        message = rf"data\.config_name must name .*, a, b, got {name or 'none'}; give for example data\.config_name=a"
        with pytest.raises(ValueError, match=message):
            splits(tmp_path, name)


def test_a_default_configuration_needs_no_name(tmp_path):
    write(tmp_path, "a/train.csv", "b/train.csv")
    for entry in ("config_name: b\n  default: true", "config_name: default"):
        stated = f"configs:\n- config_name: a\n  data_files: a/*\n- {entry}\n  data_files: b/*\n"
        (tmp_path / "README.md").write_text(f"---\n{stated}---\n")
        assert splits(tmp_path) == {"train": ["b/train.csv"]}


def test_a_name_of_a_configuration_where_there_is_none_is_refused(tmp_path):
    write(tmp_path, "train.csv")
    for path in (tmp_path, tmp_path / "train.csv"):
        with pytest.raises(ValueError, match=r"data\.config_name must be left out"):
            splits(path, "a")


def test_a_readme_that_names_a_missing_file_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: a/*\n---\n")
    with pytest.raises(FileNotFoundError, match=r"names a/\*, but there is no such file"):
        splits(tmp_path)


@pytest.mark.parametrize("kind", ["dict", "single"])
@pytest.mark.parametrize("key", ["path", "datasets_path"])
def test_saved_datasets_are_read(tmp_path, kind, key):
    data = datasets.Dataset.from_dict(rows(40))
    saved = datasets.DatasetDict(train=data, val=data) if kind == "dict" else data
    saved.save_to_disk(tmp_path / "saved")
    columns = {"text_columns": ["sentence"], "label_column": "label"}
    task = load_task(DataConfig("user/x", **{key: str(tmp_path / "saved")} | columns), 0)
    assert sum(map(len, task.splits.values())) == (80 if kind == "dict" else 40)


def test_a_broken_saved_dataset_is_refused(tmp_path):
    datasets.Dataset.from_dict(rows(40)).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"data\.path=.*saved is broken: .*; save the dataset again"):
        read_files(tmp_path / "saved")


def test_a_hub_dataset_with_configurations(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "data", "a/train.csv", "b/train.csv")
    (tmp_path / "data" / "README.md").write_text(f"---\n{README['pattern']}---\n")
    keys = {"task_name": str(tmp_path / "data"), "text_columns": ["text"], "label_column": "label"}
    keys["datasets_path"] = str(tmp_path / "saved")
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"data\.config_name must name one of .*, a, b, got none; give"):
            load_task(DataConfig(streaming=streaming, **keys), 0)
    for name in ("a", "b"):
        assert all(text.startswith(name) for text in labelled(load_task(DataConfig(config_name=name, **keys), 0)))


def test_a_loading_script_is_refused(tmp_path):
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").touch()
    with pytest.raises(ValueError, match=r"is a Python script, which the package datasets does not run; choose a copy"):
        load_task(DataConfig(str(tmp_path / "scripted")), 0)


def test_other_splits_of_a_dataset_are_named(tmp_path, caplog):
    data = datasets.Dataset.from_dict(rows(40))
    datasets.DatasetDict(train=data, unsupervised=data).save_to_disk(tmp_path / "saved")
    with caplog.at_level(logging.WARNING):
        assert [*read_files(tmp_path / "saved")] == ["train"]
    assert "the splits unsupervised are not used" in caplog.text
