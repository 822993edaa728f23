"""The inner loop: gradient steps of a learner on a few samples.

Distillation, evaluation, coreset baselines and ``finetune`` all train a learner through ``inner_step``.

The inner loss is a mean over samples. So its gradient is the sum of the gradients of micro-batches, each weighted by
its share of the samples. A step on many samples takes one micro-batch after the other, and its memory stays bounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from textdistill.core.precision import FLOAT32, Precision
from textdistill.core.seeding import stream_seed
from textdistill.method.attention import AttentionLabelType
from textdistill.method.losses import attention_loss, task_loss

if TYPE_CHECKING:  # the inner loop calls any learner, and needs none of the code that loads one
    from textdistill.method.learner import Learner, Params

# The most tokens of a micro-batch, samples times positions (docs/decisions.md).
MICRO_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class InnerBatch:
    """The samples and learning rate of one inner step.

    Attributes:
        inputs_embeds: input embeddings, (B, L, D).
        labels: class weights, (B, C), or class indices, (B,).
        attention_labels: target attention, (B, Y, H, Q, L), or None. Each row holds probabilities times its weight.
        lr: the learning rate: a scalar, or one for each parameter that the inner loss depends on, (P,), in the order
            of the parameters.
        context: inputs of the learner that are not learned: ``attention_mask`` and ``token_type_ids``.
        dropout_seed: the seed of the dropout masks. Every evaluation of the loss of this step uses the same masks.

    """

    inputs_embeds: Tensor
    labels: Tensor
    attention_labels: Tensor | None
    lr: Tensor
    context: Mapping[str, Tensor] = field(default_factory=dict)
    dropout_seed: int | None = None

    @property
    def learned(self) -> dict[str, Tensor]:
        """The learnable tensors that the inner gradient depends on, by attribute; ``lr`` is not among them."""
        tensors = {
            "inputs_embeds": self.inputs_embeds,
            "labels": self.labels,
            "attention_labels": self.attention_labels,
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def replace(self, tensors: Mapping[str, Tensor]) -> InnerBatch:
        """Returns the batch with other tensors, named as in ``learned``; ``lr`` may be among them."""
        return InnerBatch(
            tensors["inputs_embeds"],
            tensors["labels"],
            tensors.get("attention_labels"),
            tensors.get("lr", self.lr),
            self.context,
            self.dropout_seed,
        )

    def micro_batches(self) -> list[tuple[float, InnerBatch]]:
        """Returns micro-batches of almost equal size, each with its share of the samples; the shares sum to 1.

        A micro-batch has at most ``MICRO_BATCH_TOKENS`` tokens, or a single sample. A batch within the bound is its
        own and only micro-batch. Each of several has dropout masks of its own.
        """
        tokens = self.inputs_embeds.shape[:-1].numel()
        if tokens <= MICRO_BATCH_TOKENS:
            return [(1.0, self)]
        samples = len(self.inputs_embeds)
        most = max(1, MICRO_BATCH_TOKENS * samples // tokens)
        sizes = [len(rows) for rows in torch.arange(samples).tensor_split(-(-samples // most))]
        learned, context = _split(self.learned, sizes), _split(self.context, sizes)
        seeds = [
            None if self.dropout_seed is None else stream_seed(self.dropout_seed, "micro-batch", index)
            for index in range(len(sizes))
        ]
        return [
            (size / samples, dataclasses.replace(self, **tensors, context=inputs, dropout_seed=seed))
            for size, tensors, inputs, seed in zip(sizes, learned, context, seeds, strict=True)
        ]


def _split(tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    """Returns the rows of tensors in consecutive parts of the given sizes."""
    parts = {name: tensor.split(sizes) for name, tensor in tensors.items()}
    return [{name: part[index] for name, part in parts.items()} for index in range(len(sizes))]


# A scalar loss with a graph, as a function of the parameters and the batch of an inner step. It is a mean over samples.
InnerLoss: TypeAlias = "Callable[[Params, InnerBatch], Tensor]"


def make_inner_loss(
    learner: Learner,
    label_type: AttentionLabelType,
    attention_loss_lambda: float,
    exact: bool = False,
    precision: Precision = FLOAT32,
) -> InnerLoss:
    """Returns ``task_loss + attention_loss_lambda * attention_loss`` as a function of parameters and batch.

    Args:
        learner: the classifier.
        label_type: the attention rows that the batches label. With ``none`` the second term is absent.
        attention_loss_lambda: the weight of the second term, at least 0.
        exact: use attention that has derivatives of every order, which ``forward`` and ``reverse`` need.
        precision: its autocast is applied. The caller sets TF32, because it concerns the backward pass as well.

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
    """Returns the gradient of ``loss`` by name. A tensor that the loss does not depend on has no entry."""
    grads = torch.autograd.grad(loss, list(tensors.values()), create_graph=create_graph, allow_unused=True)
    return {name: grad for name, grad in zip(tensors, grads, strict=True) if grad is not None}


def add(total: dict[str, Tensor], terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the sums by name, and empties ``total``, so that no more than one sum by name is in memory."""
    return {name: total.pop(name) + term if name in total else term for name, term in terms.items()}


def leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the same values without their graph, ready for a gradient. Nothing is copied."""
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def descend(params: Params, grads: Mapping[str, Tensor], lr: Tensor) -> Params:
    """Returns ``params - lr * grads`` as new tensors. A parameter without a gradient is returned unchanged.

    Args:
        params: parameters by name.
        grads: gradients with respect to some of the parameters.
        lr: a scalar, or one learning rate for each gradient, (P,), in the order of ``grads``.

    """
    rates = dict(zip(grads, lr.expand(len(grads)), strict=True))
    return {name: p.addcmul(grads[name], rates[name], value=-1) if name in grads else p for name, p in params.items()}


def inner_step(inner_loss: InnerLoss, params: Params, batch: InnerBatch, create_graph: bool = False) -> Params:
    """Makes one gradient step: ``params - lr * grad_params inner_loss(params, batch)``.

    Args:
        inner_loss: as ``make_inner_loss`` builds it.
        params: the parameters of the learner; not written to.
        batch: the samples and the learning rate of the step.
        create_graph: keep the graph from ``params`` and ``batch``, which must require gradients, to the result.
            Otherwise the result has no graph.

    Returns:
        The updated parameters.

    """
    params = params if create_graph else leaves(params)
    grads: dict[str, Tensor] = {}
    for share, micro_batch in batch.micro_batches():
        grads = add(grads, gradient(share * inner_loss(params, micro_batch), params, create_graph))
    if create_graph:
        return descend(params, grads, batch.lr)
    with torch.no_grad():
        return {name: p.detach() for name, p in descend(params, grads, batch.lr).items()}


def fine_tune(inner_loss: InnerLoss, params: Params, batches: Iterable[InnerBatch]) -> Params:
    """Makes one inner step on each batch, in order. The result has no graph."""
    for batch in batches:
        params = inner_step(inner_loss, params, batch)
    return params
