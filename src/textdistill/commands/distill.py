"""``distill``, ``train`` and ``resume``: how a run is put together."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from textdistill.commands.context import RunContext, set_shape
from textdistill.config import RunConfig, load_run_config, save_run_config
from textdistill.core.files import replacing
from textdistill.core.processes import Processes
from textdistill.data.task import BATCH_ROWS
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.evaluation.scoring import score, trained_on
from textdistill.runs.metrics import NullTracker, Tracker
from textdistill.runs.mlflow import Status
from textdistill.runs.results import RunResult, TrainingSummary
from textdistill.runs.tracker import RunTracker, open_tracker
from textdistill.training.checkpoint import Checkpoint, CheckpointFile
from textdistill.training.outer_step import OuterStep, RealBatches
from textdistill.training.schedule import Schedule
from textdistill.training.trainer import Callback, StopTraining, Trainer, Validation

logger = logging.getLogger(__name__)


def distill(config: RunConfig, hydra_files: Mapping[str, str] | None = None, data: object = None) -> RunResult:
    """Distils ``config.data`` and scores the result; ``api.distill`` documents it.

    Args:
        config: the configuration.
        hydra_files: the files of Hydra's composition by name; they are kept in ``.hydra/``.
        data: data in memory, as ``read_memory`` takes them; None to read what ``config.data`` names.

    Returns:
        The result; ``results.json`` holds the same.

    """
    with _training(config, data, hydra_files or {}) as (context, distilled, tracker, training):
        started = time.monotonic()
        scores = context.score(distilled)
        seconds = training.training_seconds + time.monotonic() - started
        memory = context.processes.peak_memory_bytes
        result = context.result(
            scores, seconds, shape=set_shape(distilled), training=training, peak_memory_bytes=memory
        )
        if tracker is not None:
            _save_results(context.config, distilled, training, result, tracker)
    return result


def train(config: RunConfig, callback: Callback, data: object = None) -> TrainingSummary:
    """Distils without scoring: the part of ``distill`` that never reads the test split.

    ``distill`` with ``train.resume`` goes on from the end of this training and adds the score.

    Args:
        config: the configuration.
        callback: receives the outer step and the metrics of every validation; may raise ``StopTraining``.
        data: as in ``distill``.

    Returns:
        The steps, the best step with its validation metrics, and the times.

    Raises:
        StopTraining: the callback raised it. MLflow records the run as killed.
        ValueError, FileNotFoundError, FloatingPointError, Interrupted: as ``distill``.

    """
    with _training(config, data, {}, callback) as (*_, training):
        return training


def resume(run_dir: str | Path, data: object = None) -> RunResult:
    """Goes on with the run of a folder; ``api.resume`` documents it."""
    config = load_run_config(Path(run_dir))
    config.train.resume = True
    return distill(config, data=data)


@contextmanager
def _training(
    config: RunConfig, data: object, hydra_files: Mapping[str, str], callback: Callback | None = None
) -> Iterator[tuple[RunContext, DistilledDataset, RunTracker | None, TrainingSummary]]:
    """Locks the run folder and trains the set; the block that follows can score it and add to the record.

    Yields:
        The context; the trained set; the tracker, in process 0 only; and the summary of the training.

    """
    processes = Processes()
    if config.train.batches_per_step is None:
        # The number is written to config.yaml, so that the run can go on with another number of processes.
        config = replace(config, train=replace(config.train, batches_per_step=processes.count))
    context = RunContext(config, processes, data)
    config, train = context.config, context.splits["train"]
    distilled = _initial_set(config, context)
    # What depends on the classes is written to config.yaml, so that the run states it and can go on with it.
    rows = config.data.train_batch_size or max(BATCH_ROWS, min(context.learner.num_labels, len(train)))
    shape = replace(config.distilled_data, seq_length=distilled.config.positions)
    config = context.config = replace(config, data=replace(config.data, train_batch_size=rows), distilled_data=shape)
    schedule = None if config.train.skip_train else Schedule.of(config.train, train, rows, processes)
    settings = config.fixed() | {"data": context.task.fingerprint, "model": context.learner.revision}
    checkpoint_file = CheckpointFile(config.run_folder.checkpoint, settings)
    with ExitStack() as stack:
        run_tracker: RunTracker | None = None
        checkpoint: Checkpoint | None = None
        if processes.main:
            stack.enter_context(config.run_folder.lock())
            checkpoint = _load_checkpoint(config, checkpoint_file)
            run_tracker = stack.enter_context(_recorded(config, hydra_files))
        checkpoint = processes.broadcast(checkpoint)
        tracker: Tracker = run_tracker or NullTracker()
        training = TrainingSummary(outer_steps=0, training_seconds=0.0)
        if schedule is None:
            tracker.rewind(0)
        else:
            outer_step = OuterStep(distilled, context.learner, config.train, config.base.seed, processes)
            batches = RealBatches(context.splits["train"], schedule, config.base.seed, processes)
            validation = _validation(config, context)
            # A training with a callback is not scored.
            final_validations = 0.0 if callback else _final_validations(config, context)
            trainer = Trainer(
                outer_step, batches, validation, config.run_folder, checkpoint_file, tracker, callback,
                final_validations,
            )  # fmt: skip
            training = trainer.train(checkpoint)
        yield context, distilled, run_tracker, training


def _validation(config: RunConfig, context: RunContext) -> Validation:
    """Scores a set on the validation split: means, and standard deviations over fresh heads."""

    def validate(distilled: DistilledDataset) -> dict[str, float]:
        scores = score(
            trained_on(distilled, context.learner, config.base.seed, "validation"),
            context.learner, context.splits["validation"], context.task.metric_names,
            config.train.n_eval_model, config.data.valid_batch_size,
            context.processes, config.train.precision, description="validate",
        )  # fmt: skip
        deviations = {f"{name}_std": s.std for name, s in scores.metrics.items() if s.std is not None}
        return {name: s.mean for name, s in scores.metrics.items()} | deviations

    return validate


def _final_validations(config: RunConfig, context: RunContext) -> float:
    """Returns the work of the score on the test split, as a multiple of a validation."""
    score_rows = config.evaluate.n_eval_model * len(context.splits["test"])
    return score_rows / (config.train.n_eval_model * len(context.splits["validation"]))


@contextmanager
def _recorded(config: RunConfig, hydra_files: Mapping[str, str]) -> Iterator[RunTracker]:
    """Records the configuration, log, metrics, files and outcome of a block in the run folder and in MLflow."""
    folder, base = config.run_folder, config.base
    with replacing(folder.config) as partial:
        save_run_config(config, partial)
    for name, text in hydra_files.items():
        folder.hydra.mkdir(exist_ok=True)
        (folder.hydra / name).write_text(text, encoding="utf-8")
    with ExitStack() as stack:
        stack.enter_context(folder.log_file(expected=(StopTraining,)))
        logger.info("run folder: %s", folder.path)
        tracker = open_tracker(config.tracking, folder, config.destination, base.run_name, base.sweep)
        stack.push(lambda kind, *_: tracker.close(_status(kind)))
        tracker.log_params(asdict(config))
        yield tracker
        for path in folder.artifacts():
            tracker.log_artifact(path)


def _status(error: type[BaseException] | None) -> Status:
    """The status in MLflow of a run that an error of this type ended; None means that it finished."""
    if error is None:
        return Status.FINISHED
    return Status.KILLED if issubclass(error, (StopTraining, KeyboardInterrupt)) else Status.FAILED


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
    """Returns a new set, or the saved set of ``distilled_data.pretrained_data_path`` with its own settings."""
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
    saved = DistilledDataset.from_pretrained(path)
    context.check(saved)
    asked, own = asdict(config.distilled_data), asdict(saved.config)
    own["pretrained_data_path"] = path
    ignored = [key for key, value in asked.items() if value not in (None, own[key])]
    if ignored:
        logger.warning("distilled_data.{%s} have no effect: the set of pretrained_data_path counts", ",".join(ignored))
    for key, value in asdict(saved.inner_config).items():
        if value != getattr(config.learner_train, key):
            raise ValueError(
                f"learner_train.{key} must be {value}, that of the set in distilled_data.pretrained_data_path,"
                f" got {getattr(config.learner_train, key)}"
            )
    settings = replace(saved.config, pretrained_data_path=path)
    return DistilledDataset(saved.raw, settings, saved.inner_config, context.metadata).to(context.learner.device)


def _load_checkpoint(config: RunConfig, checkpoint_file: CheckpointFile) -> Checkpoint | None:
    """Returns the state to go on from, or None for a new run."""
    folder, path = config.run_folder, checkpoint_file.path
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
    checkpoint = checkpoint_file.load()
    for saved in (folder.best, folder.last, folder.distilled):
        # A process that died while it wrote a set leaves a temporary folder.
        for stray in saved.parent.glob(f".{saved.name}.*"):
            shutil.rmtree(stray)
    return checkpoint
