"""Reads and writes ``results.json``, the result of a run, an evaluation or a baseline."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np

from textdistill.core.files import replacing

# The key versions.results of results.json holds the version of its layout. Files without the key have version 1.
RESULTS_VERSION = 1
# A list of whole numbers, one on each line. The rows of a confusion matrix are such lists.
COUNTS = re.compile(r"(?<=\[)\n\s+\d+(?:,\n\s+\d+)*\n\s+(?=\])")

T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """One metric over n learners.

    Attributes:
        mean: the mean of ``values``.
        std: the sample standard deviation of ``values``; None for one learner.
        n: the number of learners.
        values: one value for each learner, in the order of the learners.

    """

    mean: float
    std: float | None
    n: int
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        """Summarises values that are in the order of the learners."""
        # The statistics module raises an error for the deviation of a NaN; numpy returns NaN.
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(fmean(values), std, len(values), list(values))


@dataclass(frozen=True)
class ModelId:
    """The user's name for the encoder and, where known, the hub commit or checksum of its weights."""

    name: str
    revision: str | None


@dataclass(frozen=True)
class SplitSize:
    """The source of a split's rows, in words, and the number of rows."""

    source: str
    rows: int


@dataclass(frozen=True)
class SetShape:
    """The settings of the distilled set that was scored, and the name of the encoder that it was made for."""

    distilled_data: Mapping[str, Any]
    learner_train: Mapping[str, Any]
    made_for: str


@dataclass(frozen=True)
class TrainingSummary:
    """A summary of distillation. The optional values are None for a run with ``train.skip_train``.

    Attributes:
        outer_steps: the number of updates of the distilled set.
        training_seconds: the wall-clock time, with validation and checkpoints. A resumed run adds the time of
            its earlier attempts.
        best_step: the outer step that ``train.select_by`` chose on validation.
        validation: the validation metrics of the best step.
        clipped_steps: the number of updates that ``train.max_grad_norm`` shortened.
        checkpoint_seconds: the wall-clock time of checkpoints alone.
        outer_precision: the precision of the outer loss: float32, tf32, float16 or bfloat16.

    """

    outer_steps: int
    training_seconds: float
    best_step: int | None = None
    validation: Mapping[str, float] | None = None
    clipped_steps: int | None = None
    checkpoint_seconds: float | None = None
    outer_precision: str | None = None


@dataclass(frozen=True)
class BaselineSettings:
    """The settings of a baseline. The optional values are None where they do not apply.

    Attributes:
        baseline: full, random, k-centers or herding.
        training: inner_loop or ordinary.
        data_per_label: the number of real samples of each class.
        lr: the learning rate that validation chose.
        train_step: the number of inner steps.

    """

    baseline: str
    training: str | None = None
    data_per_label: int | None = None
    lr: float | None = None
    train_step: int | None = None


@dataclass(frozen=True)
class SetSource:
    """The folder or repository of an evaluated distilled set, and the commit of the repository."""

    distilled: str
    distilled_revision: str | None


@dataclass(frozen=True)
class MajorityClass:
    """A classifier that predicts the largest class of the training split for every row.

    Attributes:
        index: the index of the class.
        share: its share of the training split.
        metrics: the metrics on the test split.

    """

    index: int
    share: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ClassScores:
    """The scores by class on the test split.

    Attributes:
        names: C names, by class index.
        confusion: the confusion matrix: a row for each true class, and a column for each predicted class. The counts
            are summed over the learners.
        majority: the scores of the largest class on the same rows.

    """

    names: list[str]
    confusion: list[list[int]]
    majority: MajorityClass


@dataclass(frozen=True)
class RunResult:
    """The result of a run, an evaluation or a baseline.

    Attributes:
        task: the name of the task.
        model: the encoder.
        protocol: ``clean`` or ``paper``.
        splits: the sizes of ``train``, ``validation`` and ``test``.
        seed: ``base.seed``.
        metrics: the scores on the test split by metric, which include ``loss`` and ``accuracy``.
        versions: the versions of the packages that computed the result.
        classes: the scores by class; None in files that do not state them.
        precision: the precision of the scores: float32, tf32, float16 or bfloat16; None in files that do not state it.
        seconds: the wall-clock time; None in files that do not state it.
        peak_memory_bytes: the peak memory of process 0; None where it was not measured.
        shape: the settings of the distilled set; None for a baseline.
        training: the summary of distillation; None unless the run distilled the set.
        baseline: the settings of the baseline; None for a distilled set.
        source: the origin of the saved set; None unless an evaluation read one.

    """

    task: str
    model: ModelId
    protocol: str
    splits: Mapping[str, SplitSize]
    seed: int
    metrics: Mapping[str, Score]
    versions: Mapping[str, str]
    classes: ClassScores | None = None
    precision: str | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    shape: SetShape | None = None
    training: TrainingSummary | None = None
    baseline: BaselineSettings | None = None
    source: SetSource | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of ``results.json``, one flat object.

        Values that are None are left out, except the revision of an evaluated set.
        """
        parts: list[Any] = [self.shape, self.training, self.baseline, self.source]
        flat = {field.name: getattr(self, field.name) for field in fields(RunResult)}
        for name in ("shape", "training", "baseline", "source"):
            del flat[name]
        for part in filter(None, parts):
            flat |= {name: value for name, value in asdict(part).items() if value is not None}
        if self.source is not None:
            flat["distilled_revision"] = self.source.distilled_revision
        flat |= {
            "model": asdict(self.model),
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "metrics": {name: asdict(score) for name, score in self.metrics.items()},
            "versions": {"results": RESULTS_VERSION, **self.versions},
            "classes": None if self.classes is None else asdict(self.classes),
        }
        return {name: value for name, value in flat.items() if value is not None or name == "distilled_revision"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunResult:
        """Reads an object of this layout version. Unknown keys are ignored.

        Raises:
            ValueError: a key is missing, a value has another type, or the object has another layout version.

        """
        versions = dict(_typed(values, "versions", dict))
        if (version := versions.pop("results", 1)) != RESULTS_VERSION:
            raise ValueError(f"versions.results must be {RESULTS_VERSION}, got {version!r}; upgrade textdistill")
        metrics = {name: _score(score) for name, score in _typed(values, "metrics", dict).items()}
        _require("metrics", metrics, "accuracy")
        splits = {name: _part(SplitSize, split) for name, split in _typed(values, "splits", dict).items()}
        _require("splits", splits, "test")
        shape = _shape(values) if "made_for" in values else None
        baseline = _baseline(values) if "baseline" in values else None
        if (shape is None) == (baseline is None):
            raise ValueError("made_for or baseline must be stated, and not both")
        return cls(
            task=_typed(values, "task", str),
            model=_part(ModelId, _typed(values, "model", dict)),
            protocol=_typed(values, "protocol", str),
            splits=splits,
            seed=_typed(values, "seed", int),
            metrics=metrics,
            versions=versions,
            classes=_classes(values["classes"]) if "classes" in values else None,
            precision=_checked("precision", values.get("precision"), str | None),
            seconds=_checked("seconds", values.get("seconds"), float | None),
            peak_memory_bytes=_checked("peak_memory_bytes", values.get("peak_memory_bytes"), int | None),
            shape=shape,
            training=_part(TrainingSummary, values) if "training_seconds" in values else None,
            baseline=baseline,
            source=_part(SetSource, values) if "distilled" in values else None,
        )

    def write(self, path: Path) -> None:
        """Writes ``results.json`` whole or not at all. A missing folder is created."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            # Each list of whole numbers takes one line. A string in JSON has no line breaks, so no string changes.
            text = COUNTS.sub(lambda row: " ".join(row[0].split()), json.dumps(self.to_dict(), indent=2))
            partial.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RunResult:
        """Reads ``results.json``.

        Raises:
            ValueError: the file was not written by this package.

        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} must be what distill, evaluate or baseline wrote: {error}") from error


def _typed(values: Mapping[str, object], key: str, kind: type[T]) -> T:
    return cast(T, _checked(key, values.get(key), kind))


def _part(kind: type[T], values: object) -> T:
    """Builds the dataclass ``kind`` from ``values`` and checks the types. Values without a field are ignored."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{kind.__name__} must be an object, got {values!r:.100}")
    hints = get_type_hints(kind)
    parts = fields(kind)  # type: ignore[arg-type]
    _require(kind.__name__, values, *(part.name for part in parts if part.default is MISSING))
    stated = {part.name: values[part.name] for part in parts if part.name in values}
    return kind(**{name: _checked(name, value, hints[name]) for name, value in stated.items()})


def _score(values: object) -> Score:
    score = _part(Score, values)
    if not score.values or len(score.values) != score.n:
        raise ValueError(f"values must be n={score.n} numbers, got {len(score.values)}")
    for number in (score.mean, *score.values):
        if not math.isfinite(_checked("values", number, float)):
            raise ValueError(f"mean and values must be finite numbers, got {number}")
    return score


def _classes(values: object) -> ClassScores:
    if not isinstance(values, Mapping):
        raise ValueError(f"classes must be an object, got {values!r:.100}")
    majority = _part(MajorityClass, values.get("majority"))
    classes = _part(ClassScores, {**values, "majority": majority})
    count, confusion = len(classes.names), classes.confusion
    if not all(isinstance(name, str) for name in classes.names):
        raise ValueError(f"names must be strings, got {classes.names!r:.100}")
    square = len(confusion) == count and all(isinstance(row, list) and len(row) == count for row in confusion)
    if not square or not all(type(cell) is int and cell >= 0 for row in confusion for cell in row):
        raise ValueError(f"confusion must be {count} rows of {count} counts, got {confusion!r:.100}")
    if not 0 <= majority.index < count:
        raise ValueError(f"index must be from 0 to {count - 1}, got {majority.index}")
    for name, value in majority.metrics.items():
        _checked(name, value, float)
    return classes


def _shape(values: Mapping[str, object]) -> SetShape:
    shape = _part(SetShape, values)
    _typed(shape.distilled_data, "data_per_label", int)
    _typed(shape.distilled_data, "label_type", str)
    _typed(shape.distilled_data, "attention_label_type", str)
    _typed(shape.distilled_data, "seq_length", int)
    _typed(shape.learner_train, "train_step", int)
    return shape


def _baseline(values: Mapping[str, object]) -> BaselineSettings:
    settings = _part(BaselineSettings, values)
    if settings.baseline != "full" and (settings.training is None or settings.data_per_label is None):
        raise ValueError(f"training and data_per_label must be stated for baseline={settings.baseline!r:.100}")
    return settings


def _require(name: str, values: Container[str], *keys: str) -> None:
    for key in keys:
        if key not in values:
            raise ValueError(f"{name} must state {key}")


def _checked(name: str, value: object, hint: Any) -> Any:
    """Returns the value if it has the type of the hint. The elements of a list are not checked."""
    kinds = tuple(get_origin(kind) or kind for kind in get_args(hint)) if isinstance(hint, UnionType) else ()
    kinds = kinds or (get_origin(hint) or hint,)
    # JSON writes a float without decimals as an integer.
    kinds = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name} must be {expected}, got {value!r:.100}")
    return value
