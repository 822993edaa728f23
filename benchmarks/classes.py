"""Time and peak memory of one outer step by the number of classes, and the size of the distilled set.

    python -m benchmarks.classes [--classes 2 10 50 150] [--seq-length 64] [--batch-tokens 2048]

The set has one sample for each class, all of equal length, and attention labels cls. The real batch has made-up texts
of 64 tokens without padding. The inner step takes micro-batches of at most ``--batch-tokens`` tokens. It is compared
with the same step on the whole batch at once.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch

from benchmarks.measure import Row, alternate, arguments, median, observe, ratio
from benchmarks.report import record
from benchmarks.workload import OurStep, configure, made_up_batch, noise_set
from textdistill.method import inner_loop
from textdistill.method.learner import Learner

KEY = ("model", "seq_length", "classes", "batch_tokens")
WHOLE = 2**40  # no batch has so many tokens
TOKENS = 64
STEPS = 3  # the fastest counts: all do the same work


def measured(model: str, classes: int, seq_length: int, tokens: int, batch_tokens: int) -> Row:
    """Seconds of an outer step, its peak memory in MB above the idle process, and MB of the set in float16."""
    inner_loop.MICRO_BATCH_TOKENS = batch_tokens
    config = configure(model, f"distilled_data.seq_length={seq_length}")
    class_names = tuple(f"class {number}" for number in range(classes))
    learner = Learner(config.model, class_names)
    distilled = noise_set(config, learner, class_names)
    step = OurStep(config, learner, distilled)
    batch = made_up_batch(config, learner, tokens)
    seconds, peak = observe(lambda index: step(batch, index), STEPS)
    with tempfile.TemporaryDirectory() as folder:
        distilled.save_pretrained(folder, dtype=torch.float16)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {"seconds": min(seconds), "peak_mb": peak, "set_mb": size / 2**20}


def rows(given: Namespace) -> Iterator[Row]:
    """One for each number of classes and of tokens; the last column compares with the second number of classes."""
    settings = list(product(given.classes, (given.batch_tokens, WHOLE)))
    variants = {
        (classes, batch_tokens): (given.model, classes, given.seq_length, given.tokens, batch_tokens)
        for classes, batch_tokens in settings
    }
    found = alternate(measured, variants, given.repeats)
    for classes, batch_tokens in settings:
        results, whole = found[classes, batch_tokens], found[classes, WHOLE]
        time_ratio, spread = ratio(whole, results, "seconds")
        yield {
            "model": Path(given.model).name,
            "seq_length": given.seq_length,
            "classes": classes,
            "batch_tokens": min(batch_tokens, classes * given.seq_length),
            "seconds": median(results, "seconds"),
            "peak_mb": median(results, "peak_mb"),
            "time_ratio": time_ratio,
            "time_ratio_spread": spread,
            "memory_ratio": ratio(results, whole, "peak_mb")[0],
            "memory_growth": ratio(results, found[given.base, batch_tokens], "peak_mb")[0],
            "set_mb": median(results, "set_mb"),
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and the table."""
    parser = arguments(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 10, 50, 150])
    parser.add_argument("--seq-length", type=int, default=64)
    parser.add_argument("--batch-tokens", type=int, default=inner_loop.MICRO_BATCH_TOKENS)
    given = parser.parse_args(argv)
    given.tokens, given.base = TOKENS, given.classes[min(1, len(given.classes) - 1)]
    if given.quick:
        given.classes, given.base, given.seq_length, given.batch_tokens = [2, 10], 2, 8, 16
        given.tokens, given.repeats = 16, 1
    record("classes", given, KEY, rows(given))


if __name__ == "__main__":
    main()
