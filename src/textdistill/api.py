"""The functions of the package. They turn data and settings into a configuration, and ``commands`` does the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Unpack, cast

from textdistill import config as configuration
from textdistill.arguments import to_overrides
from textdistill.commands import distill as distilling
from textdistill.commands import evaluate as evaluating
from textdistill.commands.evaluate import Verification, set_overrides
from textdistill.commands.finished import FinishedRun
from textdistill.config import RunConfig
from textdistill.distilled.dataset import DistilledDataset
from textdistill.evaluation.baselines import Baseline, Training
from textdistill.keywords import search_overrides, setting_overrides
from textdistill.reporting.tables import Format
from textdistill.settings import Settings

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from textdistill.commands.tune import StudyResult

StrPath: TypeAlias = str | PathLike[str]
# pandas need not be installed, and datasets states no types. A checker takes a DataFrame as well.
MemoryData: TypeAlias = "Sequence[Any] | Mapping[str, Any] | Dataset | DatasetDict"
Data: TypeAlias = "StrPath | MemoryData"
SavedSet: TypeAlias = StrPath | DistilledDataset | FinishedRun

# The name of a task whose data are in memory, unless the setting task_name names it.
MEMORY_TASK = "in_memory"


def distill(
    data: Data | RunConfig,
    labels: Sequence[object] | None = None,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    model: StrPath | None = None,
    steps: int | None = None,
    output: StrPath | None = None,
    **settings: Unpack[Settings],
) -> FinishedRun:
    """Distils a dataset and scores the result on the test split.

    The run folder receives ``config.yaml``, ``metrics.jsonl``, ``run.log``, ``checkpoints/``, ``distilled/`` (the best
    set) and ``results.json``. With ``resume=True`` an interrupted run in that folder goes on. Its result is that of an
    uninterrupted run. Under ``torchrun`` every process calls this function, and process 0 writes.

    Examples:
        >>> result = distill("reviews.csv", text="text", label="label", steps=200, output="save/reviews")
        >>> len(result.distilled)
        2
        >>> result.report()
        PosixPath('save/reviews/report.html')

        Texts and labels may be two lists, as in scikit-learn:

        >>> texts, labels = ["a warm film", "a dull film"] * 50, ["good", "bad"] * 50
        >>> distill(texts, labels, steps=200, seed=1).distilled.metadata.class_names
        ('bad', 'good')

    Args:
        data: a file or folder, a list of files, a built-in task, or the id ``user/name`` of a dataset on the hub. Or
            data in memory: a ``Dataset`` or ``DatasetDict`` of datasets, a ``DataFrame`` of pandas, a list of
            dictionaries, or texts. Or a ``RunConfig`` that ``compose`` made, without any other argument.
        labels: the label of each text, if ``data`` are texts.
        text: the column of texts, or the two columns of pairs; None to choose them.
        label: the column of labels; None to choose it.
        model: the name or folder of the encoder; None for the default.
        steps: the number of outer steps; None for the default.
        output: the run folder; None for a new one in ``./save``.
        **settings: any key of the configuration, such as ``label_type="soft"``; see ``Settings``.

    Raises:
        ValueError: a setting is unknown, or the configuration or the data cannot work. Nothing has been written then.
        FileNotFoundError: a file of the data or of the model is missing.
        FloatingPointError: training diverged.
        Interrupted: SIGINT or SIGTERM came while training; ``resume=True`` goes on from the checkpoint.

    """
    config, memory = _configured(data, labels, _Options(text, label, model, steps, output), settings)
    return FinishedRun.of(distilling.distill(config, data=memory), config.base.save_dir)


def resume(run_dir: StrPath, data: MemoryData | None = None, labels: Sequence[object] | None = None) -> FinishedRun:
    """Goes on with the run of a folder, with the configuration in its ``config.yaml``; see ``distill``.

    Args:
        run_dir: the run folder.
        data: the data of a run whose data were in memory. They must be the same.
        labels: as in ``distill``.

    Raises:
        FileNotFoundError: the folder holds no run.

    """
    return FinishedRun.of(distilling.resume(Path(run_dir), _in_memory(data, labels)), run_dir)


def evaluate(
    distilled: SavedSet,
    data: Data | RunConfig | None = None,
    labels: Sequence[object] | None = None,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    model: StrPath | None = None,
    output: StrPath | None = None,
    **settings: Unpack[Settings],
) -> FinishedRun:
    """Scores a distilled set on the test split and writes ``results.json`` to the run folder.

    Attention labels are left out if the encoder's layers or heads differ from the layers or heads of the set.

    Examples:
        >>> evaluate("DISTILLED_DIR", evaluate_n_eval_model=2).metrics["accuracy"].n
        2

    Args:
        distilled: a set, its folder or hub id, or the result of ``distill``.
        data: as in ``distill``; None for the data that the set was made from. The columns, protocol and seed are
            those of the set unless a setting says otherwise.
        labels: as in ``distill``.
        text: as in ``distill``.
        label: as in ``distill``.
        model: the encoder; None for the one that the set was made for.
        output: the run folder; None for a new one in ``./save``.
        **settings: as in ``distill``.

    Raises:
        ValueError: the set does not fit the data or the model, or a setting is unknown.

    """
    name, loaded = _set_of(distilled)
    options = _Options(text, label, model, None, output)
    config, memory = _configured_for_set(loaded, data, labels, options, settings, "base.method=evaluate")
    run = FinishedRun.of(evaluating.evaluate(name, config, memory), config.base.save_dir)
    # A set in memory cannot be read again.
    vars(run)["distilled"] = loaded
    return run


def verify(
    distilled: StrPath,
    data: Data | RunConfig | None = None,
    labels: Sequence[object] | None = None,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    model: StrPath | None = None,
    **settings: Unpack[Settings],
) -> Verification:
    """Checks the files of a saved set, measures its stated score again, and looks for anomalies.

    Args:
        distilled: the folder or hub id of the set.
        data: as in ``evaluate``.
        labels: as in ``distill``.
        text: as in ``distill``.
        label: as in ``distill``.
        model: as in ``evaluate``.
        **settings: as in ``distill``.

    Raises:
        ValueError: a file was damaged or changed, the set does not fit, or the card states no score.

    """
    options = _Options(text, label, model, None, None)
    config, memory = _configured_for_set(_set_of(distilled)[1], data, labels, options, settings)
    return evaluating.verify(distilled, config, memory)


def baseline(
    kind: Baseline | Literal["full", "random", "k-centers", "herding"],
    data: Data | RunConfig,
    labels: Sequence[object] | None = None,
    *,
    training: Training | Literal["inner_loop", "ordinary"] = Training.inner_loop,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    model: StrPath | None = None,
    output: StrPath | None = None,
    **settings: Unpack[Settings],
) -> FinishedRun:
    """Scores a baseline on the test split and writes ``results.json`` to the run folder.

    Examples:
        >>> result = baseline("random", "reviews.csv", text="text", label="label", data_per_label=2)
        >>> result.baseline.data_per_label
        2

    Args:
        kind: the real samples. A coreset has as many as the distilled set of the same settings would have.
        data: as in ``distill``.
        labels: as in ``distill``.
        training: how learners train on a coreset.
        text: as in ``distill``.
        label: as in ``distill``.
        model: as in ``distill``.
        output: as in ``distill``.
        **settings: as in ``distill``.

    Raises:
        ValueError: ``kind`` or a setting is unknown, or the configuration or the data are invalid.
        FloatingPointError: a learner diverged.

    """
    options = _Options(text, label, model, None, output)
    config, memory = _configured(data, labels, options, settings, f"base.method=baseline_{kind}")
    return FinishedRun.of(evaluating.baseline(kind, config, Training(training), memory), config.base.save_dir)


def tune(
    data: Data,
    labels: Sequence[object] | None = None,
    *,
    search: Mapping[str, Sequence[object] | str],
    trials: int = 20,
    study: str | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    model: StrPath | None = None,
    steps: int | None = None,
    output: StrPath | None = None,
    **settings: Unpack[Settings],
) -> StudyResult:
    """Searches the settings with the lowest validation loss, and scores the best run on the test split.

    The first trial leaves every searched setting at its default. A study that was interrupted, or that has fewer
    trials than asked for, goes on. The extra ``tune`` must be installed.

    Args:
        data: as in ``distill``.
        labels: as in ``distill``.
        search: for each searched setting a list of values, or a range such as ``"interval(0.1,0.5)"`` or
            ``"tag(log,interval(0.001,0.1))"``.
        trials: the number of trials of the study, at least 1. Pruned and diverged trials count.
        study: the name of the study and of its folder; None for the names of task and encoder.
        text: as in ``distill``.
        label: as in ``distill``.
        model: as in ``distill``.
        steps: as in ``distill``.
        output: the folder that holds the folder of the study; None for ``./save``.
        **settings: as in ``distill``.

    Raises:
        ValueError: Optuna is not installed, a setting is unknown or cannot be searched, or the study began with
            other settings.
        FloatingPointError: every trial diverged.

    """
    try:
        from textdistill.commands import tune as tuning
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ValueError("tune needs Optuna; install the extra: pip install 'textdistill[tune]'") from error
    options, searched = _Options(text, label, model, steps, output), search_overrides(search)
    overrides, memory = _overrides(data, labels, options, settings, searched, many_runs=True)
    return tuning.tune(overrides, trials, study, memory)


def report(
    *results: StrPath | FinishedRun, format: Format | Literal["html", "markdown", "csv", "latex"] = Format.markdown
) -> str:
    """Compares the results of runs and baselines, as one HTML page or as tables.

    Args:
        *results: results of the functions of this package, ``results.json`` files, run folders, or folders of run
            folders.
        format: the form of the text.

    Raises:
        FileNotFoundError: a path holds no results.
        ValueError: a file was not written by this package.

    """
    # The page needs its template engine, and other functions do not.
    from textdistill.commands import reports

    paths = [result.run_dir if isinstance(result, FinishedRun) else fspath(result) for result in results]
    return reports.report(paths, format if isinstance(format, Format) else Format[format])


class _Options(NamedTuple):
    text: str | Sequence[str] | None
    label: str | None
    model: StrPath | None
    steps: int | None
    output: StrPath | None


def _overrides(
    data: Data | None,
    labels: Sequence[object] | None,
    options: _Options,
    settings: Mapping[str, object],
    searched: Iterable[str] = (),
    many_runs: bool = False,
) -> tuple[list[str], MemoryData | None]:
    """Returns the overrides that arguments stand for, and the data if they are in memory."""
    given = [*setting_overrides(settings), *searched]
    memory = None if data is None or _is_path(data, labels) else _in_memory(data, labels)
    path = cast("StrPath | Sequence[StrPath] | None", data if memory is None else None)
    if memory is not None:
        named = any(override.startswith("data.task_name=") for override in given)
        given += ["data.path=null", *([] if named else [f"data.task_name={MEMORY_TASK}"])]
    return [*to_overrides(path, **options._asdict(), given=given, many_runs=many_runs), *given], memory


def _configured(
    data: Data | RunConfig | None,
    labels: Sequence[object] | None,
    options: _Options,
    settings: Mapping[str, object],
    *first: str,
) -> tuple[RunConfig, MemoryData | None]:
    """Returns the configuration, and the data if they are in memory. Overrides in ``first`` are defaults."""
    if not isinstance(data, RunConfig):
        overrides, memory = _overrides(data, labels, options, settings)
        return configuration.compose(*first, *overrides), memory
    if labels is not None or any(option is not None for option in options) or settings:
        raise ValueError("a RunConfig must be the only description of a run; put the other arguments into compose(...)")
    return data, None


def _configured_for_set(
    distilled: DistilledDataset,
    data: Data | RunConfig | None,
    labels: Sequence[object] | None,
    options: _Options,
    settings: Mapping[str, object],
    *first: str,
) -> tuple[RunConfig, MemoryData | None]:
    """Returns the configuration of the task that a set was made for."""
    if data is None and distilled.metadata.task == MEMORY_TASK:
        raise ValueError("data must be given for a set that was made from data in memory, got none; give the same data")
    return _configured(data, labels, options, settings, *set_overrides(distilled), *first)


def _set_of(distilled: SavedSet) -> tuple[StrPath | DistilledDataset, DistilledDataset]:
    """Returns the set as it was named, and as it was loaded."""
    if isinstance(distilled, FinishedRun):
        return (
            distilled.run_dir / "distilled" if distilled.source is None else distilled.source.distilled,
            distilled.distilled,
        )
    if isinstance(distilled, DistilledDataset):
        return distilled, distilled
    return distilled, DistilledDataset.from_pretrained(
        Path(distilled) if isinstance(distilled, PathLike) else distilled
    )


def _is_path(data: Data, labels: Sequence[object] | None) -> bool:
    """Whether data are a name or paths, and not in memory."""
    if labels is not None or isinstance(data, str | PathLike):
        return labels is None
    listed = isinstance(data, list) and bool(data) and all(isinstance(item, str | PathLike) for item in data)
    if listed and not any(Path(item).exists() for item in data):
        raise ValueError(
            f"data must be files that exist, or texts with their labels, got {len(data)} strings that are no files;"
            " give the labels as the next argument"
        )
    return listed


def _in_memory(data: MemoryData | None, labels: Sequence[object] | None) -> MemoryData | None:
    return data if labels is None else (data, labels)
