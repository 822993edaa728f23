"""Tokens: those of the tokenizer, however the rows are cut into chunks; and the cache."""

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.support.tables import WORDS, own, rows, save, texts_of
from textdistill.data import source
from textdistill.data import tokens as tokens_module
from textdistill.data.task import DataConfig, load_task
from textdistill.data.tokens import tokenize

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


def test_tokens_are_the_tokenizers(tmp_path, tokenizer):
    pairs = ("sentence1", "sentence2")
    task = load_task(
        DataConfig("mrpc", path=save(tmp_path, train=rows(60, columns=pairs), test=rows(20, columns=pairs))),
        0,
    )
    config = DataConfig(max_length=6)  # cuts the 3 + 3 words and 3 special tokens of a pair
    tokens = tokenize(task, tokenizer, config)
    for split, texts in texts_of(task).items():
        assert len(tokens[split]) == len(task.splits[split]) == len(texts[pairs[0]])
        chosen = [3, 0, 4]
        expected = tokenizer(
            *([texts[column][row] for row in chosen] for column in pairs),
            truncation=True,
            max_length=6,
            padding=True,
            return_tensors="pt",
        )
        batch = tokens[split].batch(chosen)
        for key in ("input_ids", "attention_mask", "token_type_ids"):
            assert torch.equal(batch[key], expected[key])
        assert batch["token_type_ids"].any()
        assert batch["labels"].tolist() == task.splits[split].labels[chosen].tolist()


def test_batches_without_token_types_where_the_model_takes_none(tmp_path):
    plain = make_tokenizer(model_input_names=PLAIN_INPUTS)
    tokens = tokenize(load_task(own(save(tmp_path, train=rows(30))), 0), plain, DataConfig())
    assert set(tokens["train"].batch([0, 1])) == {*PLAIN_INPUTS, "labels"}


def test_nothing_depends_on_how_rows_are_cut_into_chunks(tmp_path, tokenizer, monkeypatch):
    config = own(save(tmp_path, train=rows(60), test=rows(20, start=60)))
    whole = load_task(config, 0)
    monkeypatch.setattr(source, "CHUNK_ROWS", 7)
    cut = load_task(config, 0)
    assert cut.fingerprint == whole.fingerprint
    assert max(len(chunk) for _, chunk in cut.chunks()) <= 7
    tokens = tokenize(cut, tokenizer, config)
    monkeypatch.undo()
    for split, expected in tokenize(whole, tokenizer, config).items():
        assert np.array_equal(tokens[split].ids, expected.ids)
        assert np.array_equal(tokens[split].offsets, expected.offsets)
        assert np.array_equal(tokens[split].labels, expected.labels)


def test_max_length_fits_the_tokenizer(tmp_path):
    task = load_task(own(save(tmp_path, train=rows(30))), 0)
    with pytest.raises(ValueError, match=r"data\.max_length must be from 3 .* to 16 .*got 17"):
        tokenize(task, make_tokenizer(model_max_length=16), DataConfig(max_length=17))


def test_cache_gives_the_same_tokens_without_the_texts(tmp_path):
    task = load_task(own(save(tmp_path / "data", train=rows(60))), 0)
    config = DataConfig(preprocessed_datasets_path=str(tmp_path / "cache"))
    first = tokenize(task, make_tokenizer(), config)
    shutil.rmtree(tmp_path / "data")  # without the texts nothing can be tokenised again
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
    monkeypatch.setattr(tokens_module, "CACHE_VERSION", 0)
    assert len(cached()) == 7


DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-4]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + bytes(4)),
    "empty": lambda file: file.write_bytes(b""),
    "one bit": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
    "gone": Path.unlink,
    "folder": lambda file: (file.unlink(), file.mkdir()),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["train.ids", "test.offsets", "validation.token_types", "index.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_cache_is_rebuilt(cached, tokenizer, name, damage, caplog):
    task, config, entry = cached
    before = contents(entry)
    DAMAGES[damage](entry / name)
    with caplog.at_level(logging.WARNING):
        tokenize(task, tokenizer, config)
    assert "is broken" in caplog.text
    assert contents(entry) == before


def test_a_file_in_place_of_a_cache_entry_is_replaced(cached, tokenizer):
    task, config, entry = cached
    before = contents(entry)
    shutil.rmtree(entry)
    entry.write_text("")
    tokenize(task, tokenizer, config)
    assert contents(entry) == before


@pytest.fixture
def cached(tmp_path, tokenizer):
    task = load_task(own(save(tmp_path / "data", train=rows(60))), 0)
    config = DataConfig(preprocessed_datasets_path=str(tmp_path / "cache"))
    tokenize(task, tokenizer, config)
    (entry,) = (tmp_path / "cache").iterdir()
    return task, config, entry


def test_force_preprocess_rewrites_the_cache(cached, tokenizer):
    task, config, entry = cached
    before = entry.stat().st_ino
    tokenize(task, tokenizer, config)
    assert entry.stat().st_ino == before
    config.force_preprocess = True
    tokenize(task, tokenizer, config)
    assert entry.stat().st_ino != before


def test_processes_that_make_an_entry_at_once_both_have_their_tokens(cached, tokenizer, monkeypatch):
    task, config, entry = cached
    shutil.rmtree(entry)
    rename, others = Path.rename, []

    def rename_after_another(path: Path, target: Path) -> None:
        """The other process's entry comes between the look for an old one and the rename."""
        if path.name == "new" and not others:
            others.append(None)
            others[0] = tokenize(task, tokenizer, config)
        rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_after_another)
    ours = tokenize(task, tokenizer, config)
    assert np.array_equal(ours["train"].ids, others[0]["train"].ids)
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]
    assert len(contents(entry)) == 13


def test_tokens_are_mapped_and_outlive_their_files(cached, tokenizer, tmp_path, monkeypatch):
    task, config, entry = cached
    uncached = replace(config, preprocessed_datasets_path=None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    for tokens in (tokenize(task, tokenizer, config), tokenize(task, tokenizer, uncached)):
        assert not list((tmp_path / "scratch").iterdir())
        for array in (tokens["train"].ids, tokens["train"].offsets, tokens["train"].token_types):
            assert type(array) is np.ndarray
            assert isinstance(array.base, np.memmap)
            assert not array.flags.writeable
        expected = tokens["train"].batch(range(48))
        shutil.rmtree(entry, ignore_errors=True)
        assert all(torch.equal(value, expected[key]) for key, value in tokens["train"].batch(range(48)).items())


def test_a_failure_leaves_nothing_in_the_cache(tmp_path, tokenizer, monkeypatch):
    task = load_task(own(save(tmp_path / "data", train=rows(60))), 0)
    monkeypatch.setattr(type(task), "chunks", lambda self: iter([("train", pa.table({"sentence": [None]}))]))
    with pytest.raises(ValueError, match="text input must be of type"):
        tokenize(task, tokenizer, DataConfig(preprocessed_datasets_path=str(tmp_path / "cache")))
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("later", [rows(60) | {"sentence": ["alpha"] * 60}, rows(59), rows(61)])
def test_texts_that_change_between_two_passes_are_refused(tmp_path, tokenizer, later):
    path = save(tmp_path / "data", train=rows(60))
    task = load_task(own(path), 0)
    save(tmp_path / "data", train=later)
    with pytest.raises(
        ValueError, match=r"data\.path=.*the texts of the train split must stay as they are .*try again"
    ):
        tokenize(task, tokenizer, DataConfig(preprocessed_datasets_path=str(tmp_path / "cache")))
    assert not list((tmp_path / "cache").iterdir())
