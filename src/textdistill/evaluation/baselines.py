"""Baselines to compare a distilled set with: learners trained on all real samples, or on a coreset."""

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
from textdistill.data.batches import steps_per_epoch, train_batches
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.spec import LearnerTrainConfig
from textdistill.evaluation.scoring import LearnerFactory, score
from textdistill.method.attention import AttentionLabelType
from textdistill.method.inner_loop import InnerBatch, fine_tune, make_inner_loss
from textdistill.method.learner import Learner, Params
from textdistill.method.losses import task_loss

logger = logging.getLogger(__name__)


class Baseline(StrEnum):
    """The real samples that learners train on: ``full``, the training split, or a coreset; see ``Coreset``."""

    full = "full"
    random = "random"
    k_centers = "k-centers"
    herding = "herding"


class Training(StrEnum):
    """How a learner trains on a coreset.

    ``inner_loop``: plain gradient steps, as on a distilled set of equal size. The learning rate is the one of
    INNER_LRS with the lowest validation loss. ``ordinary``: STEPS steps of AdamW at learning rate LR on batches of
    BATCH_SIZE samples, the protocol of DiLM (Maekawa et al., Findings of NAACL 2024).
    """

    inner_loop = "inner_loop"
    ordinary = "ordinary"


# One learning rate is chosen for all coresets.
INNER_LRS = (0.01, 0.03, 0.1, 0.3, 1.0)
STEPS, LR, BATCH_SIZE = 200, 1e-4, 64
# Fine-tuning on the training split follows the authors of BERT.
FULL_LR = 5e-5
FULL_EPOCHS = 3
WEIGHT_DECAY = 0.01


def inner_loop_learners(
    learner: Learner,
    splits: Mapping[str, TokenizedSplit],
    coresets: list[np.ndarray],
    train_config: LearnerTrainConfig,
    batch_size: int,
    seed: int,
    processes: Processes,
) -> tuple[LearnerFactory, float]:
    """Returns learners that train on coresets through the inner loop.

    Args:
        learner: the model that the learners share.
        splits: ``train`` holds the samples, and ``validation`` chooses the learning rate.
        coresets: rows of ``train``, as ``choose_coresets`` returns them.
        train_config: the number and batch size of inner steps.
        batch_size: the most rows of a forward pass in validation.
        seed: the seed of the run.
        processes: the processes of the run, which share the learners of a validation.

    Returns:
        Learner i, and the chosen learning rate.

    """
    inner_loss = make_inner_loss(learner, AttentionLabelType.none, 0.0)
    count = train_config.batch_size_per_label * learner.num_labels

    def learners(lr: float, purpose: str) -> LearnerFactory:
        def train(index: int) -> Params:
            rows = coresets[index % len(coresets)]
            starts = [step * count % len(rows) for step in range(train_config.train_step)]
            batches = [_inner_batch(learner, splits["train"], rows[start : start + count], lr) for start in starts]
            params = learner.fresh_params(stream_seed(seed, "head", purpose, index))
            return fine_tune(inner_loss, params, batches)

        return train

    losses = {}
    for lr in INNER_LRS:
        scores = score(
            learners(lr, "validation"), learner, splits["validation"], (), len(coresets), batch_size, processes,
            description=f"real samples, lr {lr:g}",
        )  # fmt: skip
        # min() must not choose a learning rate at which learners diverge.
        loss = scores.metrics["loss"].mean
        losses[lr] = loss if math.isfinite(loss) else math.inf
        logger.info("real samples, lr %g: validation loss %.4f", lr, losses[lr])
    best_lr = min(losses, key=losses.__getitem__)
    return learners(best_lr, "evaluation"), best_lr


def ordinary_learners(
    learner: Learner, train: TokenizedSplit, coresets: list[np.ndarray], seed: int, precision: Precision = FLOAT32
) -> LearnerFactory:
    """Returns learners that are fine-tuned on coresets with AdamW; see ``Training``.

    Args:
        learner: the model that the learners share; learner i starts from head i.
        train: the split that holds the samples.
        coresets: rows of ``train``, as ``choose_coresets`` returns them.
        seed: the seed of the run.
        precision: the precision of the forward passes.

    """

    def train_one(index: int) -> Params:
        rows = coresets[index % len(coresets)]
        model = learner.to_model(learner.fresh_params(stream_seed(seed, "head", "evaluation", index)))
        optimizer = AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
        batches = _shuffled_batches(rows, BATCH_SIZE, generator(seed, "baseline", "ordinary", index))
        bar = tqdm(range(STEPS), unit="step", desc="real samples", leave=False, dynamic_ncols=True, disable=None)
        for _ in bar:
            fine_tuning_step(learner, model, optimizer, train.batch(next(batches)), precision)
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    return train_one


def full_data_learners(
    learner: Learner,
    splits: Mapping[str, TokenizedSplit],
    batch_size: int,
    eval_batch_size: int,
    seed: int,
    processes: Processes,
    precision: Precision = FLOAT32,
) -> LearnerFactory:
    """Returns learners whose parameters are all fine-tuned on the whole training split with AdamW.

    A learner trains for at most FULL_EPOCHS epochs under a linear schedule. Training ends early when an epoch does not
    lower the validation loss. The parameters of the epoch with the lowest validation loss are returned.

    Args:
        learner: the model that the learners share; learner i starts from head i.
        splits: ``train`` and ``validation``.
        batch_size: the rows of a training step.
        eval_batch_size: the most rows of a forward pass in validation.
        seed: the seed of the run.
        processes: the processes of the run.
        precision: the precision of the forward passes, in validation as well.

    """
    train = splits["train"]
    steps = steps_per_epoch(train, batch_size)

    def train_one(index: int) -> Params:
        model = learner.to_model(learner.fresh_params(stream_seed(seed, "head", "evaluation", index)))
        optimizer = AdamW(model.parameters(), lr=FULL_LR, weight_decay=WEIGHT_DECAY, fused=True)
        scheduler = get_scheduler("linear", optimizer, int(0.1 * steps), FULL_EPOCHS * steps)
        best_loss, best_params = float("inf"), Params()
        for epoch in range(FULL_EPOCHS):
            order_seed = stream_seed(seed, "baseline", "full", index)
            for batch in tqdm(
                train_batches(train, batch_size, order_seed, epoch), total=steps, unit="step",
                desc=f"full data, epoch {epoch + 1}/{FULL_EPOCHS}", leave=False, dynamic_ncols=True, disable=None,
            ):  # fmt: skip
                fine_tuning_step(learner, model, optimizer, batch, precision)
                scheduler.step()
            params = {name: parameter.detach() for name, parameter in model.named_parameters()}
            validation = splits["validation"]
            scores = score(lambda _: params, learner, validation, (), 1, eval_batch_size, processes, precision)  # noqa: B023
            loss = scores.metrics["loss"].mean
            logger.info("full data, epoch %d/%d: validation loss %.4f", epoch + 1, FULL_EPOCHS, loss)
            if loss >= best_loss:
                break
            best_loss, best_params = loss, copy.deepcopy(params)
        return best_params

    return train_one


def fine_tuning_step(
    learner: Learner, model: PreTrainedModel, optimizer: AdamW, batch: Mapping[str, Tensor], precision: Precision
) -> None:
    """Makes one optimiser step of ordinary fine-tuning on the weights of ``model``.

    Args:
        learner: computes the logits, so that attention and precision are those of all other learners.
        model: the weights to train.
        optimizer: updates the weights.
        batch: real samples with their labels.
        precision: the precision of the forward pass.

    """
    inputs = {name: tensor.to(learner.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels")
    task_loss(learner.logits(dict(model.named_parameters()), inputs, precision), labels).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _inner_batch(learner: Learner, train: TokenizedSplit, rows: np.ndarray, lr: float) -> InnerBatch:
    """Real samples as the batch of an inner step."""
    batch = {name: tensor.to(learner.device) for name, tensor in train.batch(rows).items()}
    embeds = learner.embed(batch.pop("input_ids"))
    return InnerBatch(embeds, batch.pop("labels"), None, torch.tensor(lr, device=learner.device), context=batch)


def _shuffled_batches(rows: np.ndarray, batch_size: int, random: torch.Generator) -> Iterator[np.ndarray]:
    """Yields batches without end, from all rows in a new random order each time; incomplete batches are dropped."""
    size = min(batch_size, len(rows))
    while True:
        order = rows[torch.randperm(len(rows), generator=random).numpy()]
        for start in range(0, len(rows) - size + 1, size):
            yield order[start : start + size]
