"""Tasks: columns, class names, fingerprints, and what is refused."""

import hashlib
import importlib.util
import io
import sys
import tarfile
from datetime import date
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from tests.support.tables import labelled, own, rows, save, texts_of
from textdistill.data.splits import Protocol
from textdistill.data.task import DataConfig, load_task


def test_config_is_one_hydra_accepts():
    config = OmegaConf.merge(
        OmegaConf.structured(DataConfig),
        OmegaConf.from_dotlist(["protocol=paper", "text_columns=[a,b]", "path=x"]),
    )
    assert OmegaConf.to_object(config) == DataConfig(protocol=Protocol.paper, text_columns=["a", "b"], path="x")


def test_class_names_come_from_the_class_label_feature_else_from_the_task_else_are_numbers(tmp_path):
    path = save(tmp_path / "plain", train=rows(30))
    assert load_task(own(path), 0).class_names == ("0", "1")
    assert load_task(DataConfig("sst2", path=path), 0).class_names == ("negative", "positive")
    features = {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    named = datasets.Dataset.from_dict(rows(30), features=datasets.Features(features))
    (tmp_path / "named").mkdir()
    pq.write_table(named.data.table, tmp_path / "named/train.parquet")
    assert load_task(own(tmp_path / "named"), 0).class_names == ("bad", "good")


def test_a_built_in_task_reads_its_columns_from_local_files(tmp_path):
    pairs = ("question1", "question2")
    path = save(tmp_path, train=rows(40, columns=pairs), validation=rows(10, columns=pairs, start=40))
    task = load_task(DataConfig("qqp", path=path), 0)
    assert task.text_columns == pairs
    assert task.metric_names == ("accuracy", "f1", "combined")
    texts = texts_of(task)["test"]
    assert [texts[column][0] for column in pairs] == ["question1 alpha 40", "question2 alpha 40"]
    assert task.splits["test"].labels.tolist() == [0, 1] * 5
    assert load_task(own(path, task_name="qqp", text_columns=["question2"]), 0).text_columns == ("question2",)


def test_fingerprint_changes_with_texts_labels_and_split(tmp_path):
    def fingerprint(seed: int = 0, **splits: dict) -> str:
        return load_task(own(save(tmp_path, **splits)), seed).fingerprint

    train, test = rows(60), rows(20, start=60)
    first = fingerprint(train=train, test=test)
    assert first == fingerprint(train=train, test=test)
    other_text = test | {"sentence": ["changed", *test["sentence"][1:]]}
    other_label = test | {"label": [1, *test["label"][1:]]}
    others = [
        fingerprint(train=train, test=other_text),
        fingerprint(train=train, test=other_label),
        fingerprint(seed=1, train=train, test=test),
    ]
    assert len({first, *others}) == 4


# Refusals


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            DataConfig("agnews"),
            ValueError,
            r"unknown task 'agnews'; known tasks: ag_news, sst2, .*data\.path=",
        ),
        (
            DataConfig("vader_movie"),
            FileNotFoundError,
            r"python examples/vader\.py --output DIR.*DIR/vader_movie",
        ),
        (own("/nowhere"), FileNotFoundError, r"data\.path must be a file or a folder, .* /nowhere"),
        (own("x", text_columns=[]), ValueError, r"data\.text_columns must name one or two .*got \[\]"),
        (own("x", text_columns=["a", "b", "c"]), ValueError, r"one or two .*got \['a', 'b', 'c'\]"),
        (own("x", text_columns=["a", "a"]), ValueError, r"one or two different columns"),
        (own("x", text_columns=["label"]), ValueError, r"none of them the label column 'label'"),
        (own("x", max_length=2), ValueError, r"data\.max_length must be at least 3, got 2"),
        (own("x", train_batch_size=0), ValueError, r"data\.train_batch_size must be at least 1, got 0"),
        (own("x", valid_batch_size=0), ValueError, r"data\.valid_batch_size must be at least 1, got 0"),
        (own("x", test_batch_size=-1), ValueError, r"data\.test_batch_size must be at least 1, got -1"),
        (own("x", num_proc=0), ValueError, r"data\.num_proc must be at least 1, got 0"),
    ],
)
def test_configurations_that_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        load_task(config, 0)


GOOD = rows(40)
TRAIN = {"train": GOOD}
BAD_DATA = {
    "no text column": (
        {"train": {"text": ["x", "y"], "label": [0, 1]}},
        r"no column 'sentence' .*text, label",
    ),
    "no label column": ({"train": {"sentence": ["x"]}}, r"no column 'label' .*its columns are sentence"),
    "float labels": (
        {"train": GOOD | {"label": [0.5, 1.0] * 20}},
        r"has 20 rows with a number that is not whole \(the first is row 1\)",
    ),
    "label missing": ({"train": GOOD | {"label": [None] + [1, 0] * 19 + [1]}}, r"has 1 row without a label \(row 1\)"),
    "empty label": (
        {"train": GOOD | {"label": ["a", " ", "b", ""] * 10}},
        r"has 20 rows without a label \(the first is row 2\)",
    ),
    "one class": ({"train": GOOD | {"label": ["a"] * 40}}, r"two or more classes, got 'a' only"),
    "hidden train": ({"train": GOOD | {"label": [-1] * 40}}, r"of the train split .*-1 in every row.*GLUE"),
    "unknown label": (TRAIN | {"test": GOOD | {"label": [0, 1, 2, 0] * 10}}, r"label '2' of the test split"),
    "some labels of test missing": (
        TRAIN | {"validation": GOOD, "test": GOOD | {"label": [0, None] * 20}},
        r"of the test split has 20 rows without a label \(the first is row 2\)",
    ),
    "dates as labels": ({"train": GOOD | {"label": [date(2020, 1, 1)] * 40}}, r"got dates or times; name a column"),
    "lists as labels": ({"train": GOOD | {"label": [["a"]] * 40}}, r"got lists; name a column"),
    "text missing": ({"train": GOOD | {"sentence": [None, *"x" * 39]}}, r"has 1 row without a text \(row 1\)"),
    "blank texts": (
        {"train": GOOD | {"sentence": [*"x" * 38, " \n", ""]}},
        r"'sentence' of the train split has 2 rows without a text \(the first is row 39\); fill or remove",
    ),
    "number texts": ({"train": GOOD | {"sentence": list(range(40))}}, r"strings, got int64; .*as strings"),
    "empty split": (TRAIN | {"test": {"sentence": [], "label": []}}, r"the test split must not be empty"),
    "no train": ({"test": GOOD}, r"must hold a split called train .*got test"),
    "two validations": (TRAIN | {"dev": GOOD, "valid": GOOD}, r"one file a split, got dev.parquet and valid.parquet"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_are_refused(tmp_path, case):
    splits, message = BAD_DATA[case]
    with pytest.raises(ValueError, match=message):
        load_task(own(save(tmp_path, **splits)), 0)


UNLABELLED = {
    "hidden": {"label": [-1] * 40},
    "empty": {"label": [None] * 40},
    "blank": {"label": [" "] * 40},
    "no column": {},
}


@pytest.mark.parametrize("case", UNLABELLED)
def test_a_test_split_without_any_label_is_not_used(tmp_path, caplog, case):
    """As on sites of competitions, which keep the labels of test."""
    unlabelled = {"sentence": [f"{text} in test" for text in GOOD["sentence"]]} | UNLABELLED[case]
    data = save(tmp_path, train=GOOD, test=unlabelled)
    task = load_task(own(data), 0)
    assert task.sources == {"train": "train (rest)", "validation": "4 of train", "test": "4 of train"}
    assert "no row of the test split has a label in 'label', so it is not used, and a tenth of train is" in caplog.text
    with pytest.raises(ValueError, match=r"(of|in) the test split"):
        load_task(own(data, protocol=Protocol.paper), 0)


def test_a_column_of_ids_is_not_one_of_classes(tmp_path):
    table = {"sentence": GOOD["sentence"], "label": [f"row {i}" for i in range(40)]}
    message = r"40 of the 40 classes have no row in the train split \(train \(rest\)\), .* or name another column"
    with pytest.raises(ValueError, match=message):
        load_task(own(save(tmp_path, train=table)), 0)


def test_a_pair_needs_both_texts(tmp_path):
    pairs = ("first", "second")
    table = rows(40, columns=pairs)
    table["second"][7] = "\t"
    with pytest.raises(ValueError, match=r"'second' of the train split has 1 row without a text \(row 8\)"):
        load_task(own(save(tmp_path, train=table), text_columns=list(pairs)), 0)


def test_paper_needs_an_official_split(tmp_path):
    with pytest.raises(ValueError, match=r"data\.protocol=paper needs an official validation or test split"):
        load_task(own(save(tmp_path, train=GOOD), protocol=Protocol.paper), 0)


def test_a_task_with_hidden_test_labels_needs_its_validation_split(tmp_path):
    with pytest.raises(ValueError, match=r"'sst2' needs a validation split, .*got test, train only"):
        load_task(DataConfig("sst2", path=save(tmp_path, train=GOOD, test=GOOD)), 0)


def test_a_built_in_task_keeps_its_classes(tmp_path):
    table = {"text": GOOD["sentence"], "label": [0, 1, 2, 4] * 10}
    with pytest.raises(ValueError, match=r"integers 0 to 3, .*got 0, 1, 2, 4: 10 rows .*give data\.task_name another"):
        load_task(DataConfig("ag_news", path=save(tmp_path, train=table)), 0)


# examples/vader.py


@pytest.fixture
def vader():
    file = Path(__file__).parents[2] / "examples" / "vader.py"
    spec = importlib.util.spec_from_file_location("vader", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_vader_script_makes_tasks_that_load(tmp_path, monkeypatch, vader, capsys):
    ratings = [-3.0, -0.5, -0.4, 0.4, 0.5, 3.0] * 5
    lines = "\r\n".join(f"{i}\t{rating}\tcliché {i}" for i, rating in enumerate(ratings))
    inner = {f"hutto_ICWSM_2014/{name}": lines.encode() for name in vader.GENRES.values()}
    archive = tmp_path / "package.tar.gz"
    archive.write_bytes(tar({vader.INNER_ARCHIVE: tar(inner)}))
    monkeypatch.setattr(sys, "argv", ["vader.py", "--output", str(tmp_path / "data"), "--archive", str(archive)])
    with pytest.raises(ValueError, match=r"must be vaderSentiment 3\.3\.2 with sha256"):
        vader.main()
    assert not (tmp_path / "data").exists()

    monkeypatch.setattr(vader, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    vader.main()
    assert "20 rows (negative 10, positive 10)" in capsys.readouterr().out
    archive.unlink()
    vader.main()  # nothing is left to do, so nothing is read
    movie = load_task(DataConfig("vader_movie", path=str(tmp_path / "data/vader_movie")), 0)
    assert movie.class_names == ("negative", "positive")
    assert labelled(movie) == {f"cliché {i}": int(r > 0) for i, r in enumerate(ratings) if abs(r) >= 0.5}
    genre = load_task(DataConfig("vader_genre", path=str(tmp_path / "data/vader_genre")), 0)
    assert genre.class_names == ("editorial", "movie", "product", "tweet")
