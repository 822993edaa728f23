"""The inner loop: gradient steps of a learner on a few samples.

Distillation, evaluation, baselines and ``finetune`` all train a learner through ``inner_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from textdistill.core.precision import FLOAT32, Precision
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner, Params
from textdistill.method.losses import attention_loss, task_loss


@dataclass(frozen=True)
class InnerBatch:
    """What one inner step reads.

    Attributes:
        inputs_embeds: input embeddings (B, L, D).
        labels: weights of the classes (B, C), or class indices (B,).
        attention_labels: target attention (B, Y, H, Q, L), probabilities over the last dimension times the weight of
            their row; or None.
        lr: the step's learning rate: a scalar, or one for each parameter that the inner loss depends on (P,), in the
            order of the parameters.
        context: further inputs of the learner that are not learned (``attention_mask``, ``token_type_ids``).
        dropout_seed: seed of the step's dropout masks; every evaluation of one inner step replays it.

    """

    inputs_embeds: Tensor
    labels: Tensor
    attention_labels: Tensor | None
    lr: Tensor
    context: Mapping[str, Tensor] = field(default_factory=dict)
    dropout_seed: int | None = None

    @property
    def learned(self) -> dict[str, Tensor]:
        """The tensors that the inner gradient depends on and that can be learned: x, y and a (not lr)."""
        parts = {
            "inputs_embeds": self.inputs_embeds,
            "labels": self.labels,
            "attention_labels": self.attention_labels,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def replace(self, tensors: Mapping[str, Tensor]) -> InnerBatch:
        """The same batch with other tensors, named as in ``learned``; ``lr`` may be among them."""
        return InnerBatch(
            tensors["inputs_embeds"],
            tensors["labels"],
            tensors.get("attention_labels"),
            tensors.get("lr", self.lr),
            self.context,
            self.dropout_seed,
        )


InnerLoss = Callable[[Params, InnerBatch], Tensor]


def make_inner_loss(
    learner: Learner,
    label_type: AttentionLabelType,
    attention_loss_lambda: float,
    exact: bool = False,
    precision: Precision = FLOAT32,
) -> InnerLoss:
    """``task_loss + attention_loss_lambda * attention_loss`` as a function of (params, batch).

    Args:
        learner: the classifier.
        label_type: which attention rows the batches label; with ``none`` the second term is absent.
        attention_loss_lambda: weight of the second term, at least 0.
        exact: use attention that has derivatives of every order (``forward`` and ``reverse`` estimators).
        precision: of the forward pass. TF32 is the caller's to set, since it concerns the backward pass as well.

    """

    def inner_loss(params: Params, batch: InnerBatch) -> Tensor:
        inputs = {"inputs_embeds": batch.inputs_embeds, **batch.context}
        with precision.autocast(learner.device):
            logits, log_rows = learner(
                params, inputs, label_type=label_type, exact=exact, dropout_seed=batch.dropout_seed
            )
            loss = task_loss(logits, batch.labels)
            if log_rows is not None and batch.attention_labels is not None:
                loss = loss + attention_loss_lambda * attention_loss(log_rows, batch.attention_labels)
        return loss

    return inner_loss


def gradient(loss: Tensor, tensors: Mapping[str, Tensor], create_graph: bool = False) -> dict[str, Tensor]:
    """Gradient of ``loss`` by name; tensors that the loss does not depend on have no entry."""
    grads = torch.autograd.grad(loss, list(tensors.values()), create_graph=create_graph, allow_unused=True)
    return {name: grad for name, grad in zip(tensors, grads, strict=True) if grad is not None}


def leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values, cut from their graph and ready for a gradient. Nothing is copied."""
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def descend(params: Params, grads: Mapping[str, Tensor], lr: Tensor) -> Params:
    """``params - lr * grads`` as new tensors; a parameter without a gradient passes unchanged.

    Args:
        params: by name.
        grads: of some of them.
        lr: a scalar, or one for each of ``grads`` (P,), in their order.

    """
    rates = dict(zip(grads, lr.expand(len(grads)), strict=True))
    return {name: p.addcmul(grads[name], rates[name], value=-1) if name in grads else p for name, p in params.items()}


def inner_step(inner_loss: InnerLoss, params: Params, batch: InnerBatch, create_graph: bool = False) -> Params:
    """One gradient step: ``params - lr * grad_params inner_loss(params, batch)`` (docs/method.md).

    Args:
        inner_loss: as ``make_inner_loss`` builds it.
        params: the learner's parameters; not written to.
        batch: the step's samples and learning rate.
        create_graph: keep the graph from ``params`` and ``batch`` to the result (they must require gradients);
            without it the result stands alone.

    Returns:
        The updated parameters.

    """
    params = params if create_graph else leaves(params)
    grads = gradient(inner_loss(params, batch), params, create_graph)
    if create_graph:
        return descend(params, grads, batch.lr)
    with torch.no_grad():
        return {name: p.detach() for name, p in descend(params, grads, batch.lr).items()}


def fine_tune(inner_loss: InnerLoss, params: Params, batches: Iterable[InnerBatch]) -> Params:
    """One inner step a batch, in order; the result has no graph."""
    for batch in batches:
        params = inner_step(inner_loss, params, batch)
    return params
