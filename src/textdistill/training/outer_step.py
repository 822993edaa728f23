"""One update of the distilled set: real batches, hypergradients of fresh learners, and the outer optimiser."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from textdistill.core.processes import Processes
from textdistill.core.seeding import stream_seed
from textdistill.data.batches import train_batches
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.method.hypergradient import hypergradient
from textdistill.method.learner import Learner, Params
from textdistill.method.losses import task_loss
from textdistill.training.config import DEFAULT_LR, EMBEDS_LR_SCALE, OptimizerType, TrainConfig
from textdistill.training.schedule import Schedule

logger = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """What an outer step measured.

    Attributes:
        loss: mean outer loss of the fine-tuned learners on their real batches.
        accuracy: their mean accuracy on these batches.
        grad_norm: norm of the mean hypergradient before clipping.

    """

    loss: float
    accuracy: float
    grad_norm: float


class OuterStep:
    """Updates a distilled set by the mean hypergradient over processes, real batches and heads.

    Args:
        distilled: the set, on the learner's device; updated in place.
        learner: gives ``config.heads_per_step`` fresh learners for every batch.
        config: estimator, number of heads, optimiser and clipping.
        seed: the run's seed.
        processes: the processes that each take their share of the batches.

    Attributes:
        optimizer: the outer optimiser.
        scaler: scales float16 gradients; does nothing in other precisions.

    """

    def __init__(
        self, distilled: DistilledDataset, learner: Learner, config: TrainConfig, seed: int, processes: Processes
    ) -> None:
        self.distilled, self.learner, self.config = distilled, learner, config
        self.seed, self.processes = seed, processes
        self.optimizer = make_optimizer(distilled, config)
        self.scaler = torch.amp.GradScaler(learner.device.type, enabled=config.fp16)

    def __call__(self, batches: Sequence[Mapping[str, Tensor]], step: int) -> StepResult:
        """Takes outer step number ``step``, counted from 1.

        The set stays as it was if the loss or the hypergradient is not finite.

        Args:
            batches: the real batches of this process, at least one, and equally many in every process.
            step: decides the heads and the order of the distilled samples.

        """
        seed = stream_seed(self.seed, "outer", step)
        scores, grads = self._mean_gradient(batches, seed)
        tensors = [self.distilled.raw[name] for name in grads]
        for tensor, grad in zip(tensors, grads.values(), strict=True):
            tensor.grad = grad
        self.scaler.unscale_(self.optimizer)
        max_norm = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        # One transfer for all three numbers: the process waits for the device only once per step.
        result = StepResult(*torch.cat([scores, norm[None]]).tolist())
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()  # frees the gradients, which are as large as the set
        return result

    def _mean_gradient(self, batches: Sequence[Mapping[str, Tensor]], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss and accuracy, shape (2,), and the mean hypergradient by part, over all processes."""
        processes, heads = self.processes, self.config.heads_per_step
        totals = {"scores": torch.zeros(2, dtype=self.learner.dtype, device=self.learner.device)}
        for index, batch in enumerate(batches):
            inputs = {name: tensor.to(self.learner.device, non_blocking=True) for name, tensor in batch.items()}
            for head in range(heads):
                # A head's number does not depend on how many processes share the batches.
                number = (index * processes.count + processes.rank) * heads + head
                for name, value in self._gradient(inputs, seed, number).items():
                    totals[name] = totals[name] + value if name in totals else value
        count = len(batches) * processes.count * heads
        scores, *grads = (total / count for total in processes.sum(list(totals.values())))
        return scores, dict(zip(list(totals)[1:], grads, strict=True))

    def _gradient(self, batch: Mapping[str, Tensor], seed: int, number: int) -> dict[str, Tensor]:
        """``scores`` (loss, accuracy) and the hypergradient by part, of one fresh learner on one real batch."""
        config, learner = self.config, self.learner
        inputs = dict(batch)
        labels = inputs.pop("labels")
        scores = torch.zeros(2, dtype=learner.dtype, device=learner.device)

        def outer_loss(params: Params) -> Tensor:
            logits = learner.logits(params, inputs, config.precision)
            loss = task_loss(logits, labels)
            accuracy = (logits.detach().argmax(-1) == labels).to(learner.dtype).mean()
            scores.copy_(torch.stack([loss.detach(), accuracy]))
            scaled: Tensor = self.scaler.scale(loss)
            return scaled

        inner_precision = config.inner_precision.as_precision
        inner_batches = self.distilled.batches(stream_seed(seed, "inner", number))
        _, grads_by_step = hypergradient(
            config.estimator,
            self.distilled.inner_loss(learner, config.estimator.exact, inner_precision),
            outer_loss,
            learner.fresh_params(stream_seed(seed, "head", number)),
            inner_batches,
            trajectory=config.trajectory,
            inner_precision=inner_precision,
            outer_precision=config.precision,
        )
        return {"scores": scores, **self.distilled.pull_back(inner_batches, grads_by_step)}


def make_optimizer(distilled: DistilledDataset, config: TrainConfig) -> Optimizer:
    """The outer optimiser, with one parameter group for each learned part of the set.

    Weight decay applies to embeddings and attention labels only.
    """
    rates = _learning_rates(distilled, config)
    logger.info("outer learning rates: %s", ", ".join(f"{name} {rates[name]:.4g}" for name in distilled.raw))
    groups = [
        {
            "params": [tensor],
            "lr": rates[name],
            "weight_decay": config.weight_decay if name in ("inputs_embeds", "attention_labels") else 0.0,
        }
        for name, tensor in distilled.raw.items()
        if tensor.requires_grad
    ]
    if config.optimizer_type.is_adam:
        kind = AdamW if config.optimizer_type is OptimizerType.adamw else Adam
        return kind(groups, betas=(0.9, config.adam_beta2))
    return SGD(groups, momentum=0.9 if config.optimizer_type is OptimizerType.momentum else 0.0)


def _learning_rates(distilled: DistilledDataset, config: TrainConfig) -> dict[str, float]:
    """The outer learning rate of each part: the part's own if set, else that of the embeddings, else the default."""
    embeds_lr = config.lr_inputs_embeds
    std = distilled.raw["inputs_embeds"].detach().std().item()
    rates = {"inputs_embeds": EMBEDS_LR_SCALE[distilled.config.init] * std if embeds_lr is None else embeds_lr}
    for name, default in DEFAULT_LR.items():
        explicit = getattr(config, f"lr_{name}")
        # lr_scales does not inherit lr_inputs_embeds: the reference has no such parameter.
        inherited = None if name == "lr_scales" else embeds_lr
        rates[name] = next(rate for rate in (explicit, inherited, default) if rate is not None)
    return rates


@dataclass(frozen=True)
class RealBatches:
    """The real batches that one process takes, a function of the seed and the outer step.

    Attributes:
        split: the training split.
        schedule: how many rows a batch has, and how many batches a step.
        seed: decides the order of the rows.
        processes: the processes that the batches are divided among.

    """

    split: TokenizedSplit
    schedule: Schedule
    seed: int
    processes: Processes

    def after(self, step: int) -> Iterator[list[dict[str, Tensor]]]:
        """Yields the batches of every outer step after the first ``step``, epoch after epoch, without end."""
        processes, schedule = self.processes, self.schedule
        epoch, first = divmod(step, schedule.epoch_steps)
        while True:
            skipped = first * schedule.batches_per_step + processes.rank
            batches = train_batches(self.split, schedule.batch_size, self.seed, epoch, skipped, processes.count)
            for _ in range(first, schedule.epoch_steps):
                yield list(islice(batches, schedule.batches_per_step // processes.count))
            epoch, first = epoch + 1, 0
