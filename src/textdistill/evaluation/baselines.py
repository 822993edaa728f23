"""What a distilled score stands beside: full data, and as many real samples: random, k-centers, herding."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from tqdm import tqdm
from transformers import PreTrainedModel, get_scheduler

from textdistill.core.precision import FLOAT32, Precision
from textdistill.core.processes import Processes
from textdistill.core.seeding import generator, stream_seed
from textdistill.data.batches import sorted_batches, steps_per_epoch, stratified_sample, train_batches
from textdistill.data.tokens import TokenizedSplit
from textdistill.distilled.spec import LearnerTrainConfig
from textdistill.evaluation.scoring import LearnerFactory, score
from textdistill.method.attention import AttentionLabelType
from textdistill.method.inner_loop import InnerBatch, fine_tune, make_inner_loss
from textdistill.method.learner import Learner, Params
from textdistill.method.losses import task_loss

logger = logging.getLogger(__name__)


class Baseline(StrEnum):
    """What learners train on: ``full``, every row, or a coreset of as many real samples as a distilled set has.

    ``random``: drawn evenly from each class. ``k-centers``: of each class the row nearest to its mean, then again and
    again the row farthest from those chosen (greedy k-center; Sener and Savarese, 2018). ``herding``: of each class
    the rows whose mean stays nearest to that of the class (Welling, 2009; greedy). Distances are between the
    pretrained encoder's pooled features.
    """

    full = "full"
    random = "random"
    k_centers = "k-centers"
    herding = "herding"


class Training(StrEnum):
    """How a learner trains on a coreset.

    ``inner_loop``: as on a distilled set of equal size, plain gradient steps, with the rate of INNER_LRS that has the
    lowest validation loss. ``ordinary``: STEPS steps of AdamW at rate LR on batches of BATCH_SIZE samples (the
    protocol of DiLM; Maekawa et al., Findings of NAACL 2024).
    """

    inner_loop = "inner_loop"
    ordinary = "ordinary"


# A coreset is chosen this often; learner i trains on choice i % DRAWS.
DRAWS = 5
# k-centers and herding leave nothing to chance: each draw chooses among so many rows of each class, drawn evenly.
CANDIDATES = 1000
# Inner learning rates among which validation loss chooses, one for all draws.
INNER_LRS = (0.01, 0.03, 0.1, 0.3, 1.0)
STEPS, LR, BATCH_SIZE = 200, 1e-4, 64
# Ordinary fine-tuning, as BERT's authors recommend; it ends early when an epoch raises the validation loss.
FULL_LR = 5e-5
FULL_EPOCHS = 3
WEIGHT_DECAY = 0.01


def coresets(
    kind: Baseline, learner: Learner, train: TokenizedSplit, per_class: int, batch_size: int, seed: int
) -> list[np.ndarray]:
    """DRAWS choices of rows, each (per_class * C,), entry i of class i % C; see ``Baseline``.

    Args:
        kind: random, k-centers or herding.
        learner: gives the pooled features.
        train: to choose from.
        per_class: rows of each class.
        batch_size: rows a forward pass.
        seed: the run's seed.

    Raises:
        ValueError: a class has fewer rows.

    """
    draws = [generator(seed, "baseline", str(Baseline.random), draw) for draw in range(DRAWS)]
    if kind is Baseline.random:
        return [stratified_sample(train.labels, per_class, draw) for draw in draws]
    choose = {Baseline.k_centers: k_centers, Baseline.herding: herding}[kind]
    available = int(np.bincount(train.labels).min())
    candidates = max(per_class, min(CANDIDATES, available))
    found = []
    for draw in draws:
        rows = stratified_sample(train.labels, candidates, draw)
        features = _features(learner, train, rows, batch_size)
        classes = [slice(label, None, learner.num_labels) for label in range(learner.num_labels)]
        found.append(np.stack([rows[c][choose(features[c], per_class)] for c in classes], axis=1).reshape(-1))
    return found


def k_centers(features: Tensor, count: int) -> list[int]:
    """Indices of the row nearest to the mean of ``features`` (N, D), then of those farthest from all chosen."""
    chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
    nearest = torch.full((len(features),), math.inf, device=features.device)
    while len(chosen) < count:
        nearest = nearest.minimum((features - features[chosen[-1]]).norm(dim=1))
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return chosen


def herding(features: Tensor, count: int) -> list[int]:
    """Indices of rows of ``features`` (N, D), each the one that brings the mean of all chosen nearest to the mean."""
    mean, total = features.mean(0), torch.zeros_like(features[0])
    chosen: list[int] = []
    while len(chosen) < count:
        away = ((total + features) / (len(chosen) + 1) - mean).norm(dim=1)
        away[chosen] = math.inf
        chosen.append(int(away.argmin()))
        total = total + features[chosen[-1]]
    return chosen


def inner_loop(
    learner: Learner,
    splits: dict[str, TokenizedSplit],
    rows: list[np.ndarray],
    inner_config: LearnerTrainConfig,
    batch_size: int,
    seed: int,
    processes: Processes,
) -> tuple[LearnerFactory, float]:
    """Learners trained on real samples through the inner loop of a distilled set of equal size.

    Args:
        learner: the model.
        splits: ``train`` with the samples, ``validation`` to choose the learning rate on.
        rows: of ``train``, as ``coresets`` chooses them.
        inner_config: number and batch size of inner steps.
        batch_size: rows a forward pass on validation.
        seed: the run's seed.
        processes: of the run, which share the learners of a validation.

    Returns:
        Learner i, and the learning rate chosen.

    """
    inner_loss = make_inner_loss(learner, AttentionLabelType.none, 0.0)
    count = inner_config.batch_size_per_label * learner.num_labels

    def trained(lr: float, purpose: str) -> LearnerFactory:
        def train_one(index: int) -> Params:
            chosen = rows[index % len(rows)]
            starts = [step * count % len(chosen) for step in range(inner_config.train_step)]
            batches = [_real_batch(learner, splits["train"], chosen[start : start + count], lr) for start in starts]
            params = learner.fresh_params(stream_seed(seed, "head", purpose, index))
            return fine_tune(inner_loss, params, batches)

        return train_one

    losses = {}
    for lr in INNER_LRS:
        scores = score(
            trained(lr, "validation"), learner, splits["validation"], (), len(rows), batch_size, processes,
            description=f"real samples, lr {lr:g}",
        )  # fmt: skip
        # A rate at which learners diverge is never the best.
        losses[lr] = scores["loss"].mean if math.isfinite(scores["loss"].mean) else math.inf
        logger.info("real samples, lr %g: validation loss %.4f", lr, losses[lr])
    best = min(losses, key=losses.__getitem__)
    return trained(best, "evaluation"), best


def ordinary(
    learner: Learner, train: TokenizedSplit, rows: list[np.ndarray], seed: int, precision: Precision = FLOAT32
) -> LearnerFactory:
    """Learners fine-tuned the ordinary way on real samples; see ``Training``.

    Args:
        learner: the model; learner i starts from its head i.
        train: the split with the samples.
        rows: of ``train``, as ``coresets`` chooses them.
        seed: the run's seed.
        precision: of the forward passes.

    """

    def train_one(index: int) -> Params:
        chosen = rows[index % len(rows)]
        model = learner.to_model(learner.fresh_params(stream_seed(seed, "head", "evaluation", index)))
        optimizer = AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
        batches = _shuffled(chosen, BATCH_SIZE, generator(seed, "baseline", "ordinary", index))
        for _ in tqdm(
            range(STEPS), unit="step", desc="real samples", leave=False, dynamic_ncols=True, disable=None
        ):  # fmt: skip
            _step(learner, model, optimizer, train.batch(next(batches)), precision)
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    return train_one


def full_data(
    learner: Learner,
    splits: dict[str, TokenizedSplit],
    batch_size: int,
    eval_batch_size: int,
    seed: int,
    processes: Processes,
    precision: Precision = FLOAT32,
) -> LearnerFactory:
    """Learners fine-tuned the ordinary way on the whole train split: AdamW on every parameter.

    Up to FULL_EPOCHS epochs under a linear schedule; the epoch with the lowest validation loss counts.

    Args:
        learner: the model; learner i starts from its head i.
        splits: ``train`` and ``validation``.
        batch_size: rows a step.
        eval_batch_size: rows a forward pass on validation.
        seed: the run's seed.
        processes: of the run.
        precision: of the forward passes, those of validation included.

    """
    train = splits["train"]
    steps = steps_per_epoch(train, batch_size)

    def train_one(index: int) -> Params:
        model = learner.to_model(learner.fresh_params(stream_seed(seed, "head", "evaluation", index)))
        optimizer = AdamW(model.parameters(), lr=FULL_LR, weight_decay=WEIGHT_DECAY, fused=True)
        scheduler = get_scheduler("linear", optimizer, int(0.1 * steps), FULL_EPOCHS * steps)
        best_loss, best = float("inf"), Params()
        for epoch in range(FULL_EPOCHS):
            order = stream_seed(seed, "baseline", "full", index)
            for batch in tqdm(
                train_batches(train, batch_size, order, epoch), total=steps, unit="step",
                desc=f"full data, epoch {epoch + 1}/{FULL_EPOCHS}", leave=False, dynamic_ncols=True, disable=None,
            ):  # fmt: skip
                _step(learner, model, optimizer, batch, precision)
                scheduler.step()
            params = {name: parameter.detach() for name, parameter in model.named_parameters()}
            validation = splits["validation"]
            scores = score(lambda _: params, learner, validation, (), 1, eval_batch_size, processes, precision)  # noqa: B023
            loss = scores["loss"].mean
            logger.info("full data, epoch %d/%d: validation loss %.4f", epoch + 1, FULL_EPOCHS, loss)
            if loss >= best_loss:
                break
            best_loss, best = loss, copy.deepcopy(params)
        return best

    return train_one


def _real_batch(learner: Learner, train: TokenizedSplit, rows: np.ndarray, lr: float) -> InnerBatch:
    batch = {name: tensor.to(learner.device) for name, tensor in train.batch(rows).items()}
    embeds = learner.embed(batch.pop("input_ids"))
    return InnerBatch(embeds, batch.pop("labels"), None, torch.tensor(lr, device=learner.device), context=batch)


def _features(learner: Learner, train: TokenizedSplit, rows: np.ndarray, batch_size: int) -> Tensor:
    """Pooled features (len(rows), D) of the pretrained encoder, in the order of ``rows``."""
    features = torch.empty(len(rows), learner.model.config.hidden_size)
    bar = tqdm(total=len(rows), desc="features", unit="row", leave=False, dynamic_ncols=True, disable=None)
    for members, batch in sorted_batches(train, batch_size, rows):
        inputs = {name: tensor.to(learner.device) for name, tensor in batch.items() if name != "labels"}
        features[torch.from_numpy(members)] = learner.pooled(inputs).float().cpu()
        bar.update(len(members))
    bar.close()
    return features


def _shuffled(rows: np.ndarray, batch_size: int, random: torch.Generator) -> Iterator[np.ndarray]:
    """Batches without end: all rows in random order, again and again; an incomplete batch is dropped."""
    size = min(batch_size, len(rows))
    while True:
        order = rows[torch.randperm(len(rows), generator=random).numpy()]
        for start in range(0, len(rows) - size + 1, size):
            yield order[start : start + size]


def _step(
    learner: Learner, model: PreTrainedModel, optimizer: AdamW, batch: Mapping[str, Tensor], precision: Precision
) -> None:
    """One step of ordinary fine-tuning on the weights of ``model``, computed as the learner does."""
    inputs = {name: tensor.to(learner.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels")
    task_loss(learner.logits(dict(model.named_parameters()), inputs, precision), labels).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
