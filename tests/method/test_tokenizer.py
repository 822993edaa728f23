"""Tokenizers that do not fit their model: refused in one line, or made to fit with a warning."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from tests.support.fixtures import SaveModel
from tests.support.models import tiny_config
from tests.support.words import CLASS_NAMES, VOCABULARY
from textdistill.method.learner import Learner, ModelConfig
from textdistill.method.tokenizer import fit_tokenizer


def load(folder: Path) -> Learner:
    return Learner(ModelConfig(model_name=str(folder)), CLASS_NAMES)


def word_tokenizer(*, end: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the words of the toy task. With ``end`` it ends each text with [SEP]."""
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        backend.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "qwen3", "xlm-roberta", "mpnet"])
def test_a_tokenizer_without_words_is_refused(family: str, save_model: SaveModel, tmp_path: Path) -> None:
    """Transformers makes it where the files are missing, and it turns every text into unknown tokens."""
    folder = save_model(tiny_config(family), tmp_path)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=rf"^model\.model_name={folder} must have a tokenizer that knows words, "):
        load(folder)


@pytest.mark.parametrize("family", ["llama", "modernbert", "eurobert"])
def test_a_tokenizer_that_cannot_be_loaded_is_refused_in_one_line(
    family: str, save_model: SaveModel, tmp_path: Path
) -> None:
    folder = save_model(tiny_config(family), tmp_path)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(OSError, match=rf"^the tokenizer of model\.model_name={folder} cannot be loaded: .+$") as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("family", "rows"), [("bert", len(VOCABULARY) - 1), ("gpt2", 10), ("eurobert", 6)])
def test_more_tokens_than_embeddings_are_refused(family: str, rows: int, save_model: SaveModel, tmp_path: Path) -> None:
    folder = save_model(tiny_config(family, vocab_size=rows), tmp_path)
    with pytest.raises(
        ValueError,
        match=rf"^model\.model_name={folder} must have an embedding for each token, got {rows} embeddings and a token"
        rf" with id {len(VOCABULARY) - 1}; ",
    ):
        load(folder)


def test_more_embeddings_than_tokens_are_fine(save_model: SaveModel, tmp_path: Path) -> None:
    assert load(save_model(tiny_config("bert", vocab_size=len(VOCABULARY) + 7), tmp_path)).num_layers == 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_decoder_without_a_pad_token_pads_with_its_end_token(
    family: str, save_model: SaveModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The exported configuration names that token, because the classifier looks for the last other one."""
    folder = save_model(tiny_config(family, pad_token_id=None), tmp_path / "model")
    word_tokenizer(eos_token="[SEP]").save_pretrained(folder)
    with caplog.at_level(logging.WARNING, logger="textdistill"):
        learner = load(folder)
    assert f"{folder}: texts are padded with the end token '[SEP]', because the pad token is None" in caplog.text
    assert learner.tokenizer.pad_token_id == 3
    learner.to_model(learner.fresh_params(0)).save_pretrained(tmp_path / "exported")
    learner.tokenizer.save_pretrained(tmp_path / "exported")
    exported = load(tmp_path / "exported")
    assert (exported.model.config.pad_token_id, exported.tokenizer.pad_token_id) == (3, 3)


@pytest.mark.parametrize("family", ["bert", "gpt2", "eurobert"])
def test_no_token_to_pad_with_is_refused(family: str, save_model: SaveModel, tmp_path: Path) -> None:
    folder = save_model(tiny_config(family), tmp_path)
    word_tokenizer().save_pretrained(folder)
    with pytest.raises(
        ValueError, match=rf"^model\.model_name={folder} must have a pad token that ends no text, got None"
    ):
        load(folder)


def test_a_pad_token_that_ends_each_text_is_replaced_or_refused(
    save_model: SaveModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The classifier of a decoder would read the token before it."""
    folder = save_model(tiny_config("llama"), tmp_path)
    word_tokenizer(end=True, pad_token="[SEP]", eos_token="[MASK]").save_pretrained(folder)
    assert load(folder).tokenizer.pad_token == "[MASK]"
    assert "because the pad token is '[SEP]'" in caplog.text
    word_tokenizer(end=True, pad_token="[SEP]", eos_token="[SEP]").save_pretrained(folder)
    with pytest.raises(ValueError, match=r"must have a pad token that ends no text, got '\[SEP\]'; set pad_token in"):
        load(folder)


def test_padding_is_on_the_right(save_model: SaveModel, tmp_path: Path) -> None:
    """Learned positions count from the left, so a text padded on the left is another one."""
    folder = save_model(tiny_config("gpt2"), tmp_path)
    word_tokenizer(pad_token="[PAD]", padding_side="left").save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"
    assert load(folder).tokenizer.padding_side == "right"


@pytest.mark.parametrize(
    ("family", "known"), [("bert", True), ("distilbert", False), ("gpt2", False), ("llama", False)]
)
def test_segments_are_left_out_where_the_model_has_none(
    family: str, known: bool, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    """GPT-2 takes them, too: it adds the word embedding with the number of the segment to every token."""
    folder = save_model(tiny_config(family), tmp_path)
    tokenizer = BertTokenizerFast(vocab={token: i for i, token in enumerate(VOCABULARY)})
    assert "token_type_ids" in tokenizer.model_input_names
    fit_tokenizer(tokenizer, load(folder).model.config, "a model")
    encoded = tokenizer("the cat", return_tensors="pt")
    assert ("token_type_ids" in encoded) is known
    assert torch.equal(encoded["input_ids"][0, [0, -1]], torch.tensor([2, 3]))
