"""A model that does not do what a learner must do is refused, whatever its family: each fault is planted in a BERT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertForSequenceClassification
from transformers.models.bert import modeling_bert

from tests.support.words import CLASS_NAMES
from textdistill.method import attention
from textdistill.method.learner import Learner, ModelConfig

FORWARD = BertForSequenceClassification.forward


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Lets a test put another function in place of the kernel."""
    yield monkeypatch
    monkeypatch.undo()
    attention.AttentionInterface.register(attention.KERNEL, attention.attention_kernel)


def scaled(self: Any, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **inputs: Any) -> Any:
    """Scales embeddings that are given, but not those of tokens."""
    return FORWARD(self, input_ids, inputs_embeds=None if inputs_embeds is None else 2 * inputs_embeds, **inputs)


def mask_ignored(self: Any, *args: Any, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
    return FORWARD(self, *args, **inputs)


def mask_lost_beside_embeddings(self: Any, input_ids: Tensor | None = None, **inputs: Any) -> Any:
    if input_ids is None:
        inputs.pop("attention_mask", None)
    return FORWARD(self, input_ids, **inputs)


def detached(self: Any, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **inputs: Any) -> Any:
    outputs = FORWARD(self, input_ids, inputs_embeds=inputs_embeds, **inputs)
    if inputs_embeds is not None:
        outputs.logits = outputs.logits.detach() + 0 * inputs_embeds.sum()
        outputs.logits += 0 * sum(parameter.sum() for parameter in self.parameters())
    return outputs


def embeddings_refused(self: Any, input_ids: Tensor, **inputs: Any) -> Any:
    return FORWARD(self, input_ids, **inputs)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (scaled, "embeddings give it other logits than their tokens"),
        (mask_ignored, "padding changes its logits"),
        (mask_lost_beside_embeddings, "padding changes its logits from embeddings"),
        (embeddings_refused, ".*missing 1 required positional argument: 'input_ids'"),
    ],
)
def test_a_wrong_forward_pass_is_refused(
    forward: Any, reason: str, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    with pytest.raises(
        ValueError, match=rf"^model\.model_name={tiny_bert} is of family bert, .* learner: {reason}; use"
    ):
        Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)


def test_another_attention_than_transformers_is_refused(tiny_bert: Path, kernel: pytest.MonkeyPatch) -> None:
    """Causal attention in an encoder, which is the reverse of what decoders once lost."""

    def causal(module: Any, *args: Any, **arguments: Any) -> Any:
        return attention.attention_kernel(module, *args, **(arguments | {"is_causal": True}))

    attention.AttentionInterface.register(attention.KERNEL, causal)
    with pytest.raises(
        ValueError, match=r"learner: (padding changes|transformers' own attention gives it other logits)"
    ):
        Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)


def test_attention_in_part_of_the_layers_is_refused(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = modeling_bert.BertLayer.forward

    def second_is_skipped(self: Any, hidden: Tensor, *args: Any, **inputs: Any) -> Any:
        if self.attention.self.layer_idx == 1:
            return layer(self, hidden, *args, **inputs) if isinstance(hidden, tuple) else hidden
        return layer(self, hidden, *args, **inputs)

    monkeypatch.setattr(modeling_bert.BertLayer, "forward", second_is_skipped)
    with pytest.raises(ValueError, match="learner: it computes attention 1 times in 2 layers; use a model"):
        Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)


@pytest.mark.parametrize(("prefix", "missing"), [("renamed.", "all"), ("", "most")])
def test_a_checkpoint_without_most_weights_is_refused(
    prefix: str, missing: str, tiny_bert: Path, tmp_path: Path
) -> None:
    """Transformers draws what is missing, and the encoder would be random."""
    for file in tiny_bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny_bert / "model.safetensors")
    kept = [name for name in weights if missing == "all" or name.startswith("embeddings")]
    save_file({prefix + name: weights[name] for name in kept}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"^model\.model_name={tmp_path} must hold the weights of a bert encoder, but \d+"
    ):
        Learner(ModelConfig(model_name=str(tmp_path)), CLASS_NAMES)


def test_logits_that_no_embedding_reaches_are_refused(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BertForSequenceClassification, "forward", detached)
    with pytest.raises(ValueError, match="learner: its logits do not depend on the embeddings; use a model"):
        Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)


def test_trying_a_model_leaves_its_weights_and_the_random_state_alone(tiny_bert: Path) -> None:
    learner = Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in learner.model.parameters())
    assert learner.model.config._attn_implementation == attention.KERNEL
    assert not learner.model.training
    assert torch.is_grad_enabled()
