"""Implements ``textdistill tune``, an Optuna study of training runs that searches for the best validation.

The search space is written like a Hydra sweep. Each trial trains in its own run folder and is not scored. Only the best
trial is scored on the test split. The seed and the earlier trials determine each trial's settings and when it stops. A
killed study therefore reaches the same result as an uninterrupted study.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep, Transformer
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from textdistill.commands.distill import distill, train
from textdistill.config import RunConfig, compose
from textdistill.core.seeding import stream_seed
from textdistill.data.splits import Protocol
from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import flatten
from textdistill.runs.mlflow import Status, SweepRun
from textdistill.runs.results import RunResult
from textdistill.runs.tracker import Tracking
from textdistill.training.config import SelectBy
from textdistill.training.trainer import Callback, StopTraining

logger = logging.getLogger(__name__)

STUDIES_FILE = "optuna.db"
# Creating the tables of the store takes seconds. Other processes wait at most this long for the tables.
STORE_SECONDS = 60.0
# This attribute of the study holds the settings and the search space that the study began with.
SETTINGS = "settings"


@dataclass(frozen=True)
class TrialResult:
    """One trial of a study.

    Attributes:
        number: the number of the trial, from 0.
        state: ``complete``, ``pruned`` or ``fail``.
        overrides: the settings that the trial tried.
        validation: the metric ``train.select_by`` at the best step, or at the last validation of a pruned trial; None
            without a validation.

    """

    number: int
    state: str
    overrides: list[str]
    validation: float | None

    @classmethod
    def of(cls, trial: FrozenTrial) -> TrialResult:
        """Reads the record of a trial."""
        return cls(trial.number, trial.state.name.lower(), _overrides(trial.params), trial.value)


@dataclass(frozen=True)
class StudyResult:
    """The result of a study.

    Attributes:
        study: the name of the study.
        trials: all trials, in order.
        best: the complete trial with the best validation.
        overrides: the settings that reproduce the best trial with ``distill``.
        result: the result of the best trial, scored on the test split.
        run_dir: the run folder of the best trial.
        select_by: the validation metric that the trials are compared by.

    """

    study: str
    trials: list[TrialResult]
    best: TrialResult
    overrides: list[str]
    result: RunResult
    run_dir: Path
    select_by: SelectBy


def tune(overrides: Sequence[str], trials: int = 20, study: str | None = None, data: object = None) -> StudyResult:
    """Searches the settings with the best validation, and scores the best run on the test split.

    ``train.select_by`` names the validation metric: the loss is minimised, and any other metric is maximised.

    The first trial leaves every searched key at its default. The TPE sampler suggests the settings of later trials. A
    trial stops if its validation is worse than the median of completed trials at the same step. A study that was
    interrupted, or that has fewer trials than requested, continues.

    Args:
        overrides: the overrides, as on the command line of ``distill``. Overrides with several values make up the
            search space:
            ``key=a,b`` and ``key=choice(a,b)``, ``key=range(...)``, ``key=interval(a,b)``,
            ``key=tag(log,interval(a,b))``, ``key=tag(int,interval(a,b))``, ``key=tag(int,log,interval(a,b))``.
        trials: the number of trials of the study, at least 1. Pruned and diverged trials count.
        study: the name of the study and of its folder in ``base.save_dir_root``; None for
            ``base.experiment_name``.
        data: data in memory, as ``read_memory`` takes them; None to read what ``data.*`` names.

    Raises:
        ValueError: no key has several values, a setting cannot be searched, the study began with other settings, or
            ``distill`` rejects the configuration.
        FloatingPointError: every trial diverged.

    """
    fixed, space = search_space(overrides)
    if trials < 1:
        raise ValueError(f"--trials must be at least 1, got {trials}")
    base = compose(*fixed)
    name = study or base.base.experiment_name
    _check(base, fixed, space, name)
    root = Path(base.base.save_dir_root)

    def configure(number: int, own: Sequence[str]) -> RunConfig:
        folder = QuotedString(str(root / name / f"trial_{number}"), Quote.single).with_quotes()
        names = [f"base.save_dir={folder}", f"base.run_name={name}.trial_{number}", f"base.sweep={name}"]
        return compose(*fixed, *own, *names, "train.resume=true")

    # One process holds a study, so a trial in the state RUNNING was left by a process that died.
    with RunFolder(root / name).lock(), _sweep_run(base, name, overrides):
        optuna_study = _open(root, name, base, space)
        results = _run_trials(optuna_study, base, space, trials, configure, data)
        best = _best(results, base.train.select_by, name)
        logger.info("trial %d is the best; scoring it", best.number)
        config = configure(best.number, best.overrides)
        result = distill(config, data=data)
    run_dir, select_by = config.run_folder.path, config.train.select_by
    return StudyResult(name, results, best, [*fixed, *best.overrides], result, run_dir, select_by)


@contextmanager
def _sweep_run(base: RunConfig, name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Gives the runs of a study a parent in MLflow. The parent's status is the outcome of the block."""
    if base.tracking is not Tracking.mlflow:
        yield
        return
    parent = SweepRun(base.destination, name, overrides)
    status = Status.FAILED
    try:
        yield
        status = Status.FINISHED
    finally:
        parent.close(status)


def _run_trials(
    study: optuna.Study,
    base: RunConfig,
    space: Mapping[str, BaseDistribution],
    trials: int,
    configure: Callable[[int, Sequence[str]], RunConfig],
    data: object,
) -> list[TrialResult]:
    """Runs trials until the study has ``trials`` of them."""
    while (trial := _next(study, trials, base.base.seed)) is not None:
        # The first trial does not set a key whose default lies outside the search space, such as null.
        keys = _defaults(base, space) if trial.number == 0 else space
        own = _overrides({key: _suggest(trial, key, space[key]) for key in keys})
        logger.info("trial %d of %d: %s", trial.number, trials, " ".join(own) or "the defaults")
        _run(study, trial, configure(trial.number, own), data)
    return [TrialResult.of(trial) for trial in study.trials if trial.state is not TrialState.WAITING]


def _best(trials: Sequence[TrialResult], select_by: SelectBy, name: str) -> TrialResult:
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        raise FloatingPointError(
            f"at least one trial of study {name} must complete, got none of {len(trials)}; lower the"
            " learning rates or narrow the search, and choose another --study"
        )
    return min(complete, key=lambda trial: select_by.cost(cast(float, trial.validation)))


def search_space(overrides: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Splits overrides into overrides with one value and the search space, which has a distribution for each key.

    Each choice stays the text that an override takes.

    Raises:
        ValueError: Hydra cannot read an override, or no override has several values.

    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ValueError(f"cannot read the overrides: {error}") from error
    # Of two overrides for one key, the last counts.
    by_key = {override.get_key_element(): override for override in parsed}
    fixed = [str(override.input_line) for override in by_key.values() if not override.is_sweep_override()]
    space = {key: _distribution(override) for key, override in by_key.items() if override.is_sweep_override()}
    if not space:
        raise ValueError(
            "tune needs at least one key with several values to search, such as distilled_data.label_type=soft,hard or"
            " 'train.lr_inputs_embeds=tag(log,interval(0.001,0.1))'"
        )
    return fixed, space


def _distribution(override: Override) -> BaseDistribution:
    value: Any = override.value()
    try:
        if isinstance(value, IntervalSweep):
            assert value.start is not None
            assert value.end is not None
            log = "log" in value.tags
            if "int" in value.tags:
                return IntDistribution(int(value.start), int(value.end), log=log)
            return FloatDistribution(value.start, value.end, log=log)
        if isinstance(value, RangeSweep):
            # A Hydra sweep also leaves out the stop of a range.
            values = sorted(value.range())
            low, high, step = values[0], values[-1], abs(value.step)
            if all(isinstance(number, int) for number in values):
                return IntDistribution(low, high, step=int(step))
            return FloatDistribution(low, high, step=step)
        # Sort the choices: shuffle() must not change the search space when the study continues.
        return CategoricalDistribution(sorted(set(override.sweep_string_iterator())))
    except (ValueError, IndexError, HydraException) as error:
        raise ValueError(f"{override.input_line} must be a search that Optuna can make: {error}") from error


def _check(base: RunConfig, fixed: Sequence[str], space: Mapping[str, BaseDistribution], name: str) -> None:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"--study must be letters, digits, '.', '-' and '_', got {name!r}")
    stated_keys = {override.partition("=")[0] for override in fixed} | set(space)
    for key in ("base.save_dir", "base.run_name", "base.sweep", "train.save_ckpt_dir", "train.resume"):
        if key in stated_keys:
            raise ValueError(f"{key} must be left out of tune, which sets it for every trial; --study names the folder")
    if base.data.protocol is Protocol.paper:
        raise ValueError(
            "data.protocol must be clean for tune, got paper: the best trial would be chosen on the test split; set"
            " data.protocol=clean"
        )
    if "train.select_by" in space:
        raise ValueError("train.select_by must have one value for tune, which compares all trials by it; choose one")
    if base.train.skip_train:
        raise ValueError("train.skip_train must be false for tune, got true: without training there is no validation")
    base.check()
    # Check every searched key and the type of its values before the study is created.
    for key, asked in space.items():
        ends = asked.choices if isinstance(asked, CategoricalDistribution) else (asked.low, asked.high)  # type: ignore[attr-defined]
        for value in ends:
            compose(*fixed, *_overrides({key: value}))


def _open(root: Path, name: str, base: RunConfig, space: Mapping[str, BaseDistribution]) -> optuna.Study:
    """Opens the study or creates it with the defaults as its first trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with FileLock(root / f"{STUDIES_FILE}.lock", timeout=STORE_SECONDS):
        study = optuna.create_study(
            storage=f"sqlite:///{root.resolve() / STUDIES_FILE}", study_name=name, load_if_exists=True,
            direction="minimize" if base.train.select_by is SelectBy.loss else "maximize",
        )  # fmt: skip
    # The saved settings went through JSON, so the current settings must as well.
    settings = json.loads(json.dumps(base.fixed() | {key: str(asked) for key, asked in space.items()}))
    begun = study.user_attrs.get(SETTINGS, settings)
    differ = [key for key in sorted(begun.keys() | settings.keys()) if begun.get(key) != settings.get(key)]
    if differ:
        listed = ", ".join(f"{key} (was {begun.get(key)}, now {settings.get(key)})" for key in differ)
        raise ValueError(
            f"study {name} must keep the settings and the search space that it began with, which differ in {listed};"
            " restore these settings, or choose another --study"
        )
    study.set_user_attr(SETTINGS, settings)
    if not study.trials:
        study.enqueue_trial(_defaults(base, space))
    return study


def _defaults(base: RunConfig, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Returns the configuration's values of the searched keys, except values outside the search space."""
    settings, defaults = dict(flatten(asdict(base))), {}
    for key, asked in space.items():
        value = settings.get(key)
        if isinstance(asked, CategoricalDistribution):
            value = Transformer.str(value)
            inside = value in asked.choices
        else:
            assert isinstance(asked, IntDistribution | FloatDistribution)
            inside = value is not None and asked.low <= value <= asked.high and asked.step in (None, 1)
        if inside:
            defaults[key] = value
    return defaults


def _next(study: optuna.Study, trials: int, seed: int) -> Trial | None:
    """Returns the trial that a dead process left, or a new trial, or None if the study is complete."""
    states = [trial.state for trial in study.trials]
    if TrialState.RUNNING in states:
        number = states.index(TrialState.RUNNING)
    else:
        number = len(states) - states.count(TrialState.WAITING)
    # The number of a trial seeds its draws, so every process draws the same settings.
    study.sampler = TPESampler(seed=stream_seed(seed, "trial", number) % 2**32)
    study.pruner = MedianPruner()
    if TrialState.RUNNING in states:
        return Trial(study, study.trials[number]._trial_id)
    return study.ask() if number < trials else None


def _suggest(trial: Trial, key: str, asked: BaseDistribution) -> Any:
    if isinstance(asked, CategoricalDistribution):
        return trial.suggest_categorical(key, asked.choices)
    if isinstance(asked, IntDistribution):
        return trial.suggest_int(key, asked.low, asked.high, step=asked.step, log=asked.log)
    assert isinstance(asked, FloatDistribution)
    return trial.suggest_float(key, asked.low, asked.high, step=asked.step, log=asked.log)


def _run(study: optuna.Study, trial: Trial, config: RunConfig, data: object) -> None:
    """Runs a trial. A trial that is interrupted or fails for an external reason continues in the next call."""
    try:
        config.check()
    except ValueError as error:
        logger.warning("trial %d cannot run: %s", trial.number, error)
        study.tell(trial, state=TrialState.FAIL)
        return
    try:
        validation = train(config, _report_to(trial, config.train.select_by), data).validation
        assert validation is not None
    except StopTraining as error:
        logger.info("trial %d: %s", trial.number, error)
        study.tell(trial, state=TrialState.PRUNED)
    except FloatingPointError as error:
        logger.warning("trial %d diverged: %s", trial.number, error)
        study.tell(trial, state=TrialState.FAIL)
    else:
        name = config.train.select_by
        logger.info("trial %d: validation %s %.4g", trial.number, name, validation[name])
        study.tell(trial, validation[name])


def _report_to(trial: Trial, select_by: SelectBy) -> Callback:
    """Returns a callback that reports validations to a trial and stops the trial if Optuna prunes it."""
    # A dead process may have reported steps after its last checkpoint. Optuna accepts each step once.
    reported = set(trial.study.trials[trial.number].intermediate_values)

    def report(step: int, metrics: Mapping[str, float]) -> None:
        # At step 0 nothing has been learned yet.
        if step == 0:
            return
        value = metrics[select_by]
        if step not in reported:
            trial.report(value, step)
        if trial.should_prune():
            raise StopTraining(f"stopped at step {step}: validation {select_by} {value:.4g} is worse than the median")

    return report


def _overrides(params: Mapping[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]
