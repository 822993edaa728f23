"""The schedule of a run: outer steps, validations and lines of metrics."""

from __future__ import annotations

from dataclasses import dataclass

from textdistill.core.processes import Processes
from textdistill.data.batches import steps_per_epoch
from textdistill.data.tokenized import TokenizedSplit
from textdistill.training.config import TrainConfig

# Outer steps of a run that states neither steps nor epochs (docs/decisions.md).
DEFAULT_STEPS = 1000
# Number of validations if the run states no interval, or ends before the first regular one.
VALIDATIONS = 10


@dataclass(frozen=True)
class Schedule:
    """How many outer steps a run takes, and when it validates and logs.

    Attributes:
        batch_size: rows of a real batch.
        batches_per_step: real batches of an outer step, over all processes.
        epoch_steps: outer steps of one pass over the training split.
        max_steps: outer steps of the run.
        val_interval: outer steps between two validations.
        log_interval: outer steps between two lines of metrics.

    """

    batch_size: int
    batches_per_step: int
    epoch_steps: int
    max_steps: int
    val_interval: int
    log_interval: int

    @classmethod
    def of(cls, config: TrainConfig, train: TokenizedSplit, batch_size: int, processes: Processes) -> Schedule:
        """The schedule of a configuration on a training split.

        Args:
            config: the number of epochs or steps, and the intervals.
            train: the training split.
            batch_size: rows of a real batch.
            processes: the processes that share the batches of an outer step.

        Raises:
            ValueError: ``config.batches_per_step`` exceeds an epoch or cannot be divided among the processes.

        """
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
        ends = [config.max_steps, config.epoch and config.epoch * epoch_steps]
        max_steps = min([end for end in ends if end is not None], default=DEFAULT_STEPS)
        log_interval = config.log_interval
        if log_interval == -1:
            log_interval = max(1, max_steps // 100 if config.epoch is None else epoch_steps // 10)
        val_interval = config.val_steps or (config.val_interval or 0) * epoch_steps
        if config.val_steps is None and not 0 < val_interval <= max_steps:
            val_interval = -(-max_steps // VALIDATIONS)
        return cls(batch_size, batches_per_step, epoch_steps, max_steps, val_interval, log_interval)
