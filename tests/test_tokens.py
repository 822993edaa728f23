"""Tokens: the tokenizer's, whatever the pieces; the cache."""

import logging

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tables import PLAIN_INPUTS, WORDS, make_tokenizer, own, rows, save
from textdistill import tokens as tokens_module
from textdistill.task import DataConfig, load_task
from textdistill.tokens import tokenize


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
    monkeypatch.setattr(tokens_module, "TOKENIZE_CHUNK", 7)
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
    monkeypatch.setattr(tokens_module, "_token_arrays", None)
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
