"""The outer loss in bfloat16 (``train.bf16=true``) against float32: time of an outer step, cosines of hypergradients.

    python -m benchmarks.mixed_precision [--data DIR]

Batches are real ones of AG News, a few of the outer loop's first 200, evenly spaced in order of their width. Cosines
are of the set that a run starts with on the first of these batches, to the hypergradient of a float32 outer loss.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.measure import Row, alternate, arguments, fresh, median, observe, ratio
from benchmarks.precision import cosine, gradients
from benchmarks.recipe import BATCHES, DRAWN, evenly_spaced
from benchmarks.report import record
from benchmarks.workload import CLASS_NAMES, OurStep, configure, noise_set, real_set, real_splits
from textdistill.data.batches import train_batches
from textdistill.method.hypergradient import EPS, Estimator
from textdistill.method.learner import Learner
from textdistill.training.config import InnerPrecision

KEY = ("model", "seq_length", "outer")


def draw(model: str, data: str, seq_length: int, count: int, file: str) -> Row:
    """Writes ``count`` batches, and returns the cosine of each part of the hypergradient."""
    config = configure(model, f"data.path={data}", f"distilled_data.seq_length={seq_length}")
    learner, seed = Learner(config.model, CLASS_NAMES), config.base.seed
    train = real_splits(config, learner)["train"]
    size = config.data.train_batch_size
    batches = evenly_spaced(list(islice(train_batches(train, size, seed, epoch=0), DRAWN)), count)
    torch.save(batches, file)
    distilled = real_set(config, learner, train)
    expected, found = (
        gradients(distilled, learner, batches[0], Estimator.difference, InnerPrecision.float32, EPS, outer_bf16=bf16)
        for bf16 in (False, True)
    )
    return {part: cosine(found[part], expected[part]) for part in expected}


def measured(model: str, seq_length: int, outer: str, file: str) -> Row:
    """Mean seconds of an outer step over the batches of the file."""
    bf16 = str(outer == "bf16").lower()
    config = configure(model, f"distilled_data.seq_length={seq_length}", f"train.bf16={bf16}")
    learner = Learner(config.model, CLASS_NAMES)
    step = OurStep(config, learner, noise_set(config, learner))
    batches = torch.load(file)
    seconds, _ = observe(lambda index: step(batches[index], index), len(batches))
    return {"seconds": fmean(seconds)}


def rows(given: Namespace) -> Iterator[Row]:
    """One a precision."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "batches.pt"))
        cosines = fresh(draw, given.model, str(given.data.resolve()), given.seq_length, given.batches, file)
        assert cosines is not None
        variants = {outer: (given.model, given.seq_length, outer, file) for outer in ("float32", "bf16")}
        found = alternate(measured, variants, given.repeats)
        for outer, results in found.items():
            time_ratio, spread = ratio(found["float32"], results, "seconds")
            yield {
                "model": Path(given.model).name,
                "seq_length": given.seq_length,
                "outer": outer,
                "seconds": median(results, "seconds"),
                "time_ratio": time_ratio,
                "time_ratio_spread": spread,
                **(cosines if outer == "bf16" else dict.fromkeys(cosines, 1.0)),
            }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and the table."""
    parser = arguments(__doc__, data=True)
    parser.add_argument("--seq-length", type=int, default=64)
    parser.add_argument("--batches", type=int, default=BATCHES, help="outer steps a measurement (default: %(default)s)")
    given = parser.parse_args(argv)
    if given.quick:
        given.seq_length, given.batches, given.repeats = 16, 2, 1
    record("mixed_precision", given, KEY, rows(given))


if __name__ == "__main__":
    main()
