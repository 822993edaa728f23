"""Learners times rows scored a second: our ``score`` against bare ``transformers`` passes over the same batches.

    python -m benchmarks.evaluation [--data DIR]

AG News, the reported split, in the batches that evaluation makes. Bare is a transformers model with ``sdpa`` attention
under ``torch.inference_mode`` over batches made beforehand, and nothing else; ours also makes the batches, collects
the logits and computes the metrics. ``time_ratio`` is our seconds / its seconds; goal: at most 1.15.
"""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.measure import Row, alternate, arguments, median, ratio
from benchmarks.report import record
from benchmarks.workload import CLASS_NAMES, configure, real_splits
from textdistill.core.processes import Processes
from textdistill.data.batches import sorted_batches
from textdistill.evaluation.scoring import score
from textdistill.method.learner import Learner

KEY = ("model", "split", "learners")
LEARNERS = 3


def measured(model: str, data: str, cache: str, side: str, name: str, learners: int) -> Row:
    """Seconds to score ``learners`` learners on a split."""
    config = configure(model, f"data.path={data}", f"data.preprocessed_datasets_path={cache}")
    learner = Learner(config.model, CLASS_NAMES)
    config.data.max_length = min(config.data.max_length, learner.max_positions)
    split = real_splits(config, learner)[name]
    size = config.data.test_batch_size
    params = learner.fresh_params(config.base.seed)
    batches = [{n: t for n, t in batch.items() if n != "labels"} for _, batch in sorted_batches(split, size)]
    if side == "ours":
        learner(params, batches[0])
        started = time.perf_counter()
        score(lambda _: params, learner, split, ("accuracy",), learners, size, Processes())
    else:
        bare = learner.to_model(params)
        with torch.inference_mode():
            bare(**batches[0])
            started = time.perf_counter()
            for _ in range(learners):
                for batch in batches:
                    bare(**batch)
    seconds = time.perf_counter() - started
    return {"rows": len(split), "seconds": seconds, "rows_per_second": learners * len(split) / seconds}


def rows(given: Namespace) -> Iterator[Row]:
    """One."""
    with tempfile.TemporaryDirectory() as cache:
        common = (given.model, str(given.data.resolve()), cache)
        variants = {side: (*common, side, given.split, given.learners) for side in ("ours", "bare")}
        found = alternate(measured, variants, given.repeats)
    time_ratio, spread = ratio(found["ours"], found["bare"], "seconds")
    yield {
        "model": Path(given.model).name,
        "split": given.split,
        "rows": median(found["ours"], "rows"),
        "learners": given.learners,
        "rows_per_second": median(found["ours"], "rows_per_second"),
        "bare_rows_per_second": median(found["bare"], "rows_per_second"),
        "time_ratio": time_ratio,
        "time_ratio_spread": spread,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and the table."""
    parser = arguments(__doc__, data=True)
    parser.add_argument("--learners", type=int, default=LEARNERS, help="learners scored (default: %(default)s)")
    given = parser.parse_args(argv)
    given.split = "test"
    if given.quick:
        given.split, given.learners, given.repeats = "validation", 1, 1
    record("evaluation", given, KEY, rows(given))


if __name__ == "__main__":
    main()
