"""``textdistill tune``: a search for better settings by validation loss, an Optuna study of training runs.

The search space is written as a sweep of Hydra is. A trial is a run like any other, in a folder of its own, that ends
before its score; only the best one goes on to the reported split. What a trial tries and where it is stopped depends on
the seed and on the trials before it, so that a study that was killed goes on to the end that it would have had.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep, Transformer
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from textdistill.commands.distill import Stopped, distill, train
from textdistill.config import RunConfig, compose
from textdistill.core.seeding import stream_seed
from textdistill.data.task import Protocol
from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import Tracker, flatten
from textdistill.runs.mlflow import Status, SweepRun
from textdistill.runs.tracker import Tracking

logger = logging.getLogger(__name__)

STUDIES_FILE = "optuna.db"
# Another process creates the tables within seconds.
STORE_SECONDS = 60.0
# The study's attribute that keeps what it began with.
SETTINGS = "settings"


def tune(overrides: Sequence[str], trials: int = 20, study: str | None = None) -> dict[str, Any]:
    """Searches the settings with the lowest validation loss, and scores the best run on the reported split.

    The first trial is the configuration without the search: every searched key at its default. The others are
    suggested by TPE; one whose validation loss is worse than the median of the others' at the same step is stopped.
    A study that was interrupted, or that has fewer trials than asked for, goes on.

    Args:
        overrides: as on the command line of ``distill``; those with several values make up the search space:
            ``key=a,b`` and ``key=choice(a,b)``, ``key=range(...)``, ``key=interval(a,b)``,
            ``key=tag(log,interval(a,b))``, ``key=tag(int,interval(a,b))``, ``key=tag(int,log,interval(a,b))``.
        trials: of the study in all, at least 1; those stopped, and those that diverged, count.
        study: its name, and that of the folder of its runs in ``base.save_dir_root``; None: ``base.experiment_name``.

    Returns:
        ``study``; ``trials``, each with ``number``, ``state`` (complete, pruned or fail), ``overrides`` and
        ``validation_loss`` (None where there is none); ``best``, one of them; ``overrides``, what reproduces it with
        ``distill``; ``results``, what ``distill`` returns of it; ``run_dir``.

    Raises:
        ValueError: no key, or a setting, to search; the study was begun with others; or as ``distill``.
        FloatingPointError: every trial diverged.

    """
    fixed, space = search_space(overrides)
    if trials < 1:
        raise ValueError(f"--trials must be at least 1, got {trials}")
    base = compose(*fixed)
    name = study or base.base.experiment_name
    _check(base, fixed, space, name)
    root = Path(base.base.save_dir_root)

    def composed(number: int, own: Sequence[str]) -> RunConfig:
        folder = QuotedString(str(root / name / f"trial_{number}"), Quote.single).with_quotes()
        names = [f"base.save_dir={folder}", f"base.run_name={name}.trial_{number}", f"base.sweep={name}"]
        return compose(*fixed, *own, *names, "train.resume=true")

    # One process a study: a trial that is running now was left by a process that died.
    with RunFolder(root / name).lock():
        found = _open(root, name, base, space)
        parent = None
        if base.tracking is Tracking.mlflow:
            parent = SweepRun(root, base.base.experiment_name, name, overrides)
        status = Status.FAILED
        try:
            while (trial := _next(found, trials, base.base.seed)) is not None:
                # The first trial leaves keys whose default is outside the space, null for one, to the configuration.
                keys = _defaults(base, space) if trial.number == 0 else space
                own = _overrides({key: _suggest(trial, key, space[key]) for key in keys})
                logger.info("trial %d of %d: %s", trial.number, trials, " ".join(own) or "the defaults")
                _run(found, trial, composed(trial.number, own))
            described = [_described(trial) for trial in found.trials if trial.state is not TrialState.WAITING]
            complete = [trial for trial in described if trial["state"] == "complete"]
            if not complete:
                raise FloatingPointError(
                    f"at least one trial of study {name} must come to its end, got none of {len(described)}: lower the"
                    " learning rates or narrow the search, and choose another --study"
                )
            best = min(complete, key=lambda trial: trial["validation_loss"])
            logger.info("trial %d is the best; scoring it", best["number"])
            config = composed(best["number"], best["overrides"])
            results = distill(config)
            status = Status.FINISHED
        finally:
            if parent is not None:
                parent.close(status)
    return {
        "study": name,
        "trials": described,
        "best": best,
        "overrides": [*fixed, *best["overrides"]],
        "results": results,
        "run_dir": config.base.save_dir,
    }


def search_space(overrides: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """The overrides with one value, and by key what those with several ask to search.

    Choices are kept as the text that the override for them takes.

    Raises:
        ValueError: an override is not one of Hydra's, or none has several values.

    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ValueError(f"cannot read the overrides: {error}") from error
    # Of two for one key the last one counts.
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
            # As -m has it: without the stop.
            values = sorted(value.range())
            low, high, step = values[0], values[-1], abs(value.step)
            if all(isinstance(number, int) for number in values):
                return IntDistribution(low, high, step=int(step))
            return FloatDistribution(low, high, step=step)
        # Sorted: shuffle() must not make another space of it when the study goes on.
        return CategoricalDistribution(sorted(set(override.sweep_string_iterator())))
    except (ValueError, IndexError, HydraException) as error:
        raise ValueError(f"{override.input_line} must be a search that Optuna can make: {error}") from error


def _check(base: RunConfig, fixed: Sequence[str], space: Mapping[str, BaseDistribution], name: str) -> None:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"--study must be letters, digits, '.', '-' and '_', got {name!r}")
    given = {override.partition("=")[0] for override in fixed} | set(space)
    for key in ("base.save_dir", "base.run_name", "base.sweep", "train.save_ckpt_dir", "train.resume"):
        if key in given:
            raise ValueError(f"{key} must be left out of tune, which sets it for every trial; --study names the folder")
    if base.data.protocol is Protocol.paper:
        raise ValueError(
            "data.protocol must be clean for tune, got paper: the best trial would be chosen on the reported split"
        )
    if base.train.skip_train:
        raise ValueError("train.skip_train must be false for tune, got true: without training there is no validation")
    base.check()
    # Every searched key, and the type of its values, before there is a study.
    for key, asked in space.items():
        ends = asked.choices if isinstance(asked, CategoricalDistribution) else (asked.low, asked.high)  # type: ignore[attr-defined]
        for value in ends:
            compose(*fixed, *_overrides({key: value}))


def _open(root: Path, name: str, base: RunConfig, space: Mapping[str, BaseDistribution]) -> optuna.Study:
    """The study, new with the defaults as its first trial, or as it was left."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with FileLock(root / f"{STUDIES_FILE}.lock", timeout=STORE_SECONDS):
        study = optuna.create_study(
            storage=f"sqlite:///{root.resolve() / STUDIES_FILE}", study_name=name, load_if_exists=True
        )
    # Through JSON, as the saved ones were.
    settings = json.loads(json.dumps(base.fixed() | {key: str(asked) for key, asked in space.items()}))
    begun = study.user_attrs.get(SETTINGS, settings)
    differ = [key for key in sorted(begun.keys() | settings.keys()) if begun.get(key) != settings.get(key)]
    if differ:
        listed = ", ".join(f"{key} (was {begun.get(key)}, now {settings.get(key)})" for key in differ)
        raise ValueError(
            f"study {name} goes on only with the settings and the search that it began with; they differ in {listed};"
            " restore these, or choose another --study"
        )
    study.set_user_attr(SETTINGS, settings)
    if not study.trials:
        study.enqueue_trial(_defaults(base, space))
    return study


def _defaults(base: RunConfig, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The configuration's own values of the searched keys, where the search could find them."""
    settings, found = dict(flatten(asdict(base))), {}
    for key, asked in space.items():
        value = settings.get(key)
        if isinstance(asked, CategoricalDistribution):
            value = Transformer.str(value)
            inside = value in asked.choices
        else:
            assert isinstance(asked, IntDistribution | FloatDistribution)
            inside = value is not None and asked.low <= value <= asked.high and asked.step in (None, 1)
        if inside:
            found[key] = value
    return found


def _next(study: optuna.Study, trials: int, seed: int) -> Trial | None:
    """The trial that a process left when it died, else a new one, else None for the end."""
    states = [trial.state for trial in study.trials]
    if TrialState.RUNNING in states:
        number = states.index(TrialState.RUNNING)
    else:
        number = len(states) - states.count(TrialState.WAITING)
    # The draws of a trial belong to its number, whichever process makes it.
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


def _run(study: optuna.Study, trial: Trial, config: RunConfig) -> None:
    """Makes a trial; where it is interrupted, or fails for a reason outside it, it stays open and goes on next time."""
    try:
        config.check()
    except ValueError as error:
        logger.warning("trial %d cannot be made: %s", trial.number, error)
        study.tell(trial, state=TrialState.FAIL)
        return
    try:
        validation = train(config, lambda tracker: _Reporting(tracker, trial)).validation
        assert validation is not None
    except Stopped as error:
        logger.info("trial %d: %s", trial.number, error)
        study.tell(trial, state=TrialState.PRUNED)
    except FloatingPointError as error:
        logger.warning("trial %d diverged: %s", trial.number, error)
        study.tell(trial, state=TrialState.FAIL)
    else:
        logger.info("trial %d: validation loss %.4g", trial.number, validation["loss"])
        study.tell(trial, validation["loss"])


class _Reporting:
    """A tracker that tells the trial its validation losses too.

    Raises:
        Stopped: from ``log_metrics``, where the trial is not worth going on with.

    """

    def __init__(self, tracker: Tracker, trial: Trial) -> None:
        self._tracker, self._trial = tracker, trial
        # By a process that died, perhaps beyond its last checkpoint.
        self._reported = set(trial.study.trials[trial.number].intermediate_values)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        self._tracker.log_metrics(metrics, step)
        loss = metrics.get("validation_loss")
        # Step 0 comes before anything is learned.
        if loss is None or step == 0:
            return
        if step not in self._reported:
            self._trial.report(loss, step)
        if self._trial.should_prune():
            raise Stopped(f"stopped at step {step}: validation loss {loss:.4g} is worse than the median")

    def mark(self) -> int:
        return self._tracker.mark()

    def rewind(self, mark: int) -> None:
        self._tracker.rewind(mark)


def _overrides(params: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]


def _described(trial: FrozenTrial) -> dict[str, Any]:
    state = trial.state.name.lower()
    # Of a stopped trial Optuna keeps the last one.
    return {
        "number": trial.number,
        "state": state,
        "overrides": _overrides(trial.params),
        "validation_loss": trial.value,
    }
