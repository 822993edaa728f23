"""The hypergradient: the gradient of the outer loss with respect to the batches of the inner loop.

The inner loop makes T gradient steps from ``params[0]`` to ``params[T]``. Step t reads the distilled samples
phi_t = (x_t, y_t, a_t), that is embeddings, labels and attention labels, and the learning rates lr[t, p] of the
parameters p. Let g_t be its gradient of the inner loss with respect to the parameters. Let v[t] be the gradient of the
outer loss with respect to ``params[t]``. Going backwards from v[T]:

    d outer / d lr[t, p] = -<v[t+1], g_t>_p
    d outer / d phi_t    = -D_u (grad_phi    inner_loss)(params[t]),  u = lr[t] * v[t+1]
    v[t]                 = v[t+1] - D_u (grad_params inner_loss)(params[t])

D_u is the derivative in the direction u. If all parameters share one learning rate, its derivative is the sum over p.

There are three estimators. ``difference`` takes D_u as a finite difference, which needs first-order gradients only.
``forward`` takes D_u by forward-mode differentiation and is exact. ``reverse`` does not use these equations: it
differentiates through the unrolled inner loop. It is exact as well, and the tests compare the others with it.

Source: ours. The finite difference is that of DARTS (Liu et al., 2019, equation 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from textdistill.core.precision import FLOAT32, Precision, matmul_precision
from textdistill.method.inner_loop import InnerBatch, InnerLoss, add, descend, gradient, inner_step, leaves

if TYPE_CHECKING:
    from textdistill.method.learner import Params

# A scalar loss on real data as a function of the fine-tuned parameters.
OuterLoss: TypeAlias = "Callable[[Params], Tensor]"

# Length of the step along u in ``difference``, relative to the norm of the parameters. The rounding of float32 spoils
# shorter steps, and curvature spoils longer ones. docs/performance.md compares the results with ``reverse``.
EPS = 2.5e-6


class Estimator(StrEnum):
    """The algorithm that computes the hypergradient.

    ``difference``: finite differences of first-order gradients. ``forward``: forward-mode over reverse-mode
    differentiation, exact. ``reverse``: autograd through the unrolled inner loop, exact; its memory grows with T.
    """

    difference = "difference"
    forward = "forward"
    reverse = "reverse"

    @property
    def exact(self) -> bool:
        """Whether it takes second derivatives of the inner loss, which fused attention does not have."""
        return self is not Estimator.difference


class Trajectory(StrEnum):
    """How ``difference`` and ``forward`` store the inner loop for the backward pass.

    The backward pass reads the parameters before each inner step, and the gradient of that step. All three choices
    give the same result bit for bit, and differ in memory and time:

    ``keep`` stores both for all T steps on the device. ``offload`` stores them in main memory and copies them back one
    step at a time. ``checkpoint`` stores the parameters of about sqrt(T) steps on the device and runs the steps in
    between a second time, which costs one more gradient for each of these steps.
    """

    keep = "keep"
    offload = "offload"
    checkpoint = "checkpoint"


class Hypergradient(NamedTuple):
    """The result of ``hypergradient``.

    Attributes:
        outer_loss: a scalar without a graph.
        grads: for each inner step the gradient by name: ``inputs_embeds``, ``labels``, ``attention_labels`` if the
            batch has them, and ``lr``. Each has the shape of that tensor in the batch of the step. Samples that
            several steps use have a gradient in each.

    """

    outer_loss: Tensor
    grads: list[dict[str, Tensor]]


def hypergradient(
    estimator: Estimator,
    inner_loss: InnerLoss,
    outer_loss: OuterLoss,
    params: Params,
    batches: Sequence[InnerBatch],
    eps: float = EPS,
    trajectory: Trajectory = Trajectory.keep,
    inner_precision: Precision = FLOAT32,
    outer_precision: Precision = FLOAT32,
) -> Hypergradient:
    """Fine-tunes ``params`` on ``batches`` and differentiates the outer loss of the result.

    Args:
        estimator: the algorithm.
        inner_loss: as ``make_inner_loss`` builds it, with ``exact=True`` if ``estimator.exact``.
        outer_loss: a scalar loss on real data.
        params: the initial parameters of the learner; not written to.
        batches: one batch for each inner step, at least one.
        eps: the length of the step along u in ``difference``, relative to the norm of the parameters; above 0.
        trajectory: how the inner loop is stored. ``reverse`` keeps its whole graph in any case.
        inner_precision: whether inner steps and their derivatives may use TF32. ``difference`` must not, because the
            rounding of TF32 exceeds the difference. Autocast is the business of ``inner_loss``.
        outer_precision: whether ``outer_loss`` and its gradient may use TF32. The backward pass of ``reverse``
            follows ``inner_precision`` throughout. Autocast is the business of ``outer_loss``.

    """
    batches = [_detach(batch) for batch in batches]
    with matmul_precision(inner_precision.tf32):
        if estimator is Estimator.reverse:
            return _reverse(inner_loss, outer_loss, params, batches, outer_precision)
        return _manual_backward(estimator, inner_loss, outer_loss, params, batches, eps, trajectory, outer_precision)


def _manual_backward(
    estimator: Estimator,
    inner_loss: InnerLoss,
    outer_loss: OuterLoss,
    params: Params,
    batches: Sequence[InnerBatch],
    eps: float,
    trajectory: Trajectory,
    outer_precision: Precision,
) -> Hypergradient:
    """Evaluates the equations in the docstring of the module."""
    offload = trajectory is Trajectory.offload
    size = math.isqrt(len(batches) - 1) + 1 if trajectory is Trajectory.checkpoint else len(batches)
    segments = [batches[first : first + size] for first in range(0, len(batches), size)]
    # Forward: store the parameters at the start of each segment, and all steps of the last segment.
    starts: list[Params] = []
    for segment in segments:
        starts.append(params)
        steps, params = _run_segment(inner_loss, params, segment, offload)
    with matmul_precision(outer_precision.tf32):
        loss, v = _outer_gradient(outer_loss, params)
    # Backward: run earlier segments again, because only their starts are stored.
    backward_grads: list[dict[str, Tensor]] = []
    while segments:
        segment, start = segments.pop(), starts.pop()
        if not steps:
            steps, _ = _run_segment(inner_loss, start, segment, offload)
        while steps:
            batch, (params, grads, phi_grads) = segment[len(steps) - 1], steps.pop()
            if offload:
                params, grads = _move(params, loss.device), _move(grads, loss.device)
            if estimator is Estimator.difference:
                is_first_step = not (steps or segments)
                d_grads, d_phi = _difference(
                    inner_loss, params, batch, v, grads, phi_grads, eps, needs_params=not is_first_step
                )
            else:
                d_grads, d_phi = _forward(inner_loss, params, batch, v, grads)
            step_grads = {name: -derivative for name, derivative in d_phi.items()}
            step_grads["lr"] = -_inner_products(grads, v).sum_to_size(batch.lr.shape)
            backward_grads.append(step_grads)
            v = {name: v_p - d_grads[name] if name in d_grads else v_p for name, v_p in v.items()}
    return Hypergradient(loss, backward_grads[::-1])


class _Step(NamedTuple):
    """What the backward pass reads of an inner step."""

    params: Params  # before the step
    grads: dict[str, Tensor]  # of the inner loss with respect to the parameters
    phi_grads: dict[str, Tensor]  # of the inner loss with respect to embeddings, labels and attention labels


def _run_segment(
    inner_loss: InnerLoss, params: Params, batches: Sequence[InnerBatch], offload: bool
) -> tuple[list[_Step], Params]:
    """Makes inner steps, and returns them with the parameters after the last."""
    steps = []
    for batch in batches:
        grads, phi_grads = _inner_gradients(inner_loss, params, batch)
        next_params = descend(params, grads, batch.lr)
        if offload:
            params, grads = _move(params, torch.device("cpu")), _move(grads, torch.device("cpu"))
        steps.append(_Step(params, grads, phi_grads))
        params = next_params
    return steps, params


def _move(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _difference(
    inner_loss: InnerLoss,
    params: Params,
    batch: InnerBatch,
    v: Params,
    grads: Mapping[str, Tensor],
    phi_grads: Mapping[str, Tensor],
    eps: float,
    needs_params: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Takes D_u of both gradients by a one-sided difference, which uses the stored gradients of the inner step."""
    v = {name: v[name] for name in grads}
    # The floors prevent a division by zero. If u vanishes, so do the differences.
    scale = _inner_products({name: params[name] for name in v}, params).sum().sqrt().clamp_min(1e-12)
    step = eps * scale / (_inner_products(v, v) * batch.lr**2).sum().sqrt().clamp_min(1e-12)
    shifted_params = descend(params, v, -step * batch.lr)
    shifted_grads, shifted_phi_grads = _inner_gradients(inner_loss, shifted_params, batch, needs_params)
    return (
        {name: (grad - grads[name]) / step for name, grad in shifted_grads.items()},
        {name: (grad - phi_grads[name]) / step for name, grad in shifted_phi_grads.items()},
    )


def _forward(
    inner_loss: InnerLoss, params: Params, batch: InnerBatch, v: Params, grads: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Takes D_u of both gradients by forward-mode over reverse-mode differentiation."""
    u = {name: v[name] * rate for name, rate in zip(grads, batch.lr.expand(len(grads)), strict=True)}
    direction = {name: u[name] if name in u else torch.zeros_like(p) for name, p in params.items()}

    def derivatives(share: float, batch: InnerBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        def loss(params: Params, learned: dict[str, Tensor]) -> Tensor:
            return share * inner_loss(params, batch.replace(learned))

        def first_order(params: Params) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            grads = torch.func.grad(loss, argnums=(0, 1))(params, batch.learned)
            assert isinstance(grads, tuple)
            return grads

        result: tuple[dict[str, Tensor], dict[str, Tensor]]
        result = torch.func.jvp(first_order, (params,), (direction,))[1]
        return result

    return _over_micro_batches(derivatives, batch)


def _reverse(
    inner_loss: InnerLoss,
    outer_loss: OuterLoss,
    params: Params,
    batches: Sequence[InnerBatch],
    outer_precision: Precision,
) -> Hypergradient:
    """Differentiates through the unrolled inner loop with autograd; memory grows with the number of steps."""
    params = leaves(params)
    phi = [leaves({**batch.learned, "lr": batch.lr}) for batch in batches]
    for batch, learned in zip(batches, phi, strict=True):
        params = inner_step(inner_loss, params, batch.replace(learned), create_graph=True)
    with matmul_precision(outer_precision.tf32):
        loss = outer_loss(params)
    flat = {(t, name): tensor for t, learned in enumerate(phi) for name, tensor in learned.items()}
    flat_grads = torch.autograd.grad(loss, list(flat.values()))
    grads: list[dict[str, Tensor]] = [{} for _ in batches]
    for (t, name), grad in zip(flat, flat_grads, strict=True):
        grads[t][name] = grad
    return Hypergradient(loss.detach(), grads)


def _inner_gradients(
    inner_loss: InnerLoss, params: Params, batch: InnerBatch, needs_params: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the gradients of the inner loss with respect to parameters and learned tensors.

    Without ``needs_params`` the gradients with respect to the parameters are left out.
    """
    params = leaves(params) if needs_params else params

    def gradients(share: float, batch: InnerBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        learned = leaves(batch.learned)
        loss = share * inner_loss(params, batch.replace(learned))
        grads = gradient(loss, {**(params if needs_params else {}), **learned})
        phi_grads = {name: grads.pop(name) for name in learned}
        return grads, phi_grads

    return _over_micro_batches(gradients, batch)


def _over_micro_batches(
    derivatives: Callable[[float, InnerBatch], tuple[dict[str, Tensor], dict[str, Tensor]]], batch: InnerBatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adds up the derivatives of micro-batches for the parameters, and joins those for the samples."""
    total: dict[str, Tensor] = {}
    samples: list[dict[str, Tensor]] = []
    for share, micro_batch in batch.micro_batches():
        of_params, of_samples = derivatives(share, micro_batch)
        total = add(total, of_params)
        samples.append(of_samples)
        del of_params  # it would stay in memory while the next micro-batch is computed
    if len(samples) == 1:
        return total, samples[0]
    return total, {name: torch.cat([part[name] for part in samples]) for name in samples[0]}


def _outer_gradient(outer_loss: OuterLoss, params: Params) -> tuple[Tensor, Params]:
    """Returns the outer loss and its gradient with respect to the parameters, v[T]."""
    params = leaves(params)
    loss = outer_loss(params)
    grads = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
    return loss.detach(), dict(zip(params, grads, strict=True))


def _detach(batch: InnerBatch) -> InnerBatch:
    tensors = {**batch.learned, "lr": batch.lr}
    return batch.replace({name: tensor.detach() for name, tensor in tensors.items()})


def _inner_products(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Returns the inner product of ``a`` and ``b`` for each parameter in ``a``, (P,)."""
    return torch.stack([torch.dot(tensor.flatten(), b[name].flatten()) for name, tensor in a.items()])
