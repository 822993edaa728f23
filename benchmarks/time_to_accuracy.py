"""AG News to a validation accuracy of 0.80: our defaults against the reference's recipe.

    python -m benchmarks.time_to_accuracy [--data DIR] [--rates LR_INPUTS_EMBEDS LR_INIT]

Both train one sample per class with attention labels cls and unrestricted labels on the same split, with schedules of
the same length, validated every few outer steps on the same rows with the same heads; validation does not count as
time. Ours is ``Trainer`` with our defaults, checkpoints included. The reference (``reference_recipe``) has its own 512
positions and the best rates of the sweep in its README: those given, or those with the lowest validation loss after
short trials on the same schedule. It is stopped at 8 times our seconds; the ratio is then a lower bound. Each round
has a seed of its own.
"""

from __future__ import annotations

import math
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from benchmarks.measure import Row, arguments, fresh, median, ratio
from benchmarks.reference_recipe import ReferenceStep, configure_reference, random_batches
from benchmarks.report import record
from benchmarks.workload import CLASS_NAMES, configure, noise_set, real_splits
from textdistill.config import RunConfig
from textdistill.core.processes import Processes
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import SetMetadata, model_metadata
from textdistill.evaluation.scoring import score, trained_on
from textdistill.method.learner import Learner
from textdistill.runs.folder import RunFolder
from textdistill.runs.tracker import RunTracker
from textdistill.training.checkpoint import CheckpointFile
from textdistill.training.outer_step import OuterStep, RealBatches
from textdistill.training.schedule import Schedule
from textdistill.training.trainer import StopTraining, Trainer

KEY = ("model", "recipe", "lr_inputs_embeds", "lr_init")
SWEEP = ((0.1, 0.01, 0.001), (0.01, 0.1))  # lr_inputs_embeds, lr_init: the command in the reference's README
STOP_AT = 8.0  # times our seconds
HEADS = 2


@dataclass(frozen=True)
class Setting:
    """What both sides share."""

    model: str
    data: str
    cache: str
    max_steps: int
    val_steps: int
    goal: float
    heads: int
    overrides: tuple[str, ...] = ()

    def common(self, seed: int) -> list[str]:
        """Overrides of the configuration."""
        paths = [f"data.path={self.data}", f"data.preprocessed_datasets_path={self.cache}", f"base.seed={seed}"]
        return [*paths, f"train.max_steps={self.max_steps}", f"train.val_steps={self.val_steps}", *self.overrides]

    def reference(self, seed: int, lr_inputs_embeds: float, lr_init: float) -> RunConfig:
        """The reference's configuration."""
        rates = (f"train.lr_inputs_embeds={lr_inputs_embeds}", f"distilled_data.lr_init={lr_init}")
        return configure_reference(self.model, *rates, *self.common(seed))


class Clock:
    """Scores sets on the validation rows, with the same heads every time, and stands still meanwhile."""

    def __init__(self, heads: int, config: RunConfig, learner: Learner, split: TokenizedSplit) -> None:
        self.heads, self.config, self.learner, self.split = heads, config, learner, split
        self.seconds, self.validations, self.scores = 0.0, 0, {"loss": math.inf, "accuracy": 0.0}
        self._resumed = time.perf_counter()

    def running(self) -> float:
        """Seconds since the first validation, those of validations left out."""
        return self.seconds + time.perf_counter() - self._resumed

    def __call__(self, distilled: DistilledDataset) -> dict[str, float]:
        """Mean metrics over the heads."""
        self.seconds = self.running() if self.validations else 0.0
        train = trained_on(distilled, self.learner, self.config.base.seed, "validation")
        size = self.config.data.valid_batch_size
        scores = score(train, self.learner, self.split, ("accuracy",), self.heads, size, Processes())
        self.scores = {name: value.mean for name, value in scores.metrics.items()}
        self.validations += 1
        self._resumed = time.perf_counter()
        return self.scores


def prepared(config: RunConfig) -> tuple[Learner, dict[str, TokenizedSplit]]:
    """The learner and the splits."""
    learner = Learner(config.model, CLASS_NAMES)
    config.data.max_length = min(config.data.max_length, learner.max_positions)
    return learner, real_splits(config, learner)


def ours(setting: Setting, seed: int) -> Row:
    """Our seconds to the goal."""
    config = configure(setting.model, *setting.common(seed))
    learner, splits = prepared(config)
    metadata = SetMetadata(config.data.task_name, CLASS_NAMES, model_metadata(learner))
    distilled = initial_set(config.distilled_data, config.learner_train, metadata, learner, splits["train"], seed)
    clock = Clock(setting.heads, config, learner, splits["validation"])

    def stop_at_goal(step: int, metrics: Mapping[str, float]) -> None:
        if step > 0 and metrics["accuracy"] >= setting.goal:
            raise StopTraining

    reached = False
    with tempfile.TemporaryDirectory() as folder:
        run_folder, processes = RunFolder(folder), Processes()
        trainer = Trainer(
            OuterStep(distilled, learner, config.train, seed, processes),
            RealBatches(
                splits["train"],
                Schedule.of(config.train, splits["train"], config.data.train_batch_size, processes),
                seed,
                processes,
            ),
            clock,
            run_folder,
            CheckpointFile(run_folder.checkpoint, {}),
            RunTracker(run_folder, None),
            stop_at_goal,
        )
        try:
            trainer.train()
        except StopTraining:
            reached = True
    steps = min((clock.validations - 1) * setting.val_steps, setting.max_steps)
    return {"seconds": clock.seconds, "outer_steps": steps, "reached": reached, **clock.scores}


def reference(setting: Setting, seed: int, lr_inputs_embeds: float, lr_init: float, limit: float) -> Row:
    """The reference's seconds to the goal, or those at which ``limit`` stopped it."""
    config = setting.reference(seed, lr_inputs_embeds, lr_init)
    learner, splits = prepared(config)
    distilled = noise_set(config, learner)
    step = ReferenceStep(learner, distilled, config.train, seed, setting.max_steps)
    clock = Clock(setting.heads, config, learner, splits["validation"])
    clock(distilled)
    batches = random_batches(splits["train"], config.data.train_batch_size, seed)
    for done, batch in enumerate(islice(batches, setting.max_steps), start=1):
        step(batch, done)
        late = clock.running() >= limit
        due = late or done % setting.val_steps == 0 or done == setting.max_steps
        if due and (clock(distilled)["accuracy"] >= setting.goal or late):
            break
    reached = clock.scores["accuracy"] >= setting.goal
    return {"seconds": clock.seconds, "outer_steps": done, "reached": reached, **clock.scores}


def trials(setting: Setting, seed: int, steps: int) -> Row:
    """The rates of the sweep with the lowest validation loss after ``steps`` outer steps, and every trial."""
    found: list[Row] = []
    configs = [setting.reference(seed, *rates) for rates in product(*SWEEP)]
    learner, splits = prepared(configs[0])
    for config in configs:
        distilled = noise_set(config, learner)
        step = ReferenceStep(learner, distilled, config.train, seed, setting.max_steps)
        batches = random_batches(splits["train"], config.data.train_batch_size, seed)
        for done, batch in enumerate(islice(batches, steps), start=1):
            step(batch, done)
        rates = {"lr_inputs_embeds": config.train.lr_inputs_embeds, "lr_init": config.distilled_data.lr_init}
        found.append(rates | Clock(setting.heads, config, learner, splits["validation"])(distilled))
    return {"trials": sorted(found, key=lambda trial: math.inf if math.isnan(trial["loss"]) else trial["loss"])}


def rows(given: Namespace) -> Iterator[Row]:
    """The trials, then one a side."""
    with tempfile.TemporaryDirectory() as cache:
        config = configure(given.model)
        setting = Setting(
            model=given.model,
            data=str(given.data.resolve()),
            cache=cache,
            max_steps=given.max_steps,
            val_steps=given.val_steps,
            goal=given.goal,
            heads=1 if given.quick else HEADS,
            overrides=("distilled_data.seq_length=16",) if given.quick else (),
        )
        first, model = config.base.seed, Path(given.model).name
        if given.rates is None:
            tried = fresh(trials, setting, first, given.trial_steps)
            assert tried is not None
            for trial in tried["trials"]:
                yield _row({"model": model, "recipe": "reference, trial", "outer_steps": given.trial_steps, **trial})
            given.rates = [tried["trials"][0][key] for key in KEY[2:]]
        found: dict[str, list[Row | None]] = {"ours": [], "reference": []}
        for seed in range(first, first + given.repeats):
            result = fresh(ours, setting, seed)
            if result is None or not result["reached"]:
                raise RuntimeError(
                    f"ours must reach --goal={given.goal} within --max-steps={given.max_steps}: {result}"
                )
            found["ours"].append(result)
            found["reference"].append(fresh(reference, setting, seed, *given.rates, STOP_AT * result["seconds"]))
    rates = {"ours": (config.train.lr_inputs_embeds, config.distilled_data.lr_init), "reference": given.rates}
    for recipe, results in found.items():
        time_ratio, spread = ratio(found["reference"], results, "seconds")
        measured = {key: median(results, key) for key in ("outer_steps", "seconds", "loss", "accuracy")}
        stopped = sum(not r["reached"] for r in results if r)
        yield _row(
            dict(zip(KEY, (model, recipe, *rates[recipe]), strict=True))
            | measured
            | {"stopped": stopped, "time_ratio": time_ratio, "time_ratio_spread": spread}
        )


def _row(values: Row) -> Row:
    measured = ("outer_steps", "seconds", "loss", "accuracy", "stopped", "time_ratio", "time_ratio_spread")
    return {key: values.get(key) for key in (*KEY, *measured)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and the table."""
    parser = arguments(__doc__, data=True)
    parser.add_argument("--goal", type=float, default=0.80, help="validation accuracy (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, default=320, help="length of the schedules (default: %(default)s)")
    parser.add_argument("--val-steps", type=int, default=10, help="outer steps a validation (default: %(default)s)")
    parser.add_argument("--rates", type=float, nargs=2, metavar=("LR_INPUTS_EMBEDS", "LR_INIT"), help="no trials")
    parser.add_argument("--trial-steps", type=int, default=40, help="outer steps a trial (default: %(default)s)")
    given = parser.parse_args(argv)
    if given.quick:
        given.goal, given.max_steps, given.val_steps, given.trial_steps, given.repeats = 0.0, 2, 1, 1, 1
    record("time_to_accuracy", given, KEY, rows(given))


if __name__ == "__main__":
    main()
