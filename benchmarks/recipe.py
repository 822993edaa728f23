"""One outer step on real AG News batches: our defaults against the reference's recipe, at equal seq_length.

    python -m benchmarks.recipe [--seq-length 512 128 64] [--data DIR]

Rows are drawn once: those of our outer loop's first 200 batches, cut and grouped by length as it does. The reference
takes the same rows in random order in as many batches, each padded to its longest text (``reference_recipe``). Each is
timed on a few of its 200, evenly spaced in order of their width. Goal: at least 3.5 times as fast at 512 positions,
twice at 128 and 64.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from benchmarks.measure import Row, alternate, arguments, fresh, median, observe, ratio
from benchmarks.reference_recipe import ReferenceStep, configure_reference, padded_batch
from benchmarks.report import record
from benchmarks.workload import CLASS_NAMES, OurStep, configure, noise_set, real_splits
from textdistill.core.seeding import generator
from textdistill.data.batches import train_batches
from textdistill.method.learner import Learner

Batch = dict[str, torch.Tensor]
KEY = ("model", "seq_length", "recipe")
DRAWN = 200  # batches: few batches of texts of similar length would, mixed, still have few lengths, and little padding
BATCHES = 8


def draw(model: str, data: str, count: int, file: str) -> dict[str, Row]:
    """Writes ``count`` batches a recipe, and returns the mean width and the share of padding of all that were drawn."""
    splits = {}
    for recipe, configured in (("ours", configure), ("reference", configure_reference)):
        config = configured(model, f"data.path={data}", "data.preprocessed_datasets_path=null")
        learner = Learner(config.model, CLASS_NAMES)
        config.data.max_length = min(config.data.max_length, learner.max_positions)
        splits[recipe] = real_splits(config, learner)["train"]
    ours, size, seed = splits["ours"], config.data.train_batch_size, config.base.seed
    # Texts that repeat the number of their row tell which rows the outer loop's first batches hold.
    numbered = replace(ours, ids=np.repeat(np.arange(len(ours)), ours.lengths))
    drawn = [batch["input_ids"][:, 0] for batch in islice(train_batches(numbered, size, seed, epoch=0), DRAWN)]
    shuffled = torch.cat(drawn)[torch.randperm(len(drawn) * size, generator=generator(seed, "benchmark"))]
    batches = {
        "ours": [ours.batch(rows.numpy()) for rows in drawn],
        "reference": [padded_batch(splits["reference"], rows) for rows in shuffled.split(size)],
    }
    torch.save({recipe: evenly_spaced(given, count) for recipe, given in batches.items()}, file)
    masks = {recipe: [batch["attention_mask"] for batch in given] for recipe, given in batches.items()}
    return {
        recipe: {
            "width": fmean(mask.size(1) for mask in given),
            "padding": 1 - sum(int(mask.sum()) for mask in given) / sum(mask.numel() for mask in given),
        }
        for recipe, given in masks.items()
    }


def evenly_spaced(batches: list[Batch], count: int) -> list[Batch]:
    """The middle batch of each of ``count`` equal parts of the batches in order of width."""
    ordered = sorted(batches, key=lambda batch: batch["attention_mask"].size(1))
    return [ordered[int((part + 0.5) * len(ordered) / count)] for part in range(count)]


def measured(model: str, recipe: str, seq_length: int, file: str) -> Row:
    """Mean seconds of an outer step over the batches of the file, and peak memory in MB above the idle process."""
    batches = torch.load(file)[recipe]
    config = (configure if recipe == "ours" else configure_reference)(model, f"distilled_data.seq_length={seq_length}")
    learner = Learner(config.model, CLASS_NAMES)
    distilled = noise_set(config, learner)
    step: OurStep | ReferenceStep
    if recipe == "ours":
        step = OurStep(config, learner, distilled)
    else:
        step = ReferenceStep(learner, distilled, config.train, config.base.seed, max_steps=2 * len(batches))
        del learner
    seconds, peak = observe(lambda index: step(batches[index], index), len(batches))
    return {"seconds": fmean(seconds), "peak_mb": peak}


def rows(given: Namespace) -> Iterator[Row]:
    """One a seq_length and recipe."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "batches.pt"))
        shapes = fresh(draw, given.model, str(given.data.resolve()), given.batches, file)
        assert shapes is not None
        for seq_length in given.seq_length:
            variants = {recipe: (given.model, recipe, seq_length, file) for recipe in ("ours", "reference")}
            found = alternate(measured, variants, given.repeats)
            for recipe, results in found.items():
                time_ratio, spread = ratio(found["reference"], results, "seconds")
                yield {
                    "model": Path(given.model).name,
                    "seq_length": seq_length,
                    "recipe": recipe,
                    **shapes[recipe],
                    "seconds": median(results, "seconds"),
                    "peak_mb": median(results, "peak_mb"),
                    "time_ratio": time_ratio,
                    "time_ratio_spread": spread,
                    "memory_ratio": ratio(results, found["reference"], "peak_mb")[0],
                }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and the table."""
    parser = arguments(__doc__, data=True)
    parser.add_argument("--seq-length", type=int, nargs="+", default=[512, 128, 64])
    parser.add_argument("--batches", type=int, default=BATCHES, help="outer steps a measurement (default: %(default)s)")
    given = parser.parse_args(argv)
    if given.quick:
        given.seq_length, given.batches, given.repeats = [16], 2, 1
    record("recipe", given, KEY, rows(given))


if __name__ == "__main__":
    main()
