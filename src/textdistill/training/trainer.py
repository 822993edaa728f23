"""The outer loop: updates the distilled set until learners trained on it do well on real data."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import NoReturn

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import get_scheduler

from textdistill.distilled.dataset import DistilledDataset
from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import Tracker
from textdistill.runs.results import TrainingSummary
from textdistill.training.checkpoint import Checkpoint, CheckpointFile, RunState
from textdistill.training.forecast import Forecast, duration
from textdistill.training.interrupts import Interrupted, Interrupts
from textdistill.training.outer_step import OuterStep, RealBatches, StepResult

logger = logging.getLogger(__name__)

# Gives the mean metrics of fresh learners on validation rows, ``loss`` among them.
Validation = Callable[[DistilledDataset], Mapping[str, float]]
# Receives the outer step and the metrics of every validation; may raise StopTraining.
Callback = Callable[[int, Mapping[str, float]], None]


class StopTraining(Exception):
    """A callback raises this error to end the training before its last step."""


class Trainer:
    """Trains a distilled set in place and leaves it as it was at its best validation; see ``SelectBy``.

    Args:
        outer_step: updates the set.
        batches: the real batches, and the schedule of the run.
        validation: scores the set. The metric ``train.select_by`` chooses the set that is kept.
        folder: receives the distilled sets ``best`` and ``last``.
        checkpoint_file: receives the state every ``train.checkpoint_interval`` steps.
        tracker: records training metrics and validations.
        callback: called after every validation.
        final_validations: the work of the score that follows the training, as a multiple of a validation.

    """

    def __init__(
        self,
        outer_step: OuterStep,
        batches: RealBatches,
        validation: Validation,
        folder: RunFolder,
        checkpoint_file: CheckpointFile,
        tracker: Tracker,
        callback: Callback | None = None,
        final_validations: float = 0.0,
    ) -> None:
        self.outer_step, self.batches, self.validation = outer_step, batches, validation
        self.folder, self.checkpoint_file, self.tracker, self.callback = folder, checkpoint_file, tracker, callback
        self.config, self.processes, self.schedule = outer_step.config, outer_step.processes, batches.schedule
        self.config.check()
        max_steps, optimizer = self.schedule.max_steps, outer_step.optimizer
        warmup_steps = int(max_steps * self.config.warmup_ratio)
        scheduler = get_scheduler(self.config.scheduler_type, optimizer, warmup_steps, max_steps)
        self.state = RunState(outer_step.distilled, optimizer, scheduler, outer_step.scaler)
        self._forecast = Forecast(self.schedule, final_validations)
        self._forecast_logged = False
        # The step of the checkpoint on the disk.
        self._saved_step: int | None = None
        # When this process began the interval that ``Progress.seconds`` does not include yet.
        self._started = 0.0
        # Durations of the outer steps that this process took since the last line of metrics.
        self._step_seconds: list[float] = []

    def train(self, checkpoint: Checkpoint | None = None) -> TrainingSummary:
        """Trains until the last step of the schedule.

        SIGINT and SIGTERM end the run after the present outer step, or at once during a validation; the state is
        saved first.

        Args:
            checkpoint: the state to go on from; the result is bit for bit that of an uninterrupted run.

        Raises:
            FloatingPointError: the outer loss, the hypergradient or the validation loss is not finite.
            Interrupted: a signal came, and the checkpoint holds the state. After a second signal in the middle of a
                step it holds an earlier state.
            OSError: a checkpoint could not be written; the earlier one is unchanged.
            StopTraining: the callback raised it.
            ValueError: ``checkpoint`` does not fit the run.

        """
        self._started = time.monotonic()
        self._load(checkpoint)
        progress, max_steps = self.state.progress, self.schedule.max_steps
        batches = self.batches.after(progress.step)
        with Interrupts() as interrupts, self._progress_bar() as bar, logging_redirect_tqdm():
            try:
                while True:
                    if self._validation_is_due():
                        self._validate(interrupts)
                    if self._checkpoint_is_due():
                        self._save()
                    if progress.step == max_steps:
                        break
                    if self.processes.any(interrupts.noted):
                        interrupts.stop()
                    result = self._step(next(batches))
                    self._show(bar, result)
                    if progress.step % self.schedule.log_interval == 0 or progress.step == max_steps:
                        self._log()
            except Interrupted as error:
                raise self._saved_interruption(error) from error
        return self._finish()

    def _load(self, checkpoint: Checkpoint | None) -> None:
        """Goes back to the state of a checkpoint, if there is one, and to its position in the tracker's record."""
        state, max_steps = self.state, self.schedule.max_steps
        if checkpoint is not None:
            state.restore(checkpoint, self.checkpoint_file.path)
            step = self._saved_step = state.progress.step
            if step > max_steps:
                raise ValueError(f"train.max_steps must be at least {step}, the step reached, got {max_steps}")
            if state.best:
                # The folder may hold the set of a later step, or none if the process died between two renames.
                distilled = state.distilled
                best = DistilledDataset(state.best, distilled.config, distilled.inner_config, distilled.metadata)
                self._save_set(best, self.folder.best, state.progress.best_step)
            logger.info("going on from step %d/%d", step, max_steps)
        self.tracker.rewind(state.progress.mark)

    def _validation_is_due(self) -> bool:
        step = self.state.progress.step
        is_regular = step % self.schedule.val_interval == 0
        return (is_regular or step == self.schedule.max_steps) and self.state.progress.validated < step

    def _validate(self, interrupts: Interrupts) -> None:
        """Scores the set, and keeps it if it is better than all earlier ones."""
        state, progress, distilled = self.state, self.state.progress, self.state.distilled
        # With several processes, one that left a validation at once would leave the others waiting for it.
        with interrupts.at_once() if self.processes.count == 1 else nullcontext():
            began = time.monotonic()
            metrics = dict(self.validation(distilled))
            self._forecast.validation_took(time.monotonic() - began)
        self._check_finite(validation_loss=metrics["loss"])
        self.tracker.log_metrics({f"validation_{name}": value for name, value in metrics.items()}, progress.step)
        if self.callback is not None:
            self.callback(progress.step, metrics)
        means = {name: value for name, value in metrics.items() if not name.endswith("_std")}
        left = self._forecast.seconds_left(progress.step)
        remaining = "" if left is None else f"; about {duration(left)} left"
        logger.info("step %d/%d validation: %s%s", progress.step, self.schedule.max_steps, _listed(means), remaining)
        progress.validated = progress.step
        if not progress.best or self._cost(metrics) < self._cost(progress.best):
            progress.best_step, progress.best = progress.step, metrics
            state.best = {name: tensor.detach().clone() for name, tensor in distilled.raw.items()}
            self._save_set(distilled, self.folder.best, progress.step)

    def _cost(self, metrics: Mapping[str, float]) -> float:
        return self.config.select_by.cost(metrics[self.config.select_by])

    def _checkpoint_is_due(self) -> bool:
        step = self.state.progress.step
        is_regular = step % self.config.checkpoint_interval == 0
        return (is_regular or step == self.schedule.max_steps) and self._saved_step != step

    def _save(self) -> None:
        """Writes the state to the checkpoint file, in process 0."""
        progress, now = self.state.progress, time.monotonic()
        progress.seconds += now - self._started
        self._started = now
        progress.mark = self.tracker.mark()
        if self.processes.main:
            self.checkpoint_file.save(self.state.checkpoint())
        self._saved_step = progress.step
        progress.checkpoint_seconds += time.monotonic() - now

    def _step(self, batches: list[dict[str, torch.Tensor]]) -> StepResult:
        """Takes an outer step and counts it."""
        progress, max_norm = self.state.progress, self.config.max_grad_norm
        began = time.monotonic()
        result = self.outer_step(batches, progress.step + 1)
        seconds = time.monotonic() - began
        self._step_seconds.append(seconds)
        self._forecast.step_took(seconds)
        # An infinite float16 gradient leaves the set as it was and lowers the scale. At scale 1 it is an error.
        overflow = self.state.scaler.get_scale() > 1 and math.isfinite(result.loss)
        self._check_finite(outer_loss=result.loss, hypergradient_norm=0.0 if overflow else result.grad_norm)
        self.state.scheduler.step()
        progress.step += 1
        progress.losses.append(result.loss)
        if max_norm is not None and max_norm < result.grad_norm < math.inf:
            progress.clipped += 1
            progress.clipped_steps += 1
        return result

    def _show(self, bar: tqdm[NoReturn], result: StepResult) -> None:
        """Moves the progress bar by a step, and says once in the log what the run will take."""
        values = f"loss {result.loss:.3f}, accuracy {result.accuracy:.2f}"
        left = self._forecast.seconds_left(self.state.progress.step)
        if left is not None:
            values = f"{duration(left)} left, {values}"
            if not self._forecast_logged:
                memory = self.processes.peak_memory_bytes / 1e9
                logger.info("the run takes about %s more; peak memory %.1f GB", duration(left), memory)
                self._forecast_logged = True
        bar.set_postfix_str(values, refresh=False)
        bar.update()

    def _log(self) -> None:
        """Records the mean metrics of the steps since the last record."""
        progress = self.state.progress
        metrics: dict[str, float | None] = {"train_loss": sum(progress.losses) / len(progress.losses)}
        metrics |= {f"lr.{t}": lr for t, lr in enumerate(self.state.distilled.lr.tolist())}
        metrics |= {"optimizer_lr": float(self.state.scheduler.get_last_lr()[0])}
        if self.config.max_grad_norm is not None:
            metrics["clipped"] = progress.clipped / len(progress.losses)
        clocks = {"step_seconds": fmean(self._step_seconds), "checkpoint_seconds": progress.checkpoint_seconds}
        self.tracker.log_metrics({**metrics, **clocks}, progress.step)
        logger.info("step %d/%d: %s", progress.step, self.schedule.max_steps, _listed(metrics))
        progress.losses.clear()
        progress.clipped = 0
        self._step_seconds.clear()

    def _finish(self) -> TrainingSummary:
        """Saves the last set and goes back to the best one."""
        progress, distilled = self.state.progress, self.state.distilled
        self._save_set(distilled, self.folder.last, progress.step)
        with torch.no_grad():
            for name, tensor in distilled.raw.items():
                tensor.copy_(self.state.best[name])
        return TrainingSummary(
            outer_steps=progress.step,
            training_seconds=progress.seconds + time.monotonic() - self._started,
            best_step=progress.best_step,
            validation=progress.best,
            clipped_steps=progress.clipped_steps,
            checkpoint_seconds=progress.checkpoint_seconds,
            outer_precision=self.config.precision.name,
        )

    def _saved_interruption(self, error: Interrupted) -> Interrupted:
        """Saves the state if it is complete, and returns the error that tells the user where the run stands."""
        if not error.whole:
            return Interrupted(error.signum, f"interrupted twice; {self._saved_state()}")
        self._save()
        step = self.state.progress.step
        self._save_set(self.state.distilled, self.folder.last, step)
        reached = f"at step {step}/{self.schedule.max_steps}"
        return Interrupted(error.signum, f"interrupted {reached}; the state is in {self.checkpoint_file.path}")

    def _save_set(self, distilled: DistilledDataset, path: Path, outer_steps: int) -> None:
        if self.processes.main:
            distilled.save_pretrained(path, outer_steps=outer_steps)

    def _saved_state(self) -> str:
        if self._saved_step is None:
            return "no checkpoint was written"
        return f"the checkpoint of step {self._saved_step} is in {self.checkpoint_file.path}"

    def _check_finite(self, **values: float) -> None:
        if all(map(math.isfinite, values.values())):
            return
        raise FloatingPointError(
            f"{_listed(values)} after outer step {self.state.progress.step}, learned lr"
            f" {self.state.distilled.lr.tolist()}: must be finite; {self._saved_state()};"
            " lower train.lr_inputs_embeds or distilled_data.lr_init"
        )

    def _progress_bar(self) -> tqdm[NoReturn]:
        return tqdm(
            total=self.schedule.max_steps, initial=self.state.progress.step, desc="distil", unit="step",
            dynamic_ncols=True, disable=None if self.processes.main else True,
            # tqdm's own estimate knows nothing of validations and of the final score.
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )  # fmt: skip


def _listed(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)
