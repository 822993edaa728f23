"""Tasks: reading, splits by protocol, refusals, tokenising with its cache, batches."""

import hashlib
import importlib.util
import io
import json
import logging
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from textdistill import task as task_module
from textdistill.seeding import generator
from textdistill.task import (
    TASKS,
    DataConfig,
    Protocol,
    TokenizedSplit,
    load_task,
    sorted_batches,
    steps_per_epoch,
    stratified_sample,
    tokenize,
    train_batches,
)

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon"]


PLAIN_INPUTS = ["input_ids", "attention_mask"]


def make_tokenizer(words: list[str] = WORDS, **options: object) -> PreTrainedTokenizerFast:
    options = {"model_input_names": [*PLAIN_INPUTS, "token_type_ids"]} | options
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*specials, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **options)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def rows(count: int, classes: int = 2, start: int = 0, columns: tuple[str, ...] = ("sentence",)) -> dict:
    texts = {c: [f"{c} {WORDS[i % 5]} {i}" for i in range(start, start + count)] for c in columns}
    return texts | {"label": [i % classes for i in range(count)]}


def save(folder: Path, **splits: dict) -> str:
    folder.mkdir(exist_ok=True)
    for name, table in splits.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    return str(folder)


def own(path: object, **keys: object) -> DataConfig:
    """The configuration of data that are not a built-in task's."""
    return DataConfig(
        **{"task_name": "mine", "path": str(path), "text_columns": ["sentence"], "label_column": "label"} | keys
    )


def split_of(lengths: np.ndarray, labels: np.ndarray | None = None) -> TokenizedSplit:
    """Row i holds ``lengths[i]`` times the token i."""
    return TokenizedSplit(
        ids=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        token_types=None,
        labels=np.arange(len(lengths)) if labels is None else labels,
        pad_token_id=0,
    )


def test_config_is_one_hydra_accepts():
    config = OmegaConf.merge(
        OmegaConf.structured(DataConfig),
        OmegaConf.from_dotlist(["protocol=paper", "text_columns=[a,b]", "path=x"]),
    )
    assert OmegaConf.to_object(config) == DataConfig(protocol=Protocol.paper, text_columns=["a", "b"], path="x")


# Reading


def write_csv(table: pa.Table, file: Path, delimiter: str = ",") -> None:
    pa.csv.write_csv(table, file, pa.csv.WriteOptions(delimiter=delimiter))


WRITERS = {
    "csv": write_csv,
    "tsv": lambda table, file: write_csv(table, file, "\t"),
    "json": lambda table, file: file.write_text(json.dumps(table.to_pylist(), indent=1)),
    "jsonl": lambda table, file: file.write_text("\n".join(json.dumps(row) for row in table.to_pylist())),
    "parquet": pq.write_table,
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("as_folder", [False, True])
def test_every_kind_of_file_is_read_alike(tmp_path, suffix, as_folder):
    table = rows(30)
    table["label"] = ["yes" if label else "no" for label in table["label"]]
    table["sentence"][:4] = ["1999", "NA", '  two\nlines, "quoted"\t', "é"]
    file = tmp_path / f"{'train' if as_folder else 'texts'}.{suffix}"
    WRITERS[suffix](pa.table(table), file)
    task = load_task(own(tmp_path if as_folder else file), seed=0)
    read = {text: label for split in task.splits.values() for text, label in zip(*columns(split), strict=True)}
    assert read == {text.strip(): ("no", "yes").index(label) for text, label in zip(*table.values(), strict=True)}
    assert task.class_names == ("no", "yes")
    assert task.num_labels == 2


def columns(split: datasets.Dataset) -> tuple[list[str], list[int]]:
    return split[:]["sentence"], split[:]["labels"]


def test_a_column_of_numbers_is_text_in_csv(tmp_path):
    lines = [f"{i},{i % 2}" for i in range(30)]
    (tmp_path / "train.csv").write_text("\n".join(["sentence,label", *lines]))
    assert set(load_task(own(tmp_path), 0).splits["train"][:]["sentence"]) <= {str(i) for i in range(30)}


def test_csv_texts_with_line_breaks_may_cross_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(task_module, "_BLOCK", 300)
    table = {"sentence": [f"{i}" + "\nline" * 20 for i in range(60)], "label": [0, 1] * 30}
    write_csv(pa.table(table), tmp_path / "train.csv")
    splits = load_task(own(tmp_path), 0).splits.values()
    assert {text for split in splits for text in split[:]["sentence"]} == set(table["sentence"])


def test_categories_are_read_as_strings(tmp_path):
    labels = pa.array(["no", "yes"] * 15).dictionary_encode()
    path = save(tmp_path, train={"sentence": rows(30)["sentence"], "label": labels})
    assert load_task(own(path), 0).class_names == ("no", "yes")


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
    assert task.splits["test"][0] == {
        "question1": "question1 alpha 40",
        "question2": "question2 alpha 40",
    } | {"labels": 0}
    assert load_task(own(path, task_name="qqp", text_columns=["question2"]), 0).text_columns == ("question2",)


def test_datasets_path_is_read_and_else_filled_from_the_hub(tmp_path, monkeypatch):
    splits = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(rows(40)), test=datasets.Dataset.from_dict(rows(10, start=40))
    )
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **_: asked.append(args) or splits)
    config = DataConfig(
        "user/texts", text_columns=["sentence"], label_column="label", datasets_path=str(tmp_path / "a/saved")
    )
    first, second = load_task(config, 0), load_task(config, 0)
    assert asked == [("user/texts",)]
    assert first.fingerprint == second.fingerprint
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["saved"]


def test_hub_failure_names_the_local_way_out(monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError, match=r"cannot fetch nyu-mll/glue sst2 .*no route.*data\.path="):
        load_task(DataConfig("sst2"), 0)


# Splits


def texts_of(task, split: str) -> list[str]:
    return task.splits[split][:]["sentence"]


def test_clean_carves_validation_from_train_and_reports_test(tmp_path):
    train, validation, test = rows(200), rows(20, start=200), rows(30, start=220)
    path = save(tmp_path, train=train, validation=validation, test=test)
    task = load_task(own(path), seed=1)
    assert texts_of(task, "test") == test["sentence"]
    assert set(texts_of(task, "validation")) | set(texts_of(task, "train")) == set(train["sentence"])
    assert [len(task.splits[split]) for split in ("train", "validation", "test")] == [180, 20, 30]
    assert task.sources == {"train": "train (rest)", "validation": "20 of train", "test": "test"}


def test_validation_is_at_most_1000_rows_and_stratified(tmp_path):
    train = rows(20_000)
    train["label"] = [0] * 15_000 + [1] * 4_993 + [2] * 7
    path = save(tmp_path, train=train, test=rows(30, classes=3))
    labels = load_task(own(path), 0).splits["validation"][:]["labels"]
    # Exactly 750, 249.65 and 0.35: the largest remainder takes the odd row, and every class has one.
    assert np.bincount(labels).tolist() == [750, 250, 1]


def test_the_seed_and_nothing_else_decides_which_rows_are_carved(tmp_path):
    path = save(tmp_path, train=rows(200), test=rows(30))
    carved = [texts_of(load_task(own(path), seed), "validation") for seed in (0, 0, 1)]
    assert carved[0] == carved[1] != carved[2]


def test_own_data_with_train_only_are_cut_80_10_10(tmp_path):
    task = load_task(own(save(tmp_path, train=rows(203, classes=4))), 0)
    split_texts = [texts_of(task, split) for split in ("train", "validation", "test")]
    assert [len(texts) for texts in split_texts] == [163, 20, 20]
    assert len(set().union(*split_texts)) == 203
    for split in ("validation", "test"):
        assert np.bincount(task.splits[split][:]["labels"]).tolist() == [5, 5, 5, 5]
    assert task.sources == {"train": "train (rest)", "validation": "20 of train", "test": "20 of train"}


@pytest.mark.parametrize("other", ["validation", "test"])
def test_paper_selects_on_the_reported_rows_and_trains_on_all_of_train(tmp_path, other):
    path = save(tmp_path, train=rows(200), **{other: rows(20, start=200)})
    task = load_task(own(path, protocol=Protocol.paper), 0)
    assert texts_of(task, "validation") == texts_of(task, "test") == rows(20, start=200)["sentence"]
    assert len(task.splits["train"]) == 200
    assert task.sources == {"train": "train", "validation": other, "test": other}


@pytest.mark.parametrize(
    ("name", "protocol", "reported"),
    [
        ("mrpc", "clean", "test"),
        ("mrpc", "paper", "validation"),
        ("sst2", "clean", "validation"),
        ("sst2", "paper", "validation"),
        ("qnli", "clean", "validation"),
        ("qqp", "clean", "validation"),
        ("mnli", "clean", "validation_matched"),
        ("mnli", "paper", "validation_matched"),
        ("ag_news", "clean", "test"),
    ],
)
def test_reported_split_of_built_in_tasks(tmp_path, name, protocol, reported):
    built_in = TASKS[name]

    def make(start: int) -> dict:
        return rows(60, len(built_in.class_names), start, built_in.text_columns)

    validation = {"validation_matched": make(60), "validation_mismatched": make(300)}
    path = save(
        tmp_path,
        train=make(0),
        test=make(120),
        **(validation if name == "mnli" else {"validation": make(60)}),
    )
    task = load_task(DataConfig(name, path=path, protocol=Protocol(protocol)), 0)
    assert task.sources["test"] == reported
    first = task.splits["test"][0][built_in.text_columns[0]]
    assert first.endswith(" 120" if reported == "test" else " 60")
    assert task.class_names == built_in.class_names


def test_mrpc_reports_validation_where_the_labels_of_test_are_hidden(tmp_path):
    pairs = TASKS["mrpc"].text_columns
    hidden = rows(20, columns=pairs) | {"label": [-1] * 20}
    path = save(tmp_path, train=rows(60, columns=pairs), validation=rows(20, columns=pairs), test=hidden)
    assert load_task(DataConfig("mrpc", path=path), 0).sources["test"] == "validation"


@pytest.mark.parametrize("alias", ["dev", "valid"])
def test_other_names_of_validation(tmp_path, alias):
    path = save(tmp_path, train=rows(60), **{alias: rows(20, start=60)})
    assert load_task(own(path), 0).sources["test"] == alias


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
        (DataConfig("user/texts"), ValueError, r"data\.text_columns and data\.label_column must be given"),
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
        {"train": GOOD | {"label": [0.0, 1.0] * 20}},
        r"must hold integers or strings, got double",
    ),
    "label missing": ({"train": GOOD | {"label": [None] + [1, 0] * 19 + [1]}}, r"has 1 rows without a label"),
    "empty label": ({"train": GOOD | {"label": ["", "b"] * 20}}, r"must not hold empty strings"),
    "one class": ({"train": GOOD | {"label": ["a"] * 40}}, r"two or more classes, got 'a' only"),
    "gap in labels": ({"train": GOOD | {"label": [1, 2] * 20}}, r"integers 0 to 1, .*got 1, 2; renumber"),
    "hidden train": ({"train": GOOD | {"label": [-1] * 40}}, r"of the train split .*got -1.*GLUE"),
    "hidden test": (TRAIN | {"test": GOOD | {"label": [-1] * 40}}, r"of the test split .*got -1.*GLUE"),
    "unlabelled test": (TRAIN | {"test": {"sentence": ["x"]}}, r"no column 'label' in the test split"),
    "unknown label": (TRAIN | {"test": GOOD | {"label": [0, 1, 2, 0] * 10}}, r"label '2' of the test split"),
    "class not in test": (TRAIN | {"test": GOOD | {"label": [1] * 40}}, r"class '0' has no row in the test"),
    "rare class": (
        {"train": GOOD | {"label": ["rare"] + ["a", "b", "c"] * 13}},
        r"class 'rare' has no row in",
    ),
    "text missing": ({"train": GOOD | {"sentence": [None, *"x" * 39]}}, r"has 1 rows without a text"),
    "number texts": ({"train": GOOD | {"sentence": list(range(40))}}, r"must hold strings, got int64"),
    "empty split": (TRAIN | {"test": {"sentence": [], "label": []}}, r"the test split must not be empty"),
    "no train": ({"test": GOOD}, r"must hold a split called train .*got test"),
    "two validations": (TRAIN | {"dev": GOOD, "valid": GOOD}, r"one validation split, got dev and valid"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_are_refused(tmp_path, case):
    splits, message = BAD_DATA[case]
    with pytest.raises(ValueError, match=message):
        load_task(own(save(tmp_path, **splits)), 0)


def test_paper_needs_an_official_split(tmp_path):
    with pytest.raises(ValueError, match=r"data\.protocol=paper needs an official validation or test split"):
        load_task(own(save(tmp_path, train=GOOD), protocol=Protocol.paper), 0)


def test_a_task_with_hidden_test_labels_needs_its_validation_split(tmp_path):
    with pytest.raises(ValueError, match="'sst2' reports its validation split, got test, train only"):
        load_task(DataConfig("sst2", path=save(tmp_path, train=GOOD, test=GOOD)), 0)


def test_a_built_in_task_keeps_its_classes(tmp_path):
    table = {"text": GOOD["sentence"], "label": [0, 1, 2, 4] * 10}
    with pytest.raises(ValueError, match=r"integers 0 to 3, .*got 0, 1, 2, 4"):
        load_task(DataConfig("ag_news", path=save(tmp_path, train=table)), 0)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_empty_files_are_refused(tmp_path, suffix):
    file = tmp_path / f"train.{suffix}"
    file.touch()
    with pytest.raises(ValueError, match=rf"train\.{suffix} is empty or broken"):
        load_task(own(file), 0)


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "texts.xlsx").touch()
    with pytest.raises(ValueError, match=r"data\.path must end in one of \.csv, .*texts\.xlsx"):
        load_task(own(tmp_path / "texts.xlsx"), 0)
    with pytest.raises(ValueError, match=r"split called train .*got none"):
        load_task(own(tmp_path), 0)


def test_two_files_of_a_split_are_refused(tmp_path):
    save(tmp_path, train=GOOD)
    (tmp_path / "train.csv").write_text("sentence,label\n")
    with pytest.raises(ValueError, match=r"one file a split, got train\.csv and train\.parquet"):
        load_task(own(tmp_path), 0)


# Tokenising


def test_tokens_are_the_tokenizers(tmp_path, tokenizer):
    pairs = ("sentence1", "sentence2")
    task = load_task(
        DataConfig("mrpc", path=save(tmp_path, train=rows(60, columns=pairs), test=rows(20, columns=pairs))),
        0,
    )
    config = DataConfig(max_length=6)  # cuts the 3 + 3 words and 3 special tokens of a pair
    tokens = tokenize(task, tokenizer, config)
    for split, texts in task.splits.items():
        assert len(tokens[split]) == len(texts)
        chosen = [3, 0, 4]
        expected = tokenizer(
            *(texts[chosen][column] for column in pairs),
            truncation=True,
            max_length=6,
            padding=True,
            return_tensors="pt",
        )
        batch = tokens[split].batch(chosen)
        for key in ("input_ids", "attention_mask", "token_type_ids"):
            assert torch.equal(batch[key], expected[key])
        assert batch["token_type_ids"].any()
        assert batch["labels"].tolist() == texts[chosen]["labels"]


def test_batches_without_token_types_where_the_model_takes_none(tmp_path):
    plain = make_tokenizer(model_input_names=PLAIN_INPUTS)
    tokens = tokenize(load_task(own(save(tmp_path, train=rows(30))), 0), plain, DataConfig())
    assert set(tokens["train"].batch([0, 1])) == {*PLAIN_INPUTS, "labels"}


def test_texts_longer_than_a_chunk_of_rows_are_joined(tmp_path, tokenizer, monkeypatch):
    task = load_task(own(save(tmp_path, train=rows(60))), 0)
    whole = tokenize(task, tokenizer, DataConfig())["train"]
    monkeypatch.setattr(task_module, "TOKENIZE_CHUNK", 7)
    chunked = tokenize(task, tokenizer, DataConfig())["train"]
    assert np.array_equal(chunked.ids, whole.ids)
    assert np.array_equal(chunked.offsets, whole.offsets)


def test_max_length_fits_the_tokenizer(tmp_path):
    task = load_task(own(save(tmp_path, train=rows(30))), 0)
    with pytest.raises(ValueError, match=r"data\.max_length must be from 3 .* to 16 .*got 17"):
        tokenize(task, make_tokenizer(model_max_length=16), DataConfig(max_length=17))


def test_cache_gives_the_same_tokens_without_the_tokenizer(tmp_path, monkeypatch):
    task = load_task(own(save(tmp_path / "data", train=rows(60))), 0)
    config = DataConfig(preprocessed_datasets_path=str(tmp_path / "cache"))
    first = tokenize(task, make_tokenizer(), config)
    monkeypatch.setattr(task_module, "_token_arrays", None)
    # Truncation and padding of an earlier call stay set in a tokenizer; they must not make it another one.
    used = make_tokenizer()
    used(["alpha"], truncation=True, max_length=5, padding="max_length")
    again = tokenize(task, used, config)
    for split in first:
        rows_of_split = range(len(first[split]))
        for key, value in first[split].batch(rows_of_split).items():
            assert torch.equal(again[split].batch(rows_of_split)[key], value)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_cache_is_keyed_by_texts_tokenizer_length_and_version(tmp_path, monkeypatch):
    def cached(count: int = 60, max_length: int = 128, **options: object) -> set[str]:
        task = load_task(own(save(tmp_path / "data", train=rows(count))), 0)
        config = DataConfig(max_length=max_length, preprocessed_datasets_path=str(tmp_path / "cache"))
        tokenize(task, make_tokenizer(**options), config)
        return {file.name for file in (tmp_path / "cache").iterdir()}

    assert len(cached()) == 1
    assert len(cached(count=61)) == 2
    assert len(cached(max_length=4)) == 3
    assert len(cached(words=WORDS[::-1])) == 4
    assert len(cached(model_input_names=PLAIN_INPUTS)) == 5
    assert len(cached(truncation_side="left")) == 6
    monkeypatch.setattr(task_module, "CACHE_VERSION", 0)
    assert len(cached()) == 7


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: b"", lambda content: b"\xff" * 99])
def test_a_broken_cache_is_rebuilt(tmp_path, tokenizer, damage, caplog):
    task = load_task(own(save(tmp_path / "data", train=rows(60))), 0)
    config = DataConfig(preprocessed_datasets_path=str(tmp_path / "cache"))
    tokenize(task, tokenizer, config)
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    with caplog.at_level(logging.WARNING):
        tokenize(task, tokenizer, config)
    assert "is broken" in caplog.text
    assert file.read_bytes() == content


def test_force_preprocess_rewrites_the_cache(tmp_path, tokenizer):
    task = load_task(own(save(tmp_path / "data", train=rows(60))), 0)
    config = DataConfig(preprocessed_datasets_path=str(tmp_path / "cache"))
    tokenize(task, tokenizer, config)
    (file,) = (tmp_path / "cache").iterdir()
    before = file.stat().st_ino
    tokenize(task, tokenizer, config)
    assert file.stat().st_ino == before
    config.force_preprocess = True
    tokenize(task, tokenizer, config)
    assert file.stat().st_ino != before


# Batches


@pytest.fixture(scope="module")
def skewed() -> TokenizedSplit:
    """Lengths spread as those of news and review texts are: log-normal, cut at 128."""
    draws = torch.empty(5_000).log_normal_(3.5, 0.6, generator=generator(0, "lengths")).long().numpy()
    return split_of(np.clip(draws, 3, 128))


def test_padding_is_under_a_tenth_of_tokens(skewed):
    masks = [batch["attention_mask"] for batch in train_batches(skewed, 32, seed=0, epoch=0)]
    assert 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks) < 0.1


def labels_of(batches: object) -> list[list[int]]:
    return [batch["labels"].tolist() for batch in batches]


def test_an_epoch_holds_every_row_once_but_for_an_incomplete_batch(skewed):
    batches = labels_of(train_batches(skewed, 32, seed=0, epoch=0))
    assert len(batches) == steps_per_epoch(skewed, 32) == 5_000 // 32
    assert {len(batch) for batch in batches} == {32}
    assert len(set().union(*batches)) == 5_000 // 32 * 32


def test_the_rows_an_epoch_drops_are_not_always_the_longest():
    split = split_of(np.arange(1, 64))
    epochs = [set(labels_of(train_batches(split, 32, seed=0, epoch=epoch))[0]) for epoch in range(10)]
    assert 62 in set().union(*epochs)


def test_order_is_decided_by_seed_and_epoch(skewed):
    orders = [labels_of(train_batches(skewed, 32, *args)) for args in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert orders[0] == orders[1]
    assert all(orders[0] != other for other in orders[2:])
    # Other batches, too, not only another order of the same.
    assert not {frozenset(batch) for batch in orders[0]} & {frozenset(batch) for batch in orders[2]}


def test_batches_do_not_come_sorted_by_length(skewed):
    widths = [batch["input_ids"].shape[1] for batch in train_batches(skewed, 32, seed=0, epoch=0)]
    first, second = widths[: len(widths) // 2], widths[len(widths) // 2 :]
    assert abs(np.mean(first) - np.mean(second)) < 0.2 * np.mean(widths)


@pytest.mark.parametrize("counts", [(1_600, 1_600), (2_001, 1_033, 166), (800, 800, 800, 800), (3_111, 89)])
def test_batches_keep_the_shares_of_the_classes(skewed, counts):
    """Of a pool, which this epoch is one of; and pad no more than they may."""
    random = generator(0, "classes")
    labels = np.repeat(np.arange(len(counts)), counts)[torch.randperm(3_200, generator=random).numpy()]
    split = split_of(skewed.lengths[:3_200], labels)
    batches = list(train_batches(split, 32, seed=0, epoch=0))
    found = np.array([np.bincount(batch["labels"], minlength=len(counts)) for batch in batches])
    assert np.abs(found - np.array(counts) / 100).max() < 1.5
    assert found.sum(axis=0).tolist() == list(counts)
    masks = [batch["attention_mask"] for batch in batches]
    assert 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks) < 0.1


def test_length_alone_counts_where_the_classes_differ_in_length():
    lengths = np.concatenate([np.arange(1_600) % 10 + 5, np.arange(1_600) % 60 + 60])
    split = split_of(lengths, np.repeat([0, 1], 1_600))
    batches = list(train_batches(split, 32, seed=0, epoch=0))
    assert sorted(len(set(batch["labels"].tolist())) for batch in batches) == [1] * 100
    masks = [batch["attention_mask"] for batch in batches]
    assert 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks) < 0.1


@pytest.mark.parametrize("start", [0, 1, 100, 155, 156])
def test_start_leaves_out_the_first_batches(skewed, start):
    whole = labels_of(train_batches(skewed, 32, seed=0, epoch=3))
    assert len(whole) == 156
    assert labels_of(train_batches(skewed, 32, seed=0, epoch=3, start=start)) == whole[start:]
    assert labels_of(train_batches(skewed, 32, seed=0, epoch=3, start=start, stride=2)) == whole[start::2]


def test_fewer_rows_than_a_batch_are_one_batch():
    split = split_of(np.array([3, 4, 5]))
    (batch,) = labels_of(train_batches(split, 32, seed=0, epoch=0))
    assert sorted(batch) == [0, 1, 2]
    assert steps_per_epoch(split, 32) == 1


def test_batch_pads_to_its_longest_row():
    batch = split_of(np.array([1, 3, 2, 9])).batch([2, 1])
    assert batch["input_ids"].tolist() == [[2, 2, 0], [1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [2, 1]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_sorted_batches_hold_every_row_once_and_bounded_tokens():
    split = split_of(np.concatenate([np.full(500, 20), np.full(40, 128), np.array([900])]))
    seen, shapes = [], []
    for indices, batch in sorted_batches(split, 8):
        assert batch["labels"].tolist() == indices.tolist()
        seen += indices.tolist()
        shapes.append(tuple(batch["input_ids"].shape))
    assert sorted(seen) == list(range(541))
    # 512 tokens at most: the row of 900 alone, 4 rows of 128, and 8 rows where they are short.
    assert shapes == [(1, 900)] + [(4, 128)] * 10 + [(8, 20)] * 62 + [(4, 20)]


def test_stratified_sample_is_class_major():
    labels = np.array([2, 0, 1, 1, 0, 2, 2, 0, 1, 0])
    sample = stratified_sample(labels, 3, generator(0, "sample"))
    assert labels[sample].tolist() == [0, 1, 2] * 3
    assert len(set(sample.tolist())) == 9
    draws = [stratified_sample(labels, 2, generator(seed, "sample")).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    with pytest.raises(ValueError, match="class 1 has 3 rows, fewer than the 4 to be drawn"):
        stratified_sample(labels, 4, generator(0, "sample"))


# examples/vader.py


@pytest.fixture
def vader():
    file = Path(__file__).parents[1] / "examples" / "vader.py"
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
    kept = {text: label for split in movie.splits.values() for text, label in zip(*split[:].values(), strict=True)}
    assert kept == {f"cliché {i}": int(r > 0) for i, r in enumerate(ratings) if abs(r) >= 0.5}
    genre = load_task(DataConfig("vader_genre", path=str(tmp_path / "data/vader_genre")), 0)
    assert genre.class_names == ("editorial", "movie", "product", "tweet")
