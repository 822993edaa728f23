"""What a distilled score stands beside: full data, and random real samples of equal number."""

from __future__ import annotations

import copy
import logging
import math

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from tqdm import tqdm
from transformers import PreTrainedModel, get_scheduler

from textdistill.attention import AttentionLabelType
from textdistill.batches import steps_per_epoch, stratified_sample, train_batches
from textdistill.distilled import DistilledDataConfig, LearnerTrainConfig
from textdistill.evaluation import TrainedLearner, score
from textdistill.inner import InnerBatch, fine_tune, make_inner_loss
from textdistill.learner import Learner, Params
from textdistill.losses import task_loss
from textdistill.seeding import generator, stream_seed
from textdistill.tokens import TokenizedSplit

logger = logging.getLogger(__name__)

# Random samples are drawn this often; learner i trains on draw i % RANDOM_DRAWS.
RANDOM_DRAWS = 5
# Inner learning rates among which validation loss chooses, one for all draws.
RANDOM_LRS = (0.01, 0.03, 0.1, 0.3, 1.0)
# Ordinary fine-tuning, as BERT's authors recommend; it ends early when an epoch raises the validation loss.
FULL_LR = 5e-5
FULL_EPOCHS = 3


def random_samples(
    learner: Learner,
    splits: dict[str, TokenizedSplit],
    config: DistilledDataConfig,
    train_config: LearnerTrainConfig,
    batch_size: int,
    seed: int,
) -> tuple[TrainedLearner, float]:
    """Learners trained on random real samples through the inner loop of a distilled set of equal size.

    Args:
        learner: the model.
        splits: ``train`` to draw from, ``validation`` to choose the learning rate on.
        config: samples per class.
        train_config: number and batch size of inner steps.
        batch_size: rows a forward pass on validation.
        seed: the run's seed.

    Returns:
        Learner i, and the learning rate chosen.

    """
    train = splits["train"]
    rows = [
        stratified_sample(train.labels, config.data_per_label, generator(seed, "baseline", "random", draw))
        for draw in range(RANDOM_DRAWS)
    ]
    inner_loss = make_inner_loss(learner, AttentionLabelType.none, 0.0)
    count = train_config.batch_size_per_label * learner.num_labels

    def trained(lr: float, purpose: str) -> TrainedLearner:
        def train_one(index: int) -> Params:
            drawn = rows[index % RANDOM_DRAWS]
            starts = [step * count % len(drawn) for step in range(train_config.train_step)]
            batches = [_real_batch(learner, train, drawn[start : start + count], lr) for start in starts]
            params = learner.fresh_params(stream_seed(seed, "head", purpose, index))
            return fine_tune(inner_loss, params, batches)

        return train_one

    losses = {}
    for lr in RANDOM_LRS:
        scores = score(
            trained(lr, "validation"), learner, splits["validation"], (), RANDOM_DRAWS, batch_size,
            description=f"random samples, lr {lr:g}",
        )  # fmt: skip
        # A rate at which learners diverge is never the best.
        losses[lr] = scores["loss"].mean if math.isfinite(scores["loss"].mean) else math.inf
        logger.info("random samples, lr %g: validation loss %.4f", lr, losses[lr])
    best = min(losses, key=losses.__getitem__)
    return trained(best, "evaluation"), best


def full_data(
    learner: Learner, splits: dict[str, TokenizedSplit], batch_size: int, eval_batch_size: int, seed: int
) -> TrainedLearner:
    """Learners fine-tuned the ordinary way on the whole train split: AdamW on every parameter.

    Up to FULL_EPOCHS epochs under a linear schedule; the epoch with the lowest validation loss counts.

    Args:
        learner: the model; learner i starts from its head i.
        splits: ``train`` and ``validation``.
        batch_size: rows a step.
        eval_batch_size: rows a forward pass on validation.
        seed: the run's seed.

    """
    train = splits["train"]
    steps = steps_per_epoch(train, batch_size)

    def train_one(index: int) -> Params:
        model = learner.to_model(learner.fresh_params(stream_seed(seed, "head", "evaluation", index)))
        optimizer = AdamW(model.parameters(), lr=FULL_LR, weight_decay=0.01)
        scheduler = get_scheduler("linear", optimizer, int(0.1 * steps), FULL_EPOCHS * steps)
        best_loss, best = float("inf"), Params()
        for epoch in range(FULL_EPOCHS):
            order = stream_seed(seed, "baseline", "full", index)
            for batch in tqdm(
                train_batches(train, batch_size, order, epoch), total=steps, unit="step",
                desc=f"full data, epoch {epoch + 1}/{FULL_EPOCHS}", leave=False, dynamic_ncols=True, disable=None,
            ):  # fmt: skip
                task_loss(_logits(model, batch), batch["labels"].to(model.device)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            params = {name: parameter.detach() for name, parameter in model.named_parameters()}
            loss = score(lambda _: params, learner, splits["validation"], (), 1, eval_batch_size)["loss"].mean  # noqa: B023
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


def _logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits
