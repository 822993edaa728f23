"""What each verb of the command line does, as functions."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from omegaconf import OmegaConf

from textdistill.config import RunConfig, load_run_config
from textdistill.core.files import replacing
from textdistill.core.precision import Precision
from textdistill.core.processes import Processes
from textdistill.data.task import TextTask, load_task
from textdistill.data.tokens import TokenizedSplit, tokenize
from textdistill.distilled.adapt import adapt_to, check_fits
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.inspection import find_anomalies, nearest_tokens, strongest_labels
from textdistill.distilled.onnx import ONNX_FILE, check_onnx, to_onnx
from textdistill.distilled.spec import SetMetadata, model_metadata
from textdistill.evaluation.baselines import Baseline, Training, coresets, full_data, inner_loop, ordinary
from textdistill.evaluation.scoring import score, trained_on
from textdistill.method.learner import Learner, ModelConfig
from textdistill.reporting.page import page
from textdistill.reporting.rows import Format, comma_separated, find_results, latex, markdown, summarise
from textdistill.runs.metrics import NullTracker, Tracker, read_lines
from textdistill.runs.mlflow import MlflowRun, Status
from textdistill.runs.results import Score
from textdistill.runs.tracker import RunTracker, open_tracker
from textdistill.training.checkpoint import Checkpoint, load_checkpoint
from textdistill.training.trainer import Schedule, fit

logger = logging.getLogger(__name__)

Results = dict[str, Any]


class Stopped(Exception):
    """Raised by what watches a training, to end it where it is."""


def distill(config: RunConfig, composed: Mapping[str, str] | None = None) -> Results:
    """Distils ``config.data`` and scores the result on the reported split.

    The run folder ``config.base.save_dir`` receives ``config.yaml``, ``metrics.jsonl``, ``run.log``,
    ``checkpoints/``, ``distilled/`` (the best set) and ``results.json``. With ``train.resume`` an interrupted run
    in it goes on, and ends as if it had not been interrupted.

    Examples:
        >>> from textdistill import compose
        >>> data = ["data.task_name=mine", "data.path=reviews.csv"]
        >>> data += ["data.text_columns=[text]", "data.label_column=label"]
        >>> results = distill(compose(*data, "train.max_steps=200", "base.save_dir=save/reviews"))
        >>> sorted(results["metrics"])
        ['accuracy', 'loss']

    Under ``torchrun`` every process calls this; process 0 writes.

    Args:
        config: see there.
        composed: the files of Hydra's composition by name, kept in ``.hydra/``.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError: the configuration or the data cannot work; nothing has been written then.
        FileNotFoundError: a file of the data or model is missing.
        FloatingPointError: training diverged.
        Interrupted: by SIGINT or SIGTERM while training; ``train.resume`` goes on from there.

    """
    with _training(config, composed or {}) as (bench, distilled, record, training):
        started = time.monotonic()
        scores = _score(config, bench, distilled)
        seconds = training["training_seconds"] + time.monotonic() - started
        cost = {"seconds": seconds, "peak_memory_bytes": Processes().peak_memory_bytes}
        results = bench.results(scores) | _shape(distilled) | training | cost
        if record is not None:
            _keep(bench.config, distilled, scores, training, results, record)
    return results


def train(config: RunConfig, watched: Callable[[Tracker], Tracker]) -> dict[str, Any]:
    """The first part of ``distill``, which never looks at the reported split.

    ``distill`` with ``train.resume`` goes on from its end and adds the score.

    Args:
        config: see there.
        watched: wraps the tracker; may raise ``Stopped`` from it to end the training.

    Returns:
        ``outer_steps``, ``best_step``, ``validation`` (metrics of the best step) and times.

    Raises:
        Stopped: so the tracker said; the run's record ends as one that was killed.
        ValueError, FileNotFoundError, FloatingPointError, Interrupted: as ``distill``.

    """
    with _training(config, {}, watched) as (*_, training):
        return training


@contextmanager
def _training(
    config: RunConfig, composed: Mapping[str, str], watched: Callable[[Tracker], Tracker] = lambda tracker: tracker
) -> Iterator[tuple[_Bench, DistilledDataset, RunTracker | None, dict[str, Any]]]:
    """A run that holds its folder, is recorded, and has trained its set; its record ends with the block.

    Only process 0 has a record.
    """
    processes = Processes()
    if config.train.batches_per_step is None:
        # Written down, so that the run goes on as it began with any number of processes.
        config = replace(config, train=replace(config.train, batches_per_step=processes.count))
    bench = _Bench(config)
    schedule = None
    if not config.train.skip_train:
        schedule = Schedule.of(config.train, bench.splits["train"], config.data.train_batch_size)
    distilled = _initial(config, bench)
    settings = config.fixed() | {"data": bench.task.fingerprint, "model": bench.learner.revision}
    with ExitStack() as stack:
        record: RunTracker | None = None
        checkpoint: Checkpoint | None = None
        if processes.main:
            stack.enter_context(config.run_folder.lock())
            checkpoint = _earlier(config, settings)
            record = stack.enter_context(_recorded(config, composed))
        checkpoint = processes.broadcast(checkpoint)
        tracker = record or NullTracker()
        training: dict[str, Any] = {"outer_steps": 0, "training_seconds": 0.0}
        if schedule is None:
            tracker.rewind(0)
        else:
            training = _train(config, bench, distilled, schedule, watched(tracker), settings, checkpoint)
        yield bench, distilled, record, training


@contextmanager
def _recorded(config: RunConfig, composed: Mapping[str, str]) -> Iterator[RunTracker]:
    """A block whose configuration, log, metrics, files and outcome go to the run folder and to MLflow."""
    folder, base = config.run_folder, config.base
    with replacing(folder.config) as partial:
        OmegaConf.save(OmegaConf.structured(config), partial)
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


def _keep(
    config: RunConfig,
    distilled: DistilledDataset,
    scores: Mapping[str, Score],
    training: Mapping[str, Any],
    results: Results,
    tracker: RunTracker,
) -> None:
    """Writes a finished run's set and results."""
    distilled.save_pretrained(
        config.run_folder.distilled,
        seed=config.base.seed,
        versions=results["versions"],
        config=asdict(config),
        scores={name: asdict(s) for name, s in scores.items()},
        splits=results["splits"],
        **training,
    )
    averages = {f"avg.{name}": s.mean for name, s in scores.items()}
    deviations = {f"std.{name}": s.std for name, s in scores.items()}
    tracker.log_metrics({**averages, **deviations}, training["outer_steps"])
    write_results(config.run_folder.results, results)


def resume(run_dir: str | Path) -> Results:
    """Goes on with the run of a folder, with the configuration in its ``config.yaml``; see ``distill``.

    Raises:
        FileNotFoundError: the folder holds no run.

    """
    config = load_run_config(Path(run_dir))
    config.train.resume = True
    return distill(config)


def track(run_dir: str | Path) -> str:
    """Completes, or makes, the MLflow run of a run folder from its files.

    Returns:
        MLflow's id of the run.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the run is still being written.
        OSError: MLflow failed.

    """
    config = load_run_config(Path(run_dir))
    base, folder = config.base, config.run_folder
    with folder.lock():
        try:
            root = Path(base.save_dir_root)
            mlflow = MlflowRun.open(root, base.experiment_name, base.run_name, folder, base.sweep)
            mlflow.log_params(asdict(config))
            mlflow.log_lines(read_lines(folder.metrics))
            for path in folder.artifacts():
                mlflow.log_artifact(path)
            mlflow.close(Status.FINISHED if folder.results.exists() else Status.FAILED)
        except (ValueError, FileNotFoundError):
            raise
        except Exception as error:  # MLflow's, its database's, the disk's
            reason = str(error).strip().partition("\n")[0]
            raise OSError(f"MLflow failed ({type(error).__name__}: {reason}); put it right and try again") from error
    return mlflow.run_id


def evaluate(distilled_dir: str | Path, config: RunConfig) -> Results:
    """Scores a saved set on the reported split of ``config.data`` and writes ``results.json`` to the run folder.

    With another encoder than the set was made for, attention labels are left out where layers or heads differ.

    Examples:
        >>> from textdistill import compose
        >>> data = ["data.task_name=mine", "data.path=reviews.csv"]
        >>> data += ["data.text_columns=[text]", "data.label_column=label"]
        >>> evaluate("DISTILLED_DIR", compose(*data, "evaluate.n_eval_model=2"))["metrics"]["accuracy"]["n"]
        2

    Raises:
        ValueError: the set does not fit the data or the model.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    bench = _Bench(config)
    distilled = adapt_to(distilled, bench.learner)
    _check_classes(distilled, bench)
    distilled.to(bench.learner.device)
    started = time.monotonic()
    results = bench.results(_score(config, bench, distilled)) | _shape(distilled)
    source = {"distilled": str(distilled_dir), "distilled_revision": distilled.revision}
    results |= source | {"seconds": time.monotonic() - started}
    write_results(config.run_folder.results, results)
    return results


def baseline(kind: str, config: RunConfig, training: Training = Training.inner_loop) -> Results:
    """Scores a baseline on the reported split and writes ``results.json`` to the run folder.

    Examples:
        >>> from textdistill import compose
        >>> data = ["data.task_name=mine", "data.path=reviews.csv"]
        >>> data += ["data.text_columns=[text]", "data.label_column=label"]
        >>> results = baseline("random", compose(*data, "distilled_data.data_per_label=2"))
        >>> results["data_per_label"]
        2

    Args:
        kind: ``full``, ``random``, ``k-centers`` or ``herding``; a coreset has as many samples as the distilled set
            of ``config`` would have.
        config: see there.
        training: of learners on a coreset, ``inner_loop`` or ``ordinary``.

    """
    if kind not in list(Baseline):
        raise ValueError(f"unknown baseline {kind!r}; known baselines: {', '.join(Baseline)}")
    kind = Baseline(kind)
    bench, processes = _Bench(config), Processes()
    data, seed, train = config.data, config.base.seed, bench.splits["train"]
    precision = Precision.of(bf16=config.train.bf16)
    started = time.monotonic()
    count = config.evaluate.n_eval_model
    extra: dict[str, Any] = {"baseline": kind}
    if kind is Baseline.full:
        count = 1
        trained = full_data(
            bench.learner, bench.splits, data.train_batch_size, data.valid_batch_size, seed, processes, precision
        )
    else:
        shape, inner = config.distilled_data, config.learner_train
        rows = coresets(kind, bench.learner, train, shape.data_per_label, data.valid_batch_size, seed)
        extra |= {"training": training, "data_per_label": shape.data_per_label}
        if training is Training.ordinary:
            trained = ordinary(bench.learner, train, rows, seed, precision)
        else:
            trained, extra["lr"] = inner_loop(
                bench.learner, bench.splits, rows, inner, data.valid_batch_size, seed, processes
            )
            extra["train_step"] = inner.train_step
    scores = score(
        trained, bench.learner, bench.splits["test"], bench.task.metric_names, count, data.test_batch_size,
        processes, config.evaluate.precision, description=f"evaluate {kind}",
    )  # fmt: skip
    results = bench.results(scores) | extra | {"seconds": time.monotonic() - started}
    write_results(config.run_folder.results, results)
    return results


def finetune(
    distilled_dir: str | Path, output: str | Path, model: str | None = None, seed: int = 42, onnx: bool = False
) -> dict[str, Any]:
    """Fine-tunes a fresh learner on a saved set and writes an ordinary Hugging Face model folder.

    The model is learner 0 of ``evaluate`` with ``base.seed=seed``.

    Examples:
        >>> finetune("DISTILLED_DIR", "model")["output"]
        'model'

    Args:
        distilled_dir: folder or hub id of the set.
        output: the folder to write: weights, tokenizer, label names.
        model: encoder; None for the one the set was made for.
        seed: decides the head.
        onnx: also write ``model.onnx``, see ``export``.

    Returns:
        The output folder, the model's name and the seconds the fine-tuning took.

    """
    if onnx:
        check_onnx()
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--output must be a new or empty folder, got {output}; choose another or empty it")
    name = model or distilled.metadata.model.name
    learner = Learner(ModelConfig(distilled.metadata.task, name), distilled.metadata.class_names)
    learner.to(Processes().device)
    started = time.monotonic()
    tuned = distilled.finetune(learner, seed)
    seconds = time.monotonic() - started
    # Texts are cut where distillation and evaluation cut them.
    learner.tokenizer.model_max_length = distilled.metadata.data.get("max_length", learner.max_positions)
    tuned.save_pretrained(output)
    learner.tokenizer.save_pretrained(output)
    if onnx:
        to_onnx(tuned, learner.tokenizer, output / ONNX_FILE)
    return {"output": str(output), "model": name, "seconds": seconds}


def push(distilled_dir: str | Path, repo_id: str, **options: Any) -> CommitInfo:
    """Puts a saved set, in the precision of its file, into a dataset repository on the hub.

    Args:
        distilled_dir: folder or hub id of the set.
        repo_id: ``owner/name``, or ``name`` for one's own.
        **options: of ``DistilledDataset.push_to_hub``, as are the errors.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    return distilled.push_to_hub(repo_id, dtype=distilled.stored_dtype, **options)


def report(paths: Sequence[str | Path], form: Format = Format.markdown) -> str:
    """Results in files, run folders, and folders of run folders, as one HTML page or as tables.

    Raises:
        FileNotFoundError: a path holds no results.
        ValueError: a file holds something else.

    """
    found = find_results(paths)
    if form is Format.html:
        return page(found)
    tables = {Format.markdown: markdown, Format.csv: comma_separated, Format.latex: latex}
    return tables[form](summarise(found.values()))


def show(distilled_dir: str | Path, nearest: int = 3, positions: int = 8) -> dict[str, Any]:
    """What a saved set holds, as data.

    Examples:
        >>> found = show("DISTILLED_DIR")
        >>> found["card"]["class_names"]
        ['negative', 'positive']

    Args:
        distilled_dir: folder or hub id of the set.
        nearest: vocabulary tokens listed for a position.
        positions: positions listed for a sample.

    Returns:
        ``shapes``, ``bytes`` (by tensor), ``card``, ``labels`` (N, C), ``lr`` (T,); ``lr_scales``: for each step what
        its lr is multiplied by, by parameter, or None with one lr for all; ``attention``: for each sample the layers
        and heads whose label is most concentrated; ``tokens``: for each sample and position the nearest word
        embeddings by cosine, an aid to the eye and not a reading, or None where the model cannot be loaded.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    card, peaks = distilled.metadata, strongest_labels(distilled, nearest)
    found: dict[str, Any] = {
        "card": {"task": card.task, "class_names": list(card.class_names), "model": asdict(card.model)},
        "config": asdict(distilled.config) | asdict(distilled.inner_config),
        "shapes": {name: list(tensor.shape) for name, tensor in distilled.raw.items()},
        "bytes": {name: tensor.numel() * tensor.element_size() for name, tensor in distilled.raw.items()},
        "labels": distilled.labels.tolist(),
        "lr": distilled.lr.tolist(),
        "lr_scales": None
        if (scales := distilled.lr_scales) is None
        else [dict(zip(card.model.parameters, step, strict=True)) for step in scales.tolist()],
        "attention": None if peaks is None else [[peak._asdict() for peak in sample] for sample in peaks],
        "tokens": None,
    }
    try:
        learner = Learner(ModelConfig(card.task, card.model.name), card.class_names)
    except OSError as error:
        logger.warning("no nearest tokens: %s cannot be loaded (%s)", card.model.name, error)
        return found
    check_fits(distilled, learner)
    tokens = nearest_tokens(distilled, learner, nearest, positions)
    return found | {"tokens": [[[near._asdict() for near in at] for at in sample] for sample in tokens]}


def verify(distilled_dir: str | Path, config: RunConfig) -> dict[str, Any]:
    """Checks a saved set's files, measures again the score that its card states, and looks for what is unusual.

    Args:
        distilled_dir: folder or hub id of the set.
        config: the data and model to measure with.

    Returns:
        ``metrics``: for each, ``stated`` and ``measured`` (mean, std, n) and ``within``, whether the measured mean is
        no further from the stated one than the stated standard deviation; ``verified``, whether all are; ``same_data``
        and ``same_model``, whether data and model are those that the card names; ``unusual``, see ``inspection``.

    Raises:
        ValueError: a file is damaged or was changed; the set does not fit; or its card states no score.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    stated = distilled.metadata.provenance.get("scores")
    if not isinstance(stated, dict):
        raise ValueError(f"{distilled_dir}: the card must state a score to be verified, as that of a finished run does")
    bench = _Bench(config)
    _check_classes(distilled, bench)
    distilled.to(bench.learner.device)
    found = {}
    for name, measured in _score(config, bench, distilled).items():
        try:
            mean, std, n = (stated[name][key] for key in ("mean", "std", "n"))
            # Without a spread only the same score will do, but for rounding.
            within = abs(measured.mean - mean) <= (std or 0.0) + 1e-6
        except (KeyError, TypeError) as error:
            raise ValueError(f"{distilled_dir}: the card must state mean, std and n of {name} ({error!r})") from error
        values = {"mean": measured.mean, "std": measured.std, "n": measured.n}
        found[name] = {"stated": {"mean": mean, "std": std, "n": n}, "measured": values, "within": within}
    return {
        "metrics": found,
        "verified": all(metric["within"] for metric in found.values()),
        "same_data": distilled.metadata.data.get("fingerprint") == bench.task.fingerprint,
        "same_model": distilled.metadata.model.revision == bench.learner.revision,
        "unusual": find_anomalies(distilled),
    }


class _Bench:
    """The data and the learner of a configuration."""

    def __init__(self, config: RunConfig) -> None:
        config.check()
        self.config = config
        processes = Processes()
        with processes.main_first():
            self.task: TextTask = load_task(config.data, config.base.seed)
        self.learner = Learner(config.model, self.task.class_names)
        if config.data.max_length > self.learner.max_positions:
            raise ValueError(
                f"data.max_length must be at most the {self.learner.max_positions} positions of"
                f" model.model_name={self.learner.name}, got {config.data.max_length}"
            )
        with processes.main_first():
            self.splits: dict[str, TokenizedSplit] = tokenize(self.task, self.learner.tokenizer, config.data)
        self.learner.to(processes.device)

    @property
    def metadata(self) -> SetMetadata:
        data = {
            "text_columns": list(self.task.text_columns),
            "label_column": self.config.data.label_column,
            "protocol": str(self.task.protocol),
            "max_length": self.config.data.max_length,
            "fingerprint": self.task.fingerprint,
        }
        return SetMetadata(self.task.name, self.task.class_names, model_metadata(self.learner), data)

    def results(self, scores: Mapping[str, Score]) -> Results:
        """What every score is reported with; raises FloatingPointError for a learner that diverged."""
        if not math.isfinite(scores["loss"].mean):
            raise FloatingPointError(
                f"the losses of the learners on the test split must be finite, got {scores['loss'].values}; lower the"
                " learning rates, or set evaluate.fp16=false"
            )
        return {
            "task": self.task.name,
            "model": {"name": self.learner.name, "revision": self.learner.revision},
            "protocol": str(self.task.protocol),
            "splits": {
                name: {"source": self.task.sources[name], "rows": len(split)} for name, split in self.splits.items()
            },
            "seed": self.config.base.seed,
            "metrics": {name: asdict(s) for name, s in scores.items()},
            "versions": {name: version(name) for name in ("textdistill", "torch", "transformers", "datasets")},
        }


def _initial(config: RunConfig, bench: _Bench) -> DistilledDataset:
    """A new set, or the saved one of ``distilled_data.pretrained_data_path``, whose own shape then counts."""
    path = config.distilled_data.pretrained_data_path
    if path is None:
        return initial_set(
            config.distilled_data,
            config.learner_train,
            bench.metadata,
            bench.learner,
            bench.splits["train"],
            config.base.seed,
        )
    loaded = DistilledDataset.from_pretrained(path)
    _check_classes(loaded, bench)
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
    return DistilledDataset(loaded.raw, kept, loaded.inner_config, bench.metadata).to(bench.learner.device)


def _check_classes(distilled: DistilledDataset, bench: _Bench) -> None:
    check_fits(distilled, bench.learner)
    names, expected = distilled.metadata.class_names, bench.task.class_names
    # A set in the reference's format does not know its classes.
    if distilled.metadata.task != "unknown" and names != expected:
        raise ValueError(
            f"the distilled set has classes {list(names)} (task {distilled.metadata.task!r}), but the data have"
            f" {list(expected)} in this order; use the data it was made from"
        )


def _earlier(config: RunConfig, settings: Mapping[str, Any]) -> Checkpoint | None:
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
    bench: _Bench,
    distilled: DistilledDataset,
    schedule: Schedule,
    tracker: Tracker,
    settings: Mapping[str, Any],
    checkpoint: Checkpoint | None,
) -> dict[str, Any]:
    def validate(candidate: DistilledDataset) -> dict[str, float]:
        scores = score(
            trained_on(candidate, bench.learner, config.base.seed, "validation"),
            bench.learner, bench.splits["validation"], bench.task.metric_names,
            config.train.n_eval_model, config.data.valid_batch_size,
            Processes(), config.train.precision, description="validate",
        )  # fmt: skip
        deviations = {f"{name}_std": s.std for name, s in scores.items() if s.std is not None}
        return {name: s.mean for name, s in scores.items()} | deviations

    result = fit(
        distilled,
        bench.learner,
        bench.splits["train"],
        schedule,
        validate,
        tracker,
        config.train,
        config.base.seed,
        settings,
        checkpoint,
    )
    return {
        "outer_steps": result.outer_steps,
        "best_step": result.best_step,
        "validation": dict(result.validation),
        "clipped_steps": result.clipped_steps,
        "training_seconds": result.seconds,
        "checkpoint_seconds": result.checkpoint_seconds,
    }


def _shape(distilled: DistilledDataset) -> Results:
    return {
        "distilled_data": asdict(distilled.config),
        "learner_train": asdict(distilled.inner_config),
        "made_for": distilled.metadata.model.name,
    }


def _score(config: RunConfig, bench: _Bench, distilled: DistilledDataset) -> dict[str, Score]:
    return score(
        trained_on(distilled, bench.learner, config.base.seed, "evaluation"),
        bench.learner, bench.splits["test"], bench.task.metric_names,
        config.evaluate.n_eval_model, config.data.test_batch_size,
        Processes(), config.evaluate.precision,
    )  # fmt: skip


def write_results(path: Path, results: Results) -> None:
    """Writes JSON, whole or not at all, in process 0."""
    if not Processes().main:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
