"""Score what a few samples make of fresh learners: n of them, on every row of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from textdistill.core.precision import FLOAT32, Precision, matmul_precision
from textdistill.core.processes import Processes
from textdistill.data.batches import sorted_batches
from textdistill.data.tokens import TokenizedSplit
from textdistill.distilled.adapt import train_learner
from textdistill.distilled.dataset import DistilledDataset
from textdistill.method.learner import Learner, Params
from textdistill.runs.results import Score

# Learner i of a score, trained: its parameters depend on i, never on how many learners are scored.
LearnerFactory = Callable[[int], Params]


def trained_on(distilled: DistilledDataset, learner: Learner, seed: int, purpose: str) -> LearnerFactory:
    """Learner i as ``DistilledDataset.train`` trains it."""
    return lambda index: train_learner(distilled, learner, seed, purpose, index)


def score(
    train: LearnerFactory,
    learner: Learner,
    split: TokenizedSplit,
    metric_names: Sequence[str],
    n: int,
    batch_size: int,
    processes: Processes,
    precision: Precision = FLOAT32,
    description: str = "evaluate",
) -> dict[str, Score]:
    """Scores n trained learners on every row of a split, each learner in one of the run's processes.

    Args:
        train: gives learner i.
        learner: the model they share.
        split: the rows; all of them, each once, for every learner.
        metric_names: accuracy, and f1 and combined (their mean) for tasks that report it.
        n: number of learners, at least 1.
        batch_size: rows a forward pass.
        processes: of the run; each scores learners of its own, and all return the scores of all.
        precision: of the forward passes.
        description: of the progress bar.

    Returns:
        A Score by metric, ``loss`` (mean cross entropy a row) among them.

    """
    results = []
    own = range(processes.rank, n, processes.count)
    quiet = None if processes.main else True
    bar = tqdm(own, desc=description, unit="learner", leave=False, dynamic_ncols=True, disable=quiet)
    with bar, logging_redirect_tqdm():
        for index in bar:
            params = train(index)
            logits = torch.empty(len(split), learner.num_labels)
            # Padded anew for every learner, a thousandth of its time, so that only one batch is in memory.
            for rows, batch in sorted_batches(split, batch_size):
                inputs = {name: tensor.to(learner.device) for name, tensor in batch.items() if name != "labels"}
                with torch.no_grad(), matmul_precision(precision.tf32):
                    output = learner.logits(params, inputs, precision)
                logits[torch.from_numpy(rows)] = output.float().cpu()
            results.append((index, metrics(logits, split.labels, metric_names)))
    in_order = [result for _, result in sorted(processes.gather(results), key=itemgetter(0))]
    return {name: Score.of([result[name] for result in in_order]) for name in in_order[0]}


def metrics(logits: torch.Tensor, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Cross entropy and the named metrics of logits (rows, C) against labels (rows,).

    F1 is that of class 1, as GLUE has it.
    """
    predicted = logits.argmax(-1).numpy()
    result = {"loss": F.cross_entropy(logits, torch.tensor(labels)).item()}
    result["accuracy"] = float(accuracy_score(labels, predicted))
    if "f1" in names:
        result["f1"] = float(f1_score(labels, predicted, zero_division=0.0))
        result["combined"] = (result["accuracy"] + result["f1"]) / 2
    return result
