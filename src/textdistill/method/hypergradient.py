"""Gradient of the outer loss with respect to what the inner loop reads: three estimators, one signature.

With v[T] = grad outer_loss(params[T]) and g_t the inner gradient at step t, going backwards, for parameters p:

    d outer / d lr[t, p] = -<v[t+1], g_t>_p
    d outer / d phi_t    = -D_u (grad_phi    inner_loss)(params[t]),  u = lr[t] * v[t+1], phi_t = (x_t, y_t, a_t)
    v[t]                 = v[t+1] - D_u (grad_params inner_loss)(params[t])

where one learning rate for all parameters has the sum of their derivatives. Every step needs one directional derivative
D_u of a first-order gradient. ``difference`` takes it as a finite
difference, ``forward`` by forward-mode differentiation; ``reverse`` does not use these lines at all but
differentiates the unrolled loop, and is what the tests trust. Source: ours; the first-order trick is the one
of DARTS (Liu et al., 2019, equation 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from textdistill.core.precision import FLOAT32, Precision, matmul_precision
from textdistill.method.inner_loop import InnerBatch, InnerLoss, descend, gradient, inner_step, leaves
from textdistill.method.learner import Params

OuterLoss = Callable[[Params], Tensor]

# Length of the step that ``difference`` takes along u, relative to the norm of the parameters. Shorter ones drown in
# float32's rounding, longer ones in the curvature; docs/performance.md has the cosines to ``reverse``.
EPS = 2.5e-6


class Estimator(StrEnum):
    """How the hypergradient is computed."""

    difference = "difference"
    forward = "forward"
    reverse = "reverse"

    @property
    def exact(self) -> bool:
        """Whether second derivatives of the inner loss are taken, which fused attention does not have."""
        return self is not Estimator.difference


class Trajectory(StrEnum):
    """Where ``difference`` and ``forward`` keep what the forward pass leaves for the backward one.

    A step leaves its parameters and their gradient. ``keep``: both of every step on the device; ``offload``: in main
    memory; ``checkpoint``: the parameters of every sqrt(T)-th step on the device, from which the steps between are
    run again, a further gradient a step. All give the same result, bit for bit.
    """

    keep = "keep"
    offload = "offload"
    checkpoint = "checkpoint"


class Hypergradient(NamedTuple):
    """The outer loss (a scalar without graph), and for each inner step the gradient by part.

    The parts are ``inputs_embeds``, ``labels``, ``attention_labels`` (where there are any) and ``lr``, each of
    the shape it has in that step's batch. Samples used in several steps have one entry in each.
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
        estimator: see the module's text.
        inner_loss: must be exact (``make_inner_loss(exact=True)``) if ``estimator.exact``.
        outer_loss: scalar loss on real data as a function of the fine-tuned parameters.
        params: the learner's initial parameters; not written to.
        batches: one a step, at least one.
        eps: length of the step that ``difference`` takes along u, relative to the norm of the parameters.
        trajectory: see there; ``reverse`` keeps the whole graph whatever it is.
        inner_precision: whether inner steps and their derivatives may use TF32. ``difference`` needs False, because
            the difference would be lost in the rounding. Mixed precision is set in ``inner_loss`` itself.
        outer_precision: the same for ``outer_loss`` and its gradient; the backward pass of ``reverse`` follows
            ``inner_precision`` throughout.

    """
    batches = [_detached(batch) for batch in batches]
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
    """The lines at the top of the module."""
    offload = trajectory is Trajectory.offload
    size = math.isqrt(len(batches) - 1) + 1 if trajectory is Trajectory.checkpoint else len(batches)
    segments = [batches[first : first + size] for first in range(0, len(batches), size)]
    # Forward. Of a segment the parameters before it stay; of the last one, every step.
    starts: list[Params] = []
    for segment in segments:
        starts.append(params)
        steps, params = _run(inner_loss, params, segment, offload)
    with matmul_precision(outer_precision.tf32):
        loss, v = _outer_gradient(outer_loss, params)
    # Backward.
    parts: list[dict[str, Tensor]] = []
    while segments:
        segment, start = segments.pop(), starts.pop()
        if not steps:
            steps, _ = _run(inner_loss, start, segment, offload)
        while steps:
            batch, (params, grads, phi_grads) = segment[len(steps) - 1], steps.pop()
            if offload:
                params, grads = _moved(params, loss.device), _moved(grads, loss.device)
            if estimator is Estimator.difference:
                of_params = bool(steps or segments)
                d_grads, d_phi = _difference(inner_loss, params, batch, v, grads, phi_grads, eps, of_params)
            else:
                d_grads, d_phi = _forward(inner_loss, params, batch, v, grads)
            part = {name: -derivative for name, derivative in d_phi.items()}
            part["lr"] = -_dots(grads, v).sum_to_size(batch.lr.shape)
            parts.append(part)
            v = {name: along - d_grads[name] if name in d_grads else along for name, along in v.items()}
    return Hypergradient(loss, parts[::-1])


# What an inner step leaves for the backward pass: its parameters, and its gradients for them and for x, y and a.
_Step = tuple[Params, dict[str, Tensor], dict[str, Tensor]]


def _run(
    inner_loss: InnerLoss, params: Params, batches: Sequence[InnerBatch], offload: bool
) -> tuple[list[_Step], Params]:
    """Inner steps, and the parameters after them."""
    steps = []
    for batch in batches:
        grads, phi_grads = _inner_gradients(inner_loss, params, batch)
        after = descend(params, grads, batch.lr)
        if offload:
            params, grads = _moved(params, torch.device("cpu")), _moved(grads, torch.device("cpu"))
        steps.append((params, grads, phi_grads))
        params = after
    return steps, params


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _difference(
    inner_loss: InnerLoss,
    params: Params,
    batch: InnerBatch,
    v: Params,
    grads: Mapping[str, Tensor],
    phi_grads: Mapping[str, Tensor],
    eps: float,
    of_params: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """D_u of both first-order gradients by a one-sided difference that re-uses the forward pass's gradients."""
    v = {name: v[name] for name in grads}
    # If u vanishes, so do the differences below; the floors only keep the divisions finite.
    scale = _dots({name: params[name] for name in v}, params).sum().sqrt().clamp_min(1e-12)
    step = eps * scale / (_dots(v, v) * batch.lr**2).sum().sqrt().clamp_min(1e-12)
    shifted_grads, shifted_phi = _inner_gradients(inner_loss, descend(params, v, -step * batch.lr), batch, of_params)
    return (
        {name: (grad - grads[name]) / step for name, grad in shifted_grads.items()},
        {name: (grad - phi_grads[name]) / step for name, grad in shifted_phi.items()},
    )


def _forward(
    inner_loss: InnerLoss, params: Params, batch: InnerBatch, v: Params, grads: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """D_u of both first-order gradients by forward-mode over reverse-mode differentiation."""

    def loss(params: Params, learned: dict[str, Tensor]) -> Tensor:
        return inner_loss(params, batch.replace(learned))

    def first_order(params: Params) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        grads = torch.func.grad(loss, argnums=(0, 1))(params, batch.learned)
        assert isinstance(grads, tuple)
        return grads

    u = {name: v[name] * rate for name, rate in zip(grads, batch.lr.expand(len(grads)), strict=True)}
    direction = {name: u[name] if name in u else torch.zeros_like(p) for name, p in params.items()}
    derivatives: tuple[dict[str, Tensor], dict[str, Tensor]] = torch.func.jvp(first_order, (params,), (direction,))[1]
    return derivatives


def _reverse(
    inner_loss: InnerLoss,
    outer_loss: OuterLoss,
    params: Params,
    batches: Sequence[InnerBatch],
    outer_precision: Precision,
) -> Hypergradient:
    """Plain autograd through the unrolled loop; memory grows with the number of steps."""
    params = leaves(params)
    phi = [leaves({**batch.learned, "lr": batch.lr}) for batch in batches]
    for batch, learned in zip(batches, phi, strict=True):
        params = inner_step(inner_loss, params, batch.replace(learned), create_graph=True)
    with matmul_precision(outer_precision.tf32):
        loss = outer_loss(params)
    flat = {(t, name): tensor for t, learned in enumerate(phi) for name, tensor in learned.items()}
    grads = torch.autograd.grad(loss, list(flat.values()))
    parts: list[dict[str, Tensor]] = [{} for _ in batches]
    for (t, name), grad in zip(flat, grads, strict=True):
        parts[t][name] = grad
    return Hypergradient(loss.detach(), parts)


def _inner_gradients(
    inner_loss: InnerLoss, params: Params, batch: InnerBatch, of_params: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """First-order gradients with respect to the parameters (empty unless asked for), and to x, y and a."""
    params = leaves(params) if of_params else params
    learned = leaves(batch.learned)
    loss = inner_loss(params, batch.replace(learned))
    grads = gradient(loss, {**(params if of_params else {}), **learned})
    phi_grads = {name: grads.pop(name) for name in learned}
    return grads, phi_grads


def _outer_gradient(outer_loss: OuterLoss, params: Params) -> tuple[Tensor, Params]:
    params = leaves(params)
    loss = outer_loss(params)
    grads = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
    return loss.detach(), dict(zip(params, grads, strict=True))


def _detached(batch: InnerBatch) -> InnerBatch:
    tensors = {**batch.learned, "lr": batch.lr}
    return batch.replace({name: tensor.detach() for name, tensor in tensors.items()})


def _dots(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Inner products (P,) of the parameters that ``a`` names."""
    return torch.stack([torch.dot(tensor.flatten(), b[name].flatten()) for name, tensor in a.items()])
