"""The outer loop: move the distilled set so that learners trained on it do well on real data."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import get_scheduler

from textdistill.core.precision import Precision
from textdistill.core.processes import Processes
from textdistill.core.seeding import stream_seed
from textdistill.data.batches import steps_per_epoch, train_batches
from textdistill.data.tokens import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.spec import Init
from textdistill.method.hypergradient import Estimator, Trajectory, hypergradient
from textdistill.method.learner import Learner, Params
from textdistill.method.losses import task_loss
from textdistill.runs.metrics import Tracker
from textdistill.training.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    Interrupted,
    Interrupts,
    RunState,
    save_checkpoint,
)

logger = logging.getLogger(__name__)

# Validations of a run that train.max_steps ends before the first one that train.val_interval asks for.
VALIDATIONS = 5
# The schedules of transformers that need neither settings of their own nor a metric at every step.
SCHEDULER_TYPES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
# Default outer learning rate of the embeddings, in standard deviations of the initial embeddings a step.
EMBEDS_LR_SCALE = {Init.noise: 0.1, Init.real: 0.2}


class InnerPrecision(StrEnum):
    """Of the matrix products of inner steps; parameters and updates are float32 in any case."""

    float32 = "float32"
    tf32 = "tf32"
    bf16 = "bf16"

    @property
    def as_precision(self) -> Precision:
        """The precision of that name."""
        return Precision.of(bf16=self is InnerPrecision.bf16, tf32=self is InnerPrecision.tf32)


class OptimizerType(StrEnum):
    """The outer optimiser; momentum is SGD with momentum 0.9."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"
    momentum = "momentum"

    @property
    def is_adam(self) -> bool:
        """Whether ``train.adam_beta2`` has an effect."""
        return self in (OptimizerType.adamw, OptimizerType.adam)


@dataclass
class TrainConfig:
    """The outer loop: ``train.*``."""

    skip_train: bool = False
    inner_loop: int = 1
    epoch: int = 30
    max_steps: int | None = None
    # None: EMBEDS_LR_SCALE standard deviations of the initial embeddings.
    lr_inputs_embeds: float | None = None
    # None: lr_inputs_embeds where that is given, else the default of DEFAULT_LR.
    lr_attention_labels: float | None = None
    lr_labels: float | None = None
    lr_lr: float | None = None
    # None: the default of DEFAULT_LR, of the logarithm.
    lr_lr_scales: float | None = None
    optimizer_type: OptimizerType = OptimizerType.adamw
    # Of adamw and adam. Rare hypergradients are many times the usual norm: with 0.999 they slow the next 1,000 steps.
    adam_beta2: float = 0.99
    scheduler_type: str = "linear"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    val_interval: int = 1
    val_steps: int | None = None
    log_interval: int = -1
    n_eval_model: int = 3
    save_ckpt_dir: str = "checkpoints"
    # Of the real batch and validation.
    fp16: bool = False
    bf16: bool = False
    tf32: bool = False
    # Of the inner steps, while distilling.
    inner_precision: InnerPrecision = InnerPrecision.float32
    estimator: Estimator = Estimator.difference
    heads_per_step: int = 1
    # Real batches that an outer step averages over, shared out to the processes. None: one a process.
    batches_per_step: int | None = None
    trajectory: Trajectory = Trajectory.keep
    checkpoint_interval: int = 50
    resume: bool = False

    @property
    def precision(self) -> Precision:
        """Precision of the outer loss and of validation."""
        return Precision.of(fp16=self.fp16, bf16=self.bf16, tf32=self.tf32)

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        for key in (
            "epoch",
            "max_steps",
            "val_interval",
            "val_steps",
            "n_eval_model",
            "heads_per_step",
            "batches_per_step",
            "checkpoint_interval",
        ):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"train.{key} must be at least 1, got {value}")
        if self.log_interval < 1 and self.log_interval != -1:
            raise ValueError(
                f"train.log_interval must be at least 1, or -1 for a tenth of an epoch, got {self.log_interval}"
            )
        for key in ("lr_inputs_embeds", "lr_attention_labels", "lr_labels", "lr_lr", "lr_lr_scales", "weight_decay"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"train.{key} must be at least 0 and finite, got {value}")
        if not 0 <= self.adam_beta2 < 1:
            raise ValueError(f"train.adam_beta2 must be at least 0 and below 1, got {self.adam_beta2}")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"train.warmup_ratio must be from 0 to 1, got {self.warmup_ratio}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"train.max_grad_norm must be above 0, or null for no clipping, got {self.max_grad_norm}")
        if self.scheduler_type not in SCHEDULER_TYPES:
            raise ValueError(
                f"train.scheduler_type must be one of {', '.join(SCHEDULER_TYPES)}, got {self.scheduler_type!r}"
            )
        if self.fp16 and self.bf16:
            raise ValueError("train.fp16 and train.bf16 exclude each other, got both true; set one to false")
        if self.inner_precision is not InnerPrecision.float32 and not self.estimator.exact:
            raise ValueError(
                f"train.inner_precision must be float32 with train.estimator={self.estimator}, got"
                f" {self.inner_precision}, in whose rounding the difference is lost (docs/performance.md); set"
                " train.estimator=forward"
            )


DEFAULT_LR = {"attention_labels": 0.05, "labels": 0.01, "lr": 0.01, "lr_scales": 0.05}

# Mean metrics of some fresh learners on validation rows; must have "loss".
Validate = Callable[[DistilledDataset], Mapping[str, float]]


@dataclass(frozen=True)
class Schedule:
    """The outer steps of a run, and what comes after how many of them.

    Attributes:
        batch_size: rows of a real batch.
        batches_per_step: real batches of an outer step, over all processes.
        epoch_steps: outer steps that go once through the training split.
        max_steps: outer steps in all.
        val_interval: outer steps from one validation to the next.
        log_interval: outer steps from one line of metrics to the next.

    """

    batch_size: int
    batches_per_step: int
    epoch_steps: int
    max_steps: int
    val_interval: int
    log_interval: int

    @classmethod
    def of(cls, config: TrainConfig, train: TokenizedSplit, batch_size: int) -> Schedule:
        """The schedule of a configuration on a training split, in batches of ``batch_size`` rows.

        Raises:
            ValueError: an outer step cannot have ``config.batches_per_step`` batches.

        """
        processes = Processes()
        batches_per_step = config.batches_per_step or processes.count
        if batches_per_step % processes.count:
            raise ValueError(
                f"train.batches_per_step must be a multiple of the {processes.count} processes, got {batches_per_step}"
            )
        epoch_batches = steps_per_epoch(train, batch_size)
        epoch_steps = epoch_batches // batches_per_step
        if epoch_steps == 0:
            raise ValueError(
                f"train.batches_per_step must be at most the {epoch_batches} batches of"
                f" data.train_batch_size={batch_size} rows in the training split, got {batches_per_step}"
            )
        max_steps = config.epoch * epoch_steps
        if config.max_steps is not None:
            max_steps = min(max_steps, config.max_steps)
        log_interval = max(1, epoch_steps // 10) if config.log_interval == -1 else config.log_interval
        val_interval = config.val_steps or config.val_interval * epoch_steps
        if config.val_steps is None and val_interval > max_steps:
            val_interval = -(-max_steps // VALIDATIONS)
        return cls(batch_size, batches_per_step, epoch_steps, max_steps, val_interval, log_interval)


@dataclass(frozen=True)
class FitResult:
    """How training went, over all processes that took part.

    Attributes:
        outer_steps: updates made.
        best_step: the step whose set was kept...
        validation: ...and its metrics.
        clipped_steps: updates that ``train.max_grad_norm`` shortened.
        seconds: of training, validation and checkpoints.
        checkpoint_seconds: of checkpoints alone.

    """

    outer_steps: int
    best_step: int
    validation: Mapping[str, float]
    clipped_steps: int
    seconds: float
    checkpoint_seconds: float


def fit(
    distilled: DistilledDataset,
    learner: Learner,
    train: TokenizedSplit,
    schedule: Schedule,
    validate: Validate,
    tracker: Tracker,
    config: TrainConfig,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Trains ``distilled`` in place and leaves it as it was at its lowest validation loss.

    Writes to ``config.save_ckpt_dir``: the state every ``checkpoint_interval`` steps, and the ``last`` and
    ``best`` distilled sets. SIGINT and SIGTERM end the run at its next whole state, which is written first.

    Args:
        distilled: on the learner's device.
        learner: gives a fresh learner for every outer step.
        train: real rows.
        schedule: of ``config`` on ``train``.
        validate: scores the set; selection minimises its ``loss``.
        tracker: told the training loss, learned lr and optimiser rate, and every validation.
        config: see there.
        seed: the run's seed; decides heads and the order of the real rows.
        settings: kept in the checkpoints; a run that goes on from one must have the same.
        checkpoint: the state to go on from; the result is bit for bit that of an uninterrupted run.

    Raises:
        FloatingPointError: the outer loss, the hypergradient or the validation loss is not finite.
        Interrupted: by a signal; the state is in the checkpoint. A second one may come in the middle of a step: the
            checkpoint before then counts.
        OSError: a checkpoint could not be written; the one before is as it was.
        ValueError: ``checkpoint`` is not one of such a run.

    """
    config.check()
    processes, max_steps = Processes(), schedule.max_steps
    folder = Path(config.save_ckpt_dir)
    optimizer = make_optimizer(distilled, config)
    warmup = int(max_steps * config.warmup_ratio)
    scheduler = get_scheduler(config.scheduler_type, optimizer, warmup, max_steps)
    scaler = torch.amp.GradScaler(learner.device.type, enabled=config.fp16)
    state = RunState(distilled, optimizer, scheduler, scaler)
    started, saved_step = time.monotonic(), None
    # Of the outer steps since the last line that this process made.
    step_seconds: list[float] = []

    def keep_set(distilled: DistilledDataset, name: str, outer_steps: int) -> None:
        if processes.main:
            distilled.save_pretrained(folder / name, outer_steps=outer_steps)

    if checkpoint is not None:
        state.restore(checkpoint, folder / CHECKPOINT_FILE)
        saved_step = state.progress.step
        if saved_step > max_steps:
            raise ValueError(f"train.max_steps must be at least {saved_step}, the step reached, got {max_steps}")
        if state.best:
            # The folder may hold a later set, or none: a set is replaced by two renames.
            best = DistilledDataset(state.best, distilled.config, distilled.inner_config, distilled.metadata)
            keep_set(best, "best", state.progress.best_step)
        logger.info("going on from step %d/%d", saved_step, max_steps)
    progress = state.progress
    tracker.rewind(progress.mark)

    def save() -> None:
        nonlocal started, saved_step
        now = time.monotonic()
        progress.seconds += now - started
        started = now
        progress.mark = tracker.mark()
        if processes.main:
            save_checkpoint(folder / CHECKPOINT_FILE, state.checkpoint(), settings or {})
        saved_step = progress.step
        progress.checkpoint_seconds += time.monotonic() - now

    def kept() -> str:
        if saved_step is None:
            return "no checkpoint was written"
        return f"the checkpoint of step {saved_step} is in {folder / CHECKPOINT_FILE}"

    def check_finite(**values: float) -> None:
        if all(map(math.isfinite, values.values())):
            return
        raise FloatingPointError(
            f"{_line(values)} after outer step {progress.step}, learned lr {distilled.lr.tolist()}: must be finite;"
            f" {kept()}; lower train.lr_inputs_embeds or distilled_data.lr_init"
        )

    def keep_if_best(scores: dict[str, float]) -> None:
        check_finite(validation_loss=scores["loss"])
        tracker.log_metrics({f"validation_{name}": value for name, value in scores.items()}, progress.step)
        logger.info("step %d/%d validation: %s", progress.step, max_steps, _line(scores))
        progress.validated = progress.step
        if not progress.best or scores["loss"] < progress.best["loss"]:
            progress.best_step, progress.best = progress.step, scores
            state.best = {name: tensor.detach().clone() for name, tensor in distilled.raw.items()}
            keep_set(distilled, "best", progress.step)

    def log() -> None:
        metrics: dict[str, float | None] = {"train_loss": sum(progress.losses) / len(progress.losses)}
        metrics |= {f"lr.{t}": lr for t, lr in enumerate(distilled.lr.tolist())}
        metrics |= {"optimizer_lr": scheduler.get_last_lr()[0]}
        if config.max_grad_norm is not None:
            metrics["clipped"] = progress.clipped / len(progress.losses)
        clocks = {"step_seconds": fmean(step_seconds), "checkpoint_seconds": progress.checkpoint_seconds}
        tracker.log_metrics({**metrics, **clocks}, progress.step)
        logger.info("step %d/%d: %s", progress.step, max_steps, _line(metrics))
        progress.losses.clear()
        progress.clipped = 0
        step_seconds.clear()

    batches = _real_batches(train, schedule, seed, progress.step)
    bar = tqdm(
        total=max_steps, initial=progress.step, desc="distil", unit="step", dynamic_ncols=True,
        disable=None if processes.main else True,
    )  # fmt: skip
    with Interrupts() as interrupts, bar, logging_redirect_tqdm():
        try:
            while True:
                due = progress.step % schedule.val_interval == 0 or progress.step == max_steps
                if due and progress.validated < progress.step:
                    # Alone in a validation, a process would leave the others waiting.
                    with interrupts.at_once() if processes.count == 1 else nullcontext():
                        scores = dict(validate(distilled))
                    keep_if_best(scores)
                if saved_step != progress.step and (
                    progress.step % config.checkpoint_interval == 0 or progress.step == max_steps
                ):
                    save()
                if progress.step == max_steps:
                    break
                if processes.any(interrupts.noted):
                    interrupts.stop()
                seed_of_step = stream_seed(seed, "outer", progress.step + 1)
                began = time.monotonic()
                loss, accuracy, grad_norm = outer_step(
                    distilled, learner, next(batches), optimizer, scaler, config, seed_of_step
                )
                step_seconds.append(time.monotonic() - began)
                # A float16 gradient that overflows is skipped, until its scale is at its lowest.
                overflow = scaler.get_scale() > 1 and math.isfinite(loss)
                check_finite(outer_loss=loss, hypergradient_norm=0.0 if overflow else grad_norm)
                scheduler.step()
                progress.step += 1
                progress.losses.append(loss)
                if config.max_grad_norm is not None and config.max_grad_norm < grad_norm < math.inf:
                    progress.clipped += 1
                    progress.clipped_steps += 1
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.2f}")
                if progress.step % schedule.log_interval == 0 or progress.step == max_steps:
                    log()
        except Interrupted as error:
            if not error.whole:
                raise Interrupted(error.signum, f"interrupted twice; {kept()}") from error
            save()
            keep_set(distilled, "last", progress.step)
            place = f"at step {progress.step}/{max_steps}; the state is in {folder / CHECKPOINT_FILE}"
            raise Interrupted(error.signum, f"interrupted {place}") from error
    keep_set(distilled, "last", progress.step)
    with torch.no_grad():
        for name, tensor in distilled.raw.items():
            tensor.copy_(state.best[name])
    seconds = progress.seconds + time.monotonic() - started
    return FitResult(
        progress.step, progress.best_step, progress.best, progress.clipped_steps, seconds, progress.checkpoint_seconds
    )


def outer_step(
    distilled: DistilledDataset,
    learner: Learner,
    batches: Sequence[Mapping[str, Tensor]],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    config: TrainConfig,
    seed: int,
) -> tuple[float, float, float]:
    """One update of the distilled set: the mean hypergradient over all processes, their real batches, and heads.

    Where the loss or the hypergradient is not finite, the set stays as it was.

    Args:
        distilled: moved in place.
        learner: gives ``config.heads_per_step`` fresh learners for every batch.
        batches: real ones of this process, at least one; equally many in every process.
        optimizer: moves the set.
        scaler: of float16 gradients.
        config: estimator, number of heads, clipping.
        seed: the step's; learner h of batch i of process r has the head of number (i * processes + r) * heads + h.

    Returns:
        Mean outer loss and accuracy of the fine-tuned learners on their batches, and the norm of the mean
        hypergradient before clipping.

    """
    processes = Processes()
    inner_precision = config.inner_precision.as_precision
    inner_loss = distilled.inner_loss(learner, config.estimator.exact, inner_precision)
    # Loss and accuracy, then the hypergradient by part.
    totals = {"scores": torch.zeros(2, dtype=learner.dtype, device=learner.device)}
    for index, batch in enumerate(batches):
        inputs = {name: tensor.to(learner.device, non_blocking=True) for name, tensor in batch.items()}
        labels = inputs.pop("labels")

        def outer_loss(params: Params, inputs: Mapping[str, Tensor] = inputs, labels: Tensor = labels) -> Tensor:
            logits = learner.logits(params, inputs, config.precision)
            loss = task_loss(logits, labels)
            accuracy = (logits.detach().argmax(-1) == labels).to(learner.dtype).mean()
            totals["scores"] += torch.stack([loss.detach(), accuracy])
            scaled: Tensor = scaler.scale(loss)
            return scaled

        for head in range(config.heads_per_step):
            number = (index * processes.count + processes.rank) * config.heads_per_step + head
            inner_batches = distilled.batches(stream_seed(seed, "inner", number))
            params = learner.fresh_params(stream_seed(seed, "head", number))
            _, grads_by_step = hypergradient(
                config.estimator,
                inner_loss,
                outer_loss,
                params,
                inner_batches,
                trajectory=config.trajectory,
                inner_precision=inner_precision,
                outer_precision=config.precision,
            )
            for name, grad in distilled.pull_back(inner_batches, grads_by_step).items():
                totals[name] = totals[name] + grad if name in totals else grad
    count = len(batches) * processes.count * config.heads_per_step
    scores, *grads = (total / count for total in processes.sum(list(totals.values())))
    moved = [distilled.raw[name] for name in list(totals)[1:]]
    for tensor, grad in zip(moved, grads, strict=True):
        tensor.grad = grad
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(moved, math.inf if config.max_grad_norm is None else config.max_grad_norm)
    # The step's one wait for the device.
    loss, accuracy, grad_norm = torch.cat([scores, norm[None]]).tolist()
    if math.isfinite(loss) and math.isfinite(grad_norm):
        scaler.step(optimizer)
    scaler.update()
    return loss, accuracy, grad_norm


def make_optimizer(distilled: DistilledDataset, config: TrainConfig) -> Optimizer:
    """The outer optimiser, a parameter group for each learned part; weight decay on embeddings and attention only."""
    given = config.lr_inputs_embeds
    scale = distilled.raw["inputs_embeds"].detach().std().item()
    rates = {"inputs_embeds": EMBEDS_LR_SCALE[distilled.config.init] * scale if given is None else given}
    for name, default in DEFAULT_LR.items():
        explicit = getattr(config, f"lr_{name}")
        # The reference has no lr_scales for the rate of the embeddings to be meant for.
        inherited = None if name == "lr_scales" else given
        rates[name] = next(rate for rate in (explicit, inherited, default) if rate is not None)
    groups = [
        {
            "params": [tensor],
            "lr": rates[name],
            "weight_decay": config.weight_decay if name in ("inputs_embeds", "attention_labels") else 0.0,
        }
        for name, tensor in distilled.raw.items()
        if tensor.requires_grad
    ]
    logger.info("outer learning rates: %s", _line({name: rates[name] for name in distilled.raw}))
    if config.optimizer_type.is_adam:
        kind = AdamW if config.optimizer_type is OptimizerType.adamw else Adam
        return kind(groups, betas=(0.9, config.adam_beta2))
    return SGD(groups, momentum=0.9 if config.optimizer_type is OptimizerType.momentum else 0.0)


def _real_batches(
    train: TokenizedSplit, schedule: Schedule, seed: int, start: int
) -> Iterator[list[dict[str, Tensor]]]:
    """Batches of one process for all outer steps after the first ``start``, epoch after epoch."""
    processes, batches_per_step = Processes(), schedule.batches_per_step
    epoch, first = divmod(start, schedule.epoch_steps)
    while True:
        skipped = first * batches_per_step + processes.rank
        own = train_batches(train, schedule.batch_size, seed, epoch, skipped, processes.count)
        for _ in range(first, schedule.epoch_steps):
            yield list(islice(own, batches_per_step // processes.count))
        epoch, first = epoch + 1, 0


def _line(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)
