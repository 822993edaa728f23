"""The score of fresh learners after training on a few samples: n learners, on every row of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef, recall_score
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from textdistill.core.precision import FLOAT32, Precision, matmul_precision
from textdistill.core.processes import Processes
from textdistill.data.batches import sorted_batches
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.adapt import train_learner
from textdistill.distilled.dataset import DistilledDataset
from textdistill.method.learner import Learner, Params
from textdistill.runs.results import MajorityClass, Score

# Returns the trained parameters of learner i. They depend on i, and not on the number of learners that are scored.
LearnerFactory = Callable[[int], Params]


@dataclass(frozen=True)
class Scores:
    """The scores of n learners on a split.

    Attributes:
        metrics: a Score by metric. ``loss`` is the mean cross entropy of a row.
        confusion: the confusion matrix, (C, C): a row for each true class, and a column for each predicted class. The
            counts are summed over the learners.

    """

    metrics: dict[str, Score]
    confusion: np.ndarray


def trained_on(distilled: DistilledDataset, learner: Learner, seed: int, purpose: str) -> LearnerFactory:
    """Learners with fresh heads that are fine-tuned on a distilled set; see ``train_learner``."""
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
) -> Scores:
    """Scores n trained learners on every row of a split. Each learner is scored in one of the run's processes.

    Args:
        train: returns the parameters of learner i.
        learner: the model that the learners share.
        split: the rows to score on.
        metric_names: the metrics of the task; see ``metrics``.
        n: number of learners, at least 1.
        batch_size: the most rows of a forward pass.
        processes: the processes of the run. They share the learners, and all of them return all scores.
        precision: precision of the forward passes.
        description: label of the progress bar.

    """
    results = []
    confusion = np.zeros((learner.num_labels, learner.num_labels), dtype=np.int64)
    own = range(processes.rank, n, processes.count)
    quiet = None if processes.main else True
    bar = tqdm(own, desc=description, unit="learner", leave=False, dynamic_ncols=True, disable=quiet)
    with bar, logging_redirect_tqdm():
        for index in bar:
            params = train(index)
            logits = torch.empty(len(split), learner.num_labels)
            # Pad the batches anew for every learner: it takes 0.1 % of the time and keeps one batch in memory.
            for rows, batch in sorted_batches(split, batch_size):
                inputs = {name: tensor.to(learner.device) for name, tensor in batch.items() if name != "labels"}
                with torch.no_grad(), matmul_precision(precision.tf32):
                    output = learner.logits(params, inputs, precision)
                logits[torch.from_numpy(rows)] = output.float().cpu()
            results.append((index, metrics(logits, split.labels, metric_names)))
            confusion += confusion_matrix(split.labels, logits.argmax(-1), labels=range(learner.num_labels))
    in_order = [result for _, result in sorted(processes.gather(results), key=itemgetter(0))]
    by_metric = {name: Score.of([result[name] for result in in_order]) for name in in_order[0]}
    return Scores(by_metric, np.sum(processes.gather([confusion]), axis=0))


def metrics(logits: torch.Tensor, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Computes the metrics of predictions.

    Every task has accuracy, macro-F1, balanced accuracy (the mean recall of a class), Matthews correlation and cross
    entropy. Macro-F1 and balanced accuracy are means over the classes that ``labels`` holds. F1 is the F1 score of
    class 1, as in GLUE.

    Args:
        logits: (rows, C).
        labels: class indices, (rows,).
        names: ``f1`` adds ``f1`` and ``combined``, the mean of accuracy and F1.

    """
    predicted = logits.argmax(-1).numpy()
    # A mean over all predicted classes would depend on the learner.
    classes = {"labels": np.unique(labels), "average": "macro", "zero_division": 0.0}
    result = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, **classes)),
        "balanced_accuracy": float(recall_score(labels, predicted, **classes)),
        "mcc": float(matthews_corrcoef(labels, predicted)),
    }
    if "f1" in names:
        result["f1"] = float(f1_score(labels, predicted, zero_division=0.0))
        result["combined"] = (result["accuracy"] + result["f1"]) / 2
    return result | {"loss": F.cross_entropy(logits, torch.tensor(labels)).item()}


def majority_class(train: TokenizedSplit, test: TokenizedSplit, metric_names: Sequence[str]) -> MajorityClass:
    """Scores a classifier that predicts the largest class of the training split for every row.

    Its probabilities are the shares of the classes in the training split, so that its cross entropy is finite.

    Args:
        train: the split that decides the class; every class has a row in it.
        test: the rows to score on.
        metric_names: the metrics of the task; see ``metrics``.

    """
    shares = torch.from_numpy(np.bincount(train.labels) / len(train))
    logits = shares.log().expand(len(test), -1)
    return MajorityClass(int(shares.argmax()), shares.max().item(), metrics(logits, test.labels, metric_names))
