"""Checks a tokenizer against its model, and fits it to the way this package makes batches."""

from __future__ import annotations

import logging

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, embedding_rows: int, model_name: str) -> None:
    """Raises ValueError if the tokenizer knows no words, or a token without an embedding.

    transformers makes a tokenizer of special tokens alone for a folder without tokenizer files. To that tokenizer
    every text is a sequence of unknown tokens.
    """
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        raise ValueError(
            f"model.model_name={model_name} must have a tokenizer that knows words, got one that knows only"
            f" {sorted(vocabulary)}; add the tokenizer's files, such as tokenizer.json"
        )
    largest = max(vocabulary.values())
    if largest >= embedding_rows:
        raise ValueError(
            f"model.model_name={model_name} must have an embedding for each token, got {embedding_rows} embeddings and"
            f" a token with id {largest}; use the tokenizer of the model, or resize the embeddings"
        )


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, model_name: str) -> None:
    """Makes a tokenizer pad on the right, with a token that ends no text, and return segments only if they are used.

    A decoder's classifier reads the last token that is not padding. A pad token that the tokenizer appends to each
    text would hide itself from it.

    Raises:
        ValueError: there is no token to pad with.

    """
    tokenizer.padding_side = "right"
    last = tokenizer("a")["input_ids"][-1:]
    if tokenizer.pad_token_id in [None, *last]:
        if tokenizer.eos_token_id in [None, *last]:
            raise ValueError(
                f"model.model_name={model_name} must have a pad token that ends no text, got"
                f" {tokenizer.pad_token!r}; set pad_token in its tokenizer_config.json"
            )
        logger.warning(
            "%s: texts are padded with the end token %r, because the pad token is %r",
            model_name, tokenizer.eos_token, tokenizer.pad_token,
        )  # fmt: skip
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "type_vocab_size", 0) < 2:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
