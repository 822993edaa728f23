"""Which layers and heads the attention labels of a set matter in: validation scores with each of them left out.

    python examples/attention_ablation.py DISTILLED_DIR [--heads PNG] [key=value ...]

The keys are those of `textdistill evaluate`: `data.task_name`, `data.path`. Learners, `train.n_eval_model` of them,
and rows are those of a run's validation, so nothing is read of the reported split. Needs
`distilled_data.attention_label_weight=learned`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from textdistill import DistilledDataset, compose
from textdistill.config import RunConfig
from textdistill.core.precision import Precision
from textdistill.core.processes import Processes
from textdistill.data.task import load_task
from textdistill.data.tokenized import TokenizedSplit
from textdistill.data.tokens import tokenize
from textdistill.distilled.initial import MASKED_LOGIT
from textdistill.distilled.spec import AttentionLabelWeight
from textdistill.evaluation.scoring import score, trained_on
from textdistill.method.learner import Learner
from textdistill.runs.results import Score


def without(distilled: DistilledDataset, where: Iterable[tuple[int, int]]) -> DistilledDataset:
    """The set whose attention labels in these (layer, head) have weight 0."""
    raw = {name: tensor.detach().clone() for name, tensor in distilled.raw.items()}
    for layer, head in where:
        raw["attention_labels"][:, layer, head] = MASKED_LOGIT
    return DistilledDataset(raw, distilled.config, distilled.inner_config, distilled.metadata)


def scored(distilled: DistilledDataset, learner: Learner, split: TokenizedSplit, config: RunConfig) -> dict[str, Score]:
    """As the run was validated."""
    trained = trained_on(distilled, learner, config.base.seed, "validation")
    count, batch_size = config.train.n_eval_model, config.data.valid_batch_size
    precision = Precision.of(bf16=config.train.bf16)
    return score(trained, learner, split, (), count, batch_size, Processes(), precision).metrics


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table, and draws a map of heads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("distilled_dir")
    parser.add_argument("--heads", type=Path, metavar="PNG", help="also leave out each head, and draw what that costs")
    given, overrides = parser.parse_known_args(argv)
    distilled = DistilledDataset.from_pretrained(given.distilled_dir)
    if distilled.config.attention_label_weight is not AttentionLabelWeight.learned:
        parser.error("the set must have attention labels with distilled_data.attention_label_weight=learned")
    config = compose(*overrides)
    learner = Learner(config.model, distilled.metadata.class_names)
    split = tokenize(load_task(config.data, config.base.seed), learner.tokenizer, config.data)["validation"]
    _, layers, heads, _, _ = distilled.raw["attention_labels"].shape
    everywhere = [(layer, head) for layer in range(layers) for head in range(heads)]
    kept = {"nothing": [], "all attention labels": everywhere} | {
        f"layer {layer}": [place for place in everywhere if place[0] == layer] for layer in range(layers)
    }
    print(f"{len(split):,} validation rows, {config.train.n_eval_model} learners\n")
    print("| left out | accuracy | loss |\n| --- | --- | --- |")
    results = {}
    for name, where in kept.items():
        scores = results[name] = scored(without(distilled, where), learner, split, config)
        cells = (f"{s.mean:.4f} ± {s.std or 0:.4f}" for s in (scores["accuracy"], scores["loss"]))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if given.heads is None:
        return
    full = results["nothing"]["accuracy"].mean
    cost = torch.zeros(layers, heads)
    for place in everywhere:
        cost[place] = full - scored(without(distilled, [place]), learner, split, config)["accuracy"].mean
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    image = axes.imshow(100 * cost, cmap="viridis")
    axes.set(xlabel="head", ylabel="layer", title="accuracy lost without the head's attention labels, in points")
    figure.colorbar(image)
    figure.savefig(given.heads, dpi=150)
    print(f"\n{given.heads}")


if __name__ == "__main__":
    main()
