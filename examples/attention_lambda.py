"""Draws scores, and how much they differ from head to head, against lambda.

    python examples/attention_lambda.py RUN_DIR... --output PNG

The runs differ in `distilled_data.attention_loss_lambda`, and may in `distilled_data.attention_label_weight`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from textdistill.reporting.rows import find_results


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="a run folder, or a folder of run folders")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG")
    given = parser.parse_args(argv)
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for stored in find_results(given.run_dirs):
        shape, accuracy = stored.result.shape, stored.result.metrics["accuracy"]
        if shape is None:
            raise ValueError(f"{stored.path} must be the result of a distilled set, not of a baseline")
        settings = shape.distilled_data
        point = settings["attention_loss_lambda"], accuracy.mean, accuracy.std or 0.0
        curves.setdefault(settings["attention_label_weight"], []).append(point)
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for weight, points in sorted(curves.items()):
        lambdas, means, deviations = zip(*sorted(points), strict=True)
        axes.errorbar(lambdas, means, deviations, marker="o", capsize=3, label=f"weights of rows: {weight}")
    axes.set(xscale="log", xlabel="lambda", ylabel="accuracy (± over heads)")
    axes.legend()
    figure.savefig(given.output, dpi=150)
    print(given.output)


if __name__ == "__main__":
    main()
