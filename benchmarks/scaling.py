"""Start-up time, step time and resident memory for 10^3 to 10^6 rows.

    python -m benchmarks.scaling [--quick] [--output FILE] [--model minilm-l6] [--repeats 9]

The texts are made up of 5,000 words of the model's vocabulary, with the lengths of AG News: 37 words in the middle, and
18 to 70 for 98 texts of 100. Every measurement has a process of its own. First each size
starts up once with an empty token cache (``cold``); then the sizes take turns for ``--repeats`` rounds with the
cache filled (``warm``), and the medians count. A start-up goes from reading the files to the first batch; loading
libraries and model is left out. A step is drawing a batch and the default outer step on it; only batches of 38 to
42 positions are timed, so that all sizes do equal work.

Memory is ``RssAnon`` of ``/proc/self/status`` after the steps: what the process holds and the system cannot drop.
``rss_mb`` also counts pages of mapped files (libraries, weights, tokens), which it can drop. ``cold_peak_mb`` is the
greatest resident memory of the cold process before the first step. Ratios are to 10^4 rows, within a round.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from benchmarks.measure import Row, alternate, arguments, fresh, median, memory, ratio
from benchmarks.report import record
from benchmarks.workload import CLASS_NAMES, OurStep, configure, real_splits
from textdistill.data.batches import train_batches
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import SetMetadata, model_metadata
from textdistill.method.learner import Learner, ModelConfig

KEY = ("model", "rows")
SIZES = (1_000, 10_000, 100_000, 1_000_000)
BASE = 10_000
WORDS = 5_000
LOG_LENGTH = (3.60, 0.26)  # mean and standard deviation of the logarithm of the number of words
WIDTHS = range(38, 43)
STEPS = 3


def write_data(folder: Path, rows: int, words: np.ndarray) -> None:
    """``train.parquet`` with so many rows and ``test.parquet`` with 1,000, columns text and label."""
    folder.mkdir()
    for name, size in (("train", rows), ("test", 1_000)):
        random = np.random.default_rng(rows)
        schema = pa.schema([("text", pa.string()), ("label", pa.int64())])
        with pa.parquet.ParquetWriter(folder / f"{name}.parquet", schema) as file:
            for start in range(0, size, 10_000):
                lengths = random.lognormal(*LOG_LENGTH, min(10_000, size - start)).astype(int) + 1
                drawn = np.split(words[random.integers(len(words), size=lengths.sum())], np.cumsum(lengths)[:-1])
                labels = np.arange(start, start + len(lengths)) % len(CLASS_NAMES)
                file.write_table(pa.table([[" ".join(text) for text in drawn], labels], schema=schema))


def vocabulary(model: str) -> np.ndarray:
    """Words that are one token each."""
    tokenizer = Learner(ModelConfig("ag_news", model), CLASS_NAMES).tokenizer
    return np.array(sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.islower())[:WORDS])


def measured(model: str, folder: Path) -> Row:
    """Seconds of a start-up and of the median outer step after a first one; memory in MB, the peak before the steps."""
    config = configure(
        model, f"data.path={folder}", f"data.preprocessed_datasets_path={folder / 'tokens'}",
        "data.train_batch_size=32", "distilled_data.seq_length=64",
    )  # fmt: skip
    learner = Learner(config.model, CLASS_NAMES)
    config.data.max_length = min(config.data.max_length, learner.max_positions)
    config.distilled_data.seq_length = min(config.distilled_data.seq_length, learner.max_positions)
    seed, size = config.base.seed, config.data.train_batch_size
    started = time.perf_counter()
    train = real_splits(config, learner)["train"]
    metadata = SetMetadata(config.data.task_name, CLASS_NAMES, model_metadata(learner))
    distilled = initial_set(config.distilled_data, config.learner_train, metadata, learner, train, seed)
    next(train_batches(train, size, seed, 0))
    found = {"start_up": time.perf_counter() - started, "peak_mb": memory("VmHWM")}

    step, seconds = OurStep(config, learner, distilled), list[float]()
    batches = (batch for epoch in count() for batch in train_batches(train, size, seed, epoch))
    while len(seconds) <= STEPS:
        started = time.perf_counter()
        batch = next(batches)
        if batch["input_ids"].shape[1] in WIDTHS:
            step(batch, len(seconds))
            seconds.append(time.perf_counter() - started)
    return found | {
        "step": statistics.median(seconds[1:]),
        "anon_mb": memory("RssAnon"),
        "rss_mb": memory("VmRSS"),
    }


def rows(given: Namespace) -> Iterator[Row]:
    """A row a size."""
    words = vocabulary(given.model)
    with tempfile.TemporaryDirectory() as root:
        folders = {size: Path(root, str(size)) for size in given.sizes}
        cold = {}
        for size, folder in folders.items():
            write_data(folder, size, words)
            cold[size] = fresh(measured, given.model, folder)
        warm = alternate(measured, {size: (given.model, folder) for size, folder in folders.items()}, given.repeats)
    for size, found in warm.items():
        step_ratio, step_spread = ratio(found, warm[BASE], "step")
        memory_ratio, memory_spread = ratio(found, warm[BASE], "anon_mb")
        yield {
            "model": Path(given.model).name,
            "rows": size,
            "cold_start_seconds": median([cold[size]], "start_up"),
            "cold_peak_mb": median([cold[size]], "peak_mb"),
            "warm_start_seconds": median(found, "start_up"),
            "step_seconds": median(found, "step"),
            "step_ratio": step_ratio,
            "step_ratio_spread": step_spread,
            "anon_mb": median(found, "anon_mb"),
            "memory_ratio": memory_ratio,
            "memory_ratio_spread": memory_spread,
            "rss_mb": median(found, "rss_mb"),
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and the table."""
    parser = arguments(__doc__)
    parser.set_defaults(repeats=9, sizes=SIZES)
    given = parser.parse_args(argv)
    if given.quick:
        given.sizes, given.repeats = SIZES[:2], 1
    record("scaling", given, KEY, rows(given))


if __name__ == "__main__":
    main()
