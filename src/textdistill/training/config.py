"""Settings of the outer loop: ``train.*``, and the schedule that follows from them and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from textdistill.core.precision import AUTO, Precision, check_half
from textdistill.distilled.spec import Init
from textdistill.method.hypergradient import Estimator, Trajectory

# The schedulers of transformers that need no settings of their own and no metric at every step.
SCHEDULER_TYPES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
# Default outer learning rate of the embeddings, as a multiple of the standard deviation of the initial embeddings.
EMBEDS_LR_SCALE = {Init.noise: 0.1, Init.real: 0.2}
# Default outer learning rates of the other parts.
DEFAULT_LR = {"attention_labels": 0.05, "labels": 0.01, "lr": 0.01, "lr_scales": 0.05}

POSITIVE_COUNTS = (
    "epoch",
    "max_steps",
    "val_interval",
    "val_steps",
    "n_eval_model",
    "heads_per_step",
    "batches_per_step",
    "checkpoint_interval",
)
RATES = ("lr_inputs_embeds", "lr_attention_labels", "lr_labels", "lr_lr", "lr_lr_scales", "weight_decay")


class InnerPrecision(StrEnum):
    """Precision of the matrix products of inner steps. Parameters and updates are always float32."""

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


class SelectBy(StrEnum):
    """The validation metric that chooses the set among the outer steps. The loss is lowest at best, others highest."""

    loss = "loss"
    accuracy = "accuracy"
    macro_f1 = "macro_f1"
    balanced_accuracy = "balanced_accuracy"
    mcc = "mcc"

    def cost(self, value: float) -> float:
        """Returns the loss as it is, and another metric with its sign turned. A lower cost is better."""
        return value if self is SelectBy.loss else -value


@dataclass
class TrainConfig:
    """The outer loop: ``train.*``."""

    skip_train: bool = False
    inner_loop: int = 1
    # The run ends at the first of the two. None for both selects DEFAULT_STEPS.
    epoch: int | None = None
    max_steps: int | None = None
    # None selects EMBEDS_LR_SCALE times the standard deviation of the initial embeddings.
    lr_inputs_embeds: float | None = None
    # None selects lr_inputs_embeds if that is set, else DEFAULT_LR.
    lr_attention_labels: float | None = None
    lr_labels: float | None = None
    lr_lr: float | None = None
    # The rate of the logarithm of lr_scales. None selects DEFAULT_LR.
    lr_lr_scales: float | None = None
    optimizer_type: OptimizerType = OptimizerType.adamw
    # Rare hypergradients are many times the usual norm. With 0.999 Adam would shorten the next 1,000 steps.
    adam_beta2: float = 0.99
    scheduler_type: str = "linear"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    # Epochs and outer steps between two validations. None for both validates VALIDATIONS times.
    val_interval: int | None = None
    val_steps: int | None = None
    select_by: SelectBy = SelectBy.loss
    log_interval: int = -1
    n_eval_model: int = 3
    save_ckpt_dir: str = "checkpoints"
    # Precision of the outer loss and of validation. bf16 is true, false or auto.
    fp16: bool = False
    bf16: bool | str = AUTO
    tf32: bool = False
    # Precision of the inner steps of distillation.
    inner_precision: InnerPrecision = InnerPrecision.float32
    estimator: Estimator = Estimator.difference
    heads_per_step: int = 1
    # Real batches that an outer step averages over, divided among the processes. None selects one per process.
    batches_per_step: int | None = None
    trajectory: Trajectory = Trajectory.keep
    checkpoint_interval: int = 50
    resume: bool = False

    @property
    def precision(self) -> Precision:
        """Precision of the outer loss and of validation."""
        return Precision.of(fp16=self.fp16, bf16=self.bf16, tf32=self.tf32)

    def check(self) -> None:
        """Raises ValueError for a value out of range or a contradiction."""
        for key in POSITIVE_COUNTS:
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"train.{key} must be at least 1, got {value}")
        if self.log_interval < 1 and self.log_interval != -1:
            raise ValueError(
                "train.log_interval must be at least 1, or -1 for a tenth of an epoch (without train.epoch, a hundredth"
                f" of the run), got {self.log_interval}"
            )
        for key in RATES:
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
        check_half("train", self.fp16, self.bf16)
        if self.inner_precision is not InnerPrecision.float32 and not self.estimator.exact:
            raise ValueError(
                f"train.inner_precision must be float32 with train.estimator={self.estimator}, got"
                f" {self.inner_precision}, whose rounding error exceeds the finite difference (docs/performance.md);"
                " set train.estimator=forward"
            )
