"""The outer loop: move the distilled set so that learners trained on it do well on real data."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import get_scheduler

from textdistill.distilled import DistilledDataset, Init
from textdistill.hypergradient import Estimator, hypergradient
from textdistill.learner import Learner, Params, autocast
from textdistill.losses import task_loss
from textdistill.seeding import stream_seed
from textdistill.task import TokenizedSplit, steps_per_epoch, train_batches
from textdistill.tracking import Tracker

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


class OptimizerType(StrEnum):
    """The outer optimiser; momentum is SGD with momentum 0.9."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"
    momentum = "momentum"


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
    optimizer_type: OptimizerType = OptimizerType.adamw
    scheduler_type: str = "linear"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    val_interval: int = 1
    val_steps: int | None = None
    log_interval: int = -1
    n_eval_model: int = 5
    save_ckpt_dir: str = "checkpoints"
    fp16: bool = False
    bf16: bool = False
    estimator: Estimator = Estimator.difference
    heads_per_step: int = 1

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        for key in ("epoch", "max_steps", "val_interval", "val_steps", "n_eval_model", "heads_per_step"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"train.{key} must be at least 1, got {value}")
        if self.log_interval < 1 and self.log_interval != -1:
            raise ValueError(
                f"train.log_interval must be at least 1, or -1 for a tenth of an epoch, got {self.log_interval}"
            )
        for key in ("lr_inputs_embeds", "lr_attention_labels", "lr_labels", "lr_lr", "weight_decay"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ValueError(f"train.{key} must be at least 0, got {value}")
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


DEFAULT_LR = {"attention_labels": 0.1, "labels": 0.01, "lr": 0.01}

# Mean metrics of some fresh learners on validation rows; must have "loss".
Validate = Callable[[DistilledDataset], Mapping[str, float]]


@dataclass(frozen=True)
class FitResult:
    """How training went; ``validation`` holds the metrics of the step whose set was kept."""

    outer_steps: int
    best_step: int
    validation: Mapping[str, float]
    seconds: float


def fit(
    distilled: DistilledDataset,
    learner: Learner,
    train: TokenizedSplit,
    batch_size: int,
    validate: Validate,
    tracker: Tracker,
    config: TrainConfig,
    seed: int,
) -> FitResult:
    """Trains ``distilled`` in place and leaves it as it was at its lowest validation loss.

    Writes ``last`` and ``best`` distilled sets to ``config.save_ckpt_dir``.

    Args:
        distilled: on the learner's device.
        learner: gives a fresh learner for every outer step.
        train: real rows.
        batch_size: real rows an outer step.
        validate: scores the set; selection minimises its ``loss``.
        tracker: told the training loss, learned lr and optimiser rate, and every validation.
        config: see there.
        seed: the run's seed; decides heads and the order of the real rows.

    Raises:
        FloatingPointError: the outer or the validation loss is not finite.

    """
    config.check()
    epoch_steps = steps_per_epoch(train, batch_size)
    max_steps = config.epoch * epoch_steps
    if config.max_steps is not None:
        max_steps = min(max_steps, config.max_steps)
    log_interval = max(1, epoch_steps // 10) if config.log_interval == -1 else config.log_interval
    val_interval = config.val_steps or config.val_interval * epoch_steps
    if config.val_steps is None and val_interval > max_steps:
        val_interval = -(-max_steps // VALIDATIONS)
    optimizer = make_optimizer(distilled, config)
    scheduler = get_scheduler(
        config.scheduler_type,
        optimizer,
        num_warmup_steps=int(max_steps * config.warmup_ratio),
        num_training_steps=max_steps,
    )
    scaler = torch.amp.GradScaler(learner.device.type, enabled=config.fp16)
    folder = Path(config.save_ckpt_dir)
    best_step, best, best_raw = 0, dict[str, float](), dict[str, Tensor]()
    started = time.monotonic()

    def check_finite(kind: str, loss: float, step: int) -> None:
        if math.isfinite(loss):
            return
        kept = f"the best set so far (step {best_step}) is in {folder / 'best'}; " if best else ""
        raise FloatingPointError(
            f"the {kind} loss is {loss} at outer step {step}, learned lr {distilled.lr.tolist()}; {kept}"
            "lower train.lr_inputs_embeds or distilled_data.lr_init"
        )

    def keep_if_best(step: int) -> None:
        nonlocal best_step, best, best_raw
        scores = dict(validate(distilled))
        check_finite("validation", scores["loss"], step)
        tracker.log_metrics({f"validation_{name}": value for name, value in scores.items()}, step)
        logger.info("step %d/%d validation: %s", step, max_steps, _line(scores))
        if not best or scores["loss"] < best["loss"]:
            best_step, best = step, scores
            best_raw = {name: tensor.detach().clone() for name, tensor in distilled.raw.items()}
            distilled.save_pretrained(folder / "best", outer_steps=step)

    keep_if_best(0)
    losses: list[float] = []
    step = 0
    progress = tqdm(total=max_steps, desc="distil", unit="step", dynamic_ncols=True, disable=None)
    try:
        with progress, logging_redirect_tqdm():
            for step, batch in enumerate(_real_batches(train, batch_size, seed, max_steps), start=1):
                loss, accuracy = outer_step(
                    distilled, learner, batch, optimizer, scaler, config, stream_seed(seed, "outer", step)
                )
                check_finite("outer", loss, step)
                scheduler.step()
                losses.append(loss)
                progress.update()
                progress.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.2f}")
                if step % log_interval == 0 or step == max_steps:
                    metrics = {"train_loss": sum(losses) / len(losses)}
                    metrics |= {f"lr.{t}": lr for t, lr in enumerate(distilled.lr.tolist())}
                    tracker.log_metrics({**metrics, "optimizer_lr": scheduler.get_last_lr()[0]}, step)
                    logger.info("step %d/%d: %s", step, max_steps, _line(metrics))
                    losses.clear()
                if step % val_interval == 0 or step == max_steps:
                    keep_if_best(step)
    finally:
        # Also after Ctrl-C: distilled_data.pretrained_data_path goes on from this set. A set that a gradient
        # has made NaN cannot be saved; the loss that it gives stops the run.
        if all(tensor.isfinite().all() for tensor in distilled.raw.values()):
            distilled.save_pretrained(folder / "last", outer_steps=step)
    with torch.no_grad():
        for name, tensor in distilled.raw.items():
            tensor.copy_(best_raw[name])
    return FitResult(step, best_step, best, time.monotonic() - started)


def outer_step(
    distilled: DistilledDataset,
    learner: Learner,
    batch: Mapping[str, Tensor],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    config: TrainConfig,
    seed: int,
) -> tuple[float, float]:
    """One update of the distilled set from one real batch and ``config.heads_per_step`` fresh learners.

    Where the loss is not finite, the set stays as it was.

    Returns:
        Mean outer loss and accuracy of the fine-tuned learners on the batch.

    """
    inner_loss = distilled.inner_loss(learner, config.estimator.exact)
    inputs = {name: tensor.to(learner.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels")
    hits = 0.0

    def outer_loss(params: Params) -> Tensor:
        nonlocal hits
        with autocast(learner.device, config.fp16, config.bf16):
            logits = learner(params, inputs).logits
        hits += (logits.detach().argmax(-1) == labels).float().mean().item()
        loss: Tensor = scaler.scale(task_loss(logits.to(learner.dtype), labels))
        return loss

    total_loss = 0.0
    grads: dict[str, Tensor] = {}
    for head in range(config.heads_per_step):
        batches = distilled.batches(stream_seed(seed, "inner", head))
        params = learner.fresh_params(stream_seed(seed, "head", head))
        loss, parts = hypergradient(config.estimator, inner_loss, outer_loss, params, batches)
        total_loss += loss.item() / scaler.get_scale()
        for name, grad in distilled.pull_back(batches, parts).items():
            grads[name] = grads.get(name, 0) + grad / config.heads_per_step
    for name, grad in grads.items():
        distilled.raw[name].grad = grad
    scaler.unscale_(optimizer)
    if config.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_([distilled.raw[name] for name in grads], config.max_grad_norm)
    if math.isfinite(total_loss):
        scaler.step(optimizer)
    scaler.update()
    return total_loss / config.heads_per_step, hits / config.heads_per_step


def make_optimizer(distilled: DistilledDataset, config: TrainConfig) -> Optimizer:
    """The outer optimiser, a parameter group for each learned part; weight decay on embeddings and attention only."""
    given = config.lr_inputs_embeds
    scale = distilled.raw["inputs_embeds"].detach().std().item()
    rates = {"inputs_embeds": EMBEDS_LR_SCALE[distilled.config.init] * scale if given is None else given}
    for name, default in DEFAULT_LR.items():
        explicit = getattr(config, f"lr_{name}")
        rates[name] = explicit if explicit is not None else default if given is None else given
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
    if config.optimizer_type is OptimizerType.adamw:
        return AdamW(groups)
    if config.optimizer_type is OptimizerType.adam:
        return Adam(groups)
    return SGD(groups, momentum=0.9 if config.optimizer_type is OptimizerType.momentum else 0.0)


def _real_batches(train: TokenizedSplit, batch_size: int, seed: int, steps: int) -> Iterator[dict[str, Tensor]]:
    epoch = 0
    while True:
        for batch in train_batches(train, batch_size, seed, epoch):
            yield batch
            if (steps := steps - 1) == 0:
                return
        epoch += 1


def _line(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
