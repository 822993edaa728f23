"""Tries a model before it is used, so that one which does not fit never passes silently."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from textdistill.method.attention import KERNEL, AttentionLabelType

if TYPE_CHECKING:
    from textdistill.method.learner import Learner

# Logits of the same texts that are computed in two ways in float32 differ by less than this part of their size.
TOLERANCE = 1e-3
# Tokens of the text that is tried, and of its beginning, which is tried with padding.
LENGTH, SHORT = 6, 4


def check_weights(model: PreTrainedModel, missing_keys: frozenset[str], model_name: str) -> None:
    """Raises ValueError if the checkpoint lacks most of the encoder's weights, which would be random."""
    body = {name for name, _ in model.named_parameters() if name.startswith(f"{model.base_model_prefix}.")}
    missing = body & missing_keys
    if 2 * len(missing) > len(body):
        raise ValueError(
            f"model.model_name={model_name} must hold the weights of a {model.config.model_type} encoder, but"
            f" {len(missing)} of {len(body)} are missing, such as {min(missing)}; use a folder or id that holds them"
        )


def check_fit(learner: Learner) -> None:
    """Raises RuntimeError unless a model does what a learner must do.

    It must read embeddings as it reads their tokens, ignore padding, and compute what transformers' own attention
    computes. Each layer's attention must be a distribution over the positions. The logits must depend on the
    embeddings.
    """
    if reason := _misfit_of_logits(learner) or _misfit_of_attention(learner):
        raise RuntimeError(reason)


def _misfit_of_logits(learner: Learner) -> str | None:
    ids = _some_tokens(learner)
    text, start = {"input_ids": ids}, {"input_ids": ids[:, :SHORT]}
    padding = torch.full_like(ids[:, SHORT:], learner.tokenizer.pad_token_id)
    padded = {
        "input_ids": torch.cat([ids[:, :SHORT], padding], dim=1),
        "attention_mask": (torch.arange(LENGTH) < SHORT).long()[None],
    }
    if "token_type_ids" in learner.tokenizer.model_input_names:
        padded["token_type_ids"] = torch.zeros_like(ids)
    expected, expected_start = _logits(learner, text), _logits(learner, start)
    if not _close(_logits(learner, _embedded(learner, text)), expected):
        return "embeddings give it other logits than their tokens"
    if not _close(_logits(learner, padded), expected_start):
        return "padding changes its logits"
    if not _close(_logits(learner, _embedded(learner, padded)), expected_start):
        return "padding changes its logits from embeddings"
    own = _own_logits(learner, text), _own_logits(learner, padded)
    if not (_close(own[0], expected) and _close(own[1], expected_start)):
        return "transformers' own attention gives it other logits"
    return None


def _misfit_of_attention(learner: Learner) -> str | None:
    embeds = learner.embed(_some_tokens(learner)).requires_grad_()
    logits, rows = learner({}, {"inputs_embeds": embeds}, label_type=AttentionLabelType.all)
    (grad,) = torch.autograd.grad(logits.sum(), embeds)
    if not grad.any():
        return "its logits do not depend on the embeddings"
    assert rows is not None
    layers = learner.model.config.get_text_config().num_hidden_layers
    if learner.num_layers != layers:
        return f"it computes attention {learner.num_layers} times in {layers} layers"
    if rows.shape[-2:] != (LENGTH, LENGTH) or not _close(rows.exp().sum(-1), torch.ones_like(rows[..., 0])):
        return "its attention is no distribution over the positions"
    if not (learner.key_mask(LENGTH, AttentionLabelType.cls).sum(-1) > 1).all():
        return "the row that its classifier reads attends to one position only"
    return None


def _some_tokens(learner: Learner) -> Tensor:
    """Returns ids of ordinary tokens, (1, LENGTH)."""
    special = set(learner.tokenizer.all_special_ids)
    ordinary = sorted(set(learner.tokenizer.get_vocab().values()) - special)
    return torch.tensor([[ordinary[i * len(ordinary) // LENGTH] for i in range(LENGTH)]])


def _embedded(learner: Learner, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    rest = dict(inputs)
    return {"inputs_embeds": learner.embed(rest.pop("input_ids")), **rest}


def _logits(learner: Learner, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return learner({}, inputs).logits


def _own_logits(learner: Learner, inputs: dict[str, Tensor]) -> Tensor:
    """Returns the logits that transformers' attention gives."""
    kernel = learner.model.config._attn_implementation
    if kernel == KERNEL:
        learner.model.set_attn_implementation(own_attention(learner.model))
    try:
        with torch.no_grad():
            logits: Tensor = learner.model(**inputs).logits
    finally:
        learner.model.set_attn_implementation(kernel)
    return logits


def own_attention(model: PreTrainedModel) -> str:
    """Returns the name of the attention that transformers uses for a model by default."""
    return "sdpa" if model._supports_sdpa else "eager"


def _close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= TOLERANCE * expected.abs().max())
