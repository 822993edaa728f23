"""Time and peak memory of one outer step by estimator; ``reverse``, unrolling, is what the others are measured against.

    python -m benchmarks.outer_step [--seq-length 512 ...] [--attention cls ...] [--inner-steps 1 ...]

One sample for each of the 4 classes of AG News, a real batch of made-up texts of 96 tokens without padding. ``reverse``
is our own, freed of the waste of the reference's recipe: the real batch goes through fused attention, and word
embeddings get no gradient.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from benchmarks.measure import Row, alternate, arguments, median, observe, ratio
from benchmarks.report import record
from benchmarks.workload import CLASS_NAMES, OurStep, configure, made_up_batch, noise_set
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator, Trajectory
from textdistill.method.learner import Learner

KEY = ("model", "seq_length", "attention", "inner_steps", "estimator", "trajectory")
TOKENS = 96  # a real text; AG News is seldom longer
STEPS = 3  # the fastest counts: all do the same work


def measured(model: str, tokens: int, overrides: Sequence[str]) -> Row:
    """Seconds of an outer step, and its peak memory in MB above the idle process."""
    config = configure(model, *overrides)
    learner = Learner(config.model, CLASS_NAMES)
    step = OurStep(config, learner, noise_set(config, learner))
    batch = made_up_batch(config, learner, tokens)
    seconds, peak = observe(lambda index: step(batch, index), STEPS)
    return {"seconds": min(seconds), "peak_mb": peak}


def rows(given: Namespace) -> Iterator[Row]:
    """One a setting and estimator."""
    for seq_length, attention, inner_steps in product(given.seq_length, given.attention, given.inner_steps):
        overrides = [
            f"distilled_data.seq_length={seq_length}",
            f"distilled_data.attention_label_type={attention}",
            f"learner_train.train_step={inner_steps}",
        ]
        variants = {}
        for estimator, trajectory in product(given.estimator, given.trajectory):
            # One step leaves nothing to run again, and reverse keeps its graph.
            if trajectory is Trajectory.keep or (inner_steps > 1 and estimator is not Estimator.reverse):
                settings = [*overrides, f"train.estimator={estimator}", f"train.trajectory={trajectory}"]
                variants[estimator, trajectory] = (given.model, given.tokens, settings)
        found = alternate(measured, variants, given.repeats)
        reverse = found[Estimator.reverse, Trajectory.keep]
        for (estimator, trajectory), results in found.items():
            time_ratio, spread = ratio(reverse, results, "seconds")
            yield {
                "model": Path(given.model).name,
                "seq_length": seq_length,
                "attention": attention,
                "inner_steps": inner_steps,
                "estimator": estimator,
                "trajectory": trajectory,
                "seconds": median(results, "seconds"),
                "peak_mb": median(results, "peak_mb"),
                "time_ratio": time_ratio,
                "time_ratio_spread": spread,
                "memory_ratio": ratio(results, reverse, "peak_mb")[0],
            }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and the table."""
    parser = arguments(__doc__)
    parser.add_argument("--seq-length", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--attention", nargs="+", choices=list(AttentionLabelType), default=list(AttentionLabelType))
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1, 3, 5, 8])
    parser.add_argument("--estimator", nargs="+", choices=list(Estimator), default=list(Estimator))
    parser.add_argument(
        "--trajectory", nargs="+", choices=list(Trajectory), default=[Trajectory.keep, Trajectory.checkpoint]
    )
    given = parser.parse_args(argv)
    given.estimator = sorted({Estimator.reverse, *map(Estimator, given.estimator)})
    given.trajectory = sorted({Trajectory.keep, *map(Trajectory, given.trajectory)})
    given.tokens = TOKENS
    if given.quick:
        given.seq_length, given.attention, given.inner_steps = [16], [AttentionLabelType.cls], [2]
        given.tokens, given.repeats = 16, 1
    record("outer_step", given, KEY, rows(given))


if __name__ == "__main__":
    main()
