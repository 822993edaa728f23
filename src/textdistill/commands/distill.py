"""``distill``, ``train`` and ``resume``: how a run is put together."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from textdistill.commands.context import RunContext, set_shape
from textdistill.config import RunConfig, load_run_config, save_run_config
from textdistill.core.files import replacing
from textdistill.core.processes import Processes
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.evaluation.scoring import score, trained_on
from textdistill.runs.metrics import NullTracker, Tracker
from textdistill.runs.mlflow import Status
from textdistill.runs.results import RunResult, TrainingSummary
from textdistill.runs.tracker import RunTracker, open_tracker
from textdistill.training.checkpoint import Checkpoint, load_checkpoint
from textdistill.training.trainer import Schedule, fit

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised by what watches a training, to end it where it is."""


def distill(config: RunConfig, composed: Mapping[str, str] | None = None) -> RunResult:
    """Distils ``config.data`` and scores the result on the reported split.

    The run folder ``config.base.save_dir`` receives ``config.yaml``, ``metrics.jsonl``, ``run.log``,
    ``checkpoints/``, ``distilled/`` (the best set) and ``results.json``. With ``train.resume`` an interrupted run
    in it goes on, and ends as if it had not been interrupted.

    Examples:
        >>> from textdistill import compose
        >>> data = ["data.task_name=mine", "data.path=reviews.csv"]
        >>> data += ["data.text_columns=[text]", "data.label_column=label"]
        >>> result = distill(compose(*data, "train.max_steps=200", "base.save_dir=save/reviews"))
        >>> sorted(result.metrics)
        ['accuracy', 'loss']

    Under ``torchrun`` every process calls this; process 0 writes.

    Args:
        config: see there.
        composed: the files of Hydra's composition by name, kept in ``.hydra/``.

    Returns:
        The result; ``results.json`` holds the same.

    Raises:
        ValueError: the configuration or the data cannot work; nothing has been written then.
        FileNotFoundError: a file of the data or model is missing.
        FloatingPointError: training diverged.
        Interrupted: by SIGINT or SIGTERM while training; ``train.resume`` goes on from there.

    """
    with _training(config, composed or {}) as (context, distilled, record, training):
        started = time.monotonic()
        scores = context.score(distilled)
        seconds = training.training_seconds + time.monotonic() - started
        memory = context.processes.peak_memory_bytes
        result = context.result(
            scores, seconds, shape=set_shape(distilled), training=training, peak_memory_bytes=memory
        )
        if record is not None:
            _save_results(context.config, distilled, training, result, record)
    return result


def train(config: RunConfig, watched: Callable[[Tracker], Tracker]) -> TrainingSummary:
    """The first part of ``distill``, which never looks at the reported split.

    ``distill`` with ``train.resume`` goes on from its end and adds the score.

    Args:
        config: see there.
        watched: wraps the tracker; may raise ``Stopped`` from it to end the training.

    Returns:
        How training went: the steps, the best one and its validation metrics, and the times.

    Raises:
        Stopped: so the tracker said; the run's record ends as one that was killed.
        ValueError, FileNotFoundError, FloatingPointError, Interrupted: as ``distill``.

    """
    with _training(config, {}, watched) as (*_, training):
        return training


def resume(run_dir: str | Path) -> RunResult:
    """Goes on with the run of a folder, with the configuration in its ``config.yaml``; see ``distill``.

    Raises:
        FileNotFoundError: the folder holds no run.

    """
    config = load_run_config(Path(run_dir))
    config.train.resume = True
    return distill(config)


@contextmanager
def _training(
    config: RunConfig, composed: Mapping[str, str], watched: Callable[[Tracker], Tracker] = lambda tracker: tracker
) -> Iterator[tuple[RunContext, DistilledDataset, RunTracker | None, TrainingSummary]]:
    """A run that holds its folder, is recorded, and has trained its set; its record ends with the block.

    Only process 0 has a record.
    """
    processes = Processes()
    if config.train.batches_per_step is None:
        # Written down, so that the run goes on as it began with any number of processes.
        config = replace(config, train=replace(config.train, batches_per_step=processes.count))
    context = RunContext(config, processes)
    schedule = None
    if not config.train.skip_train:
        schedule = Schedule.of(config.train, context.splits["train"], config.data.train_batch_size)
    distilled = _initial_set(config, context)
    settings = config.fixed() | {"data": context.task.fingerprint, "model": context.learner.revision}
    with ExitStack() as stack:
        record: RunTracker | None = None
        checkpoint: Checkpoint | None = None
        if processes.main:
            stack.enter_context(config.run_folder.lock())
            checkpoint = _load_checkpoint(config, settings)
            record = stack.enter_context(_recorded(config, composed))
        checkpoint = processes.broadcast(checkpoint)
        tracker = record or NullTracker()
        training = TrainingSummary(outer_steps=0, training_seconds=0.0)
        if schedule is None:
            tracker.rewind(0)
        else:
            training = _train(config, context, distilled, schedule, watched(tracker), settings, checkpoint)
        yield context, distilled, record, training


@contextmanager
def _recorded(config: RunConfig, composed: Mapping[str, str]) -> Iterator[RunTracker]:
    """A block whose configuration, log, metrics, files and outcome go to the run folder and to MLflow."""
    folder, base = config.run_folder, config.base
    with replacing(folder.config) as partial:
        save_run_config(config, partial)
    for name, text in composed.items():
        folder.hydra.mkdir(exist_ok=True)
        (folder.hydra / name).write_text(text, encoding="utf-8")
    with ExitStack() as stack:
        stack.enter_context(folder.log_file(expected=(Stopped,)))
        logger.info("run folder: %s", folder.path)
        tracker = open_tracker(
            config.tracking, folder, Path(base.save_dir_root), base.experiment_name, base.run_name, base.sweep
        )
        stack.push(lambda kind, *_: tracker.close(_status(kind)))
        tracker.log_params(asdict(config))
        yield tracker
        for path in folder.artifacts():
            tracker.log_artifact(path)


def _status(error: type[BaseException] | None) -> Status:
    """What a run's record says of the way that it ended."""
    if error is None:
        return Status.FINISHED
    return Status.KILLED if issubclass(error, (Stopped, KeyboardInterrupt)) else Status.FAILED


def _save_results(
    config: RunConfig,
    distilled: DistilledDataset,
    training: TrainingSummary,
    result: RunResult,
    tracker: RunTracker,
) -> None:
    """Writes the set of a finished run, its last metrics and its result."""
    distilled.save_pretrained(
        config.run_folder.distilled,
        seed=config.base.seed,
        versions=dict(result.versions),
        config=asdict(config),
        scores={name: asdict(score) for name, score in result.metrics.items()},
        splits={name: asdict(split) for name, split in result.splits.items()},
        **{name: value for name, value in asdict(training).items() if value is not None},
    )
    averages = {f"avg.{name}": score.mean for name, score in result.metrics.items()}
    deviations = {f"std.{name}": score.std for name, score in result.metrics.items()}
    tracker.log_metrics({**averages, **deviations}, training.outer_steps)
    result.write(config.run_folder.results)


def _initial_set(config: RunConfig, context: RunContext) -> DistilledDataset:
    """A new set, or the saved one of ``distilled_data.pretrained_data_path``, whose own shape then counts."""
    path = config.distilled_data.pretrained_data_path
    if path is None:
        return initial_set(
            config.distilled_data,
            config.learner_train,
            context.metadata,
            context.learner,
            context.splits["train"],
            config.base.seed,
        )
    loaded = DistilledDataset.from_pretrained(path)
    context.check(loaded)
    given, has = asdict(config.distilled_data), asdict(loaded.config)
    differ = [key for key in given if key != "pretrained_data_path" and given[key] != has[key]]
    if differ:
        logger.warning("distilled_data.{%s} have no effect: the set of pretrained_data_path counts", ",".join(differ))
    for key, value in asdict(loaded.inner_config).items():
        if value != getattr(config.learner_train, key):
            raise ValueError(
                f"learner_train.{key} must be {value}, that of the set in distilled_data.pretrained_data_path,"
                f" got {getattr(config.learner_train, key)}"
            )
    kept = replace(loaded.config, pretrained_data_path=path)
    return DistilledDataset(loaded.raw, kept, loaded.inner_config, context.metadata).to(context.learner.device)


def _load_checkpoint(config: RunConfig, settings: Mapping[str, Any]) -> Checkpoint | None:
    """The state to go on from, None for a new run."""
    folder = config.run_folder
    path = folder.checkpoint
    if not config.train.resume:
        if folder.metrics.exists() or path.exists():
            raise ValueError(
                f"base.save_dir={folder.path} holds a run; set train.resume=true to go on with it, or choose"
                " another folder"
            )
        return None
    if not path.exists():
        logger.info("%s does not exist: the run starts anew", path)
        return None
    checkpoint = load_checkpoint(path, settings)
    for saved in (folder.best, folder.last, folder.distilled):
        # A process that died while it wrote a set leaves a temporary folder.
        for stray in saved.parent.glob(f".{saved.name}.*"):
            shutil.rmtree(stray)
    return checkpoint


def _train(
    config: RunConfig,
    context: RunContext,
    distilled: DistilledDataset,
    schedule: Schedule,
    tracker: Tracker,
    settings: Mapping[str, Any],
    checkpoint: Checkpoint | None,
) -> TrainingSummary:
    def validate(candidate: DistilledDataset) -> dict[str, float]:
        scores = score(
            trained_on(candidate, context.learner, config.base.seed, "validation"),
            context.learner, context.splits["validation"], context.task.metric_names,
            config.train.n_eval_model, config.data.valid_batch_size,
            context.processes, config.train.precision, description="validate",
        )  # fmt: skip
        deviations = {f"{name}_std": s.std for name, s in scores.items() if s.std is not None}
        return {name: s.mean for name, s in scores.items()} | deviations

    result = fit(
        distilled,
        context.learner,
        context.splits["train"],
        schedule,
        validate,
        tracker,
        config.train,
        config.base.seed,
        settings,
        checkpoint,
    )
    return TrainingSummary(
        outer_steps=result.outer_steps,
        training_seconds=result.seconds,
        best_step=result.best_step,
        validation=dict(result.validation),
        clipped_steps=result.clipped_steps,
        checkpoint_seconds=result.checkpoint_seconds,
    )
