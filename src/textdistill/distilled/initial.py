"""The distilled set that training starts with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from textdistill.core.seeding import generator
from textdistill.data.batches import stratified_sample
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.adapt import check_fits
from textdistill.distilled.dataset import DistilledDataset, before_softplus
from textdistill.distilled.spec import DistilledDataConfig, Init, LearnerTrainConfig, SetMetadata, tensor_shapes
from textdistill.method.learner import Learner

# A softmax or exp turns this logit into exactly 0 with an exactly zero gradient, so masked keys stay masked.
MASKED_LOGIT = -1e4
# With more than so many classes the rates of the output layer start at OUTPUT_RATE * C times the others
# (docs/decisions.md).
FEW_CLASSES = 20
OUTPUT_RATE = 20.0


def initial_set(
    config: DistilledDataConfig,
    inner_config: LearnerTrainConfig,
    metadata: SetMetadata,
    learner: Learner,
    train: TokenizedSplit,
    seed: int,
) -> DistilledDataset:
    """The distilled set before training; it depends on the arguments only.

    Args:
        config: shape, kinds and start of the set. The set's own settings state a length that it leaves open.
        inner_config: the inner loop that the set will serve.
        metadata: the task and, as ``model_metadata`` gives it, the model.
        learner: gives widths, the mask of its attention and, for ``init=real``, word embeddings.
        train: real texts for ``init=real``. A sample starts from a random text of its class, repeated to length.
        seed: the run's seed.

    Returns:
        A set on the learner's device, in its dtype.

    Raises:
        ValueError: a setting is out of range, or the set would not fit the learner or the data.

    """
    config.check()
    inner_config.check(config)
    config = config.resolved(learner.num_labels, learner.max_positions)
    if config.positions > learner.max_positions:
        raise ValueError(
            f"distilled_data.seq_length must be at most the {learner.max_positions} positions of"
            f" {learner.name}, got {config.positions}"
        )
    shapes = tensor_shapes(config, inner_config, learner.num_labels, metadata.model)
    count = config.data_per_label * learner.num_labels
    raw = {
        "inputs_embeds": _embeddings(config, shapes["inputs_embeds"], learner, train, seed),
        "labels": torch.eye(learner.num_labels)[torch.arange(count) % learner.num_labels],
        "lr": before_softplus(torch.full(shapes["lr"], config.lr_init)),
    }
    if "lr_scales" in shapes:
        raw["lr_scales"] = _lr_scales(shapes["lr_scales"], learner)
    if "attention_labels" in shapes:
        raw["attention_labels"] = _attention_labels(config, shapes["attention_labels"], learner, seed)
    distilled = DistilledDataset(raw, config, inner_config, metadata).to(learner.device, learner.dtype)
    check_fits(distilled, learner)
    return distilled


def _embeddings(
    config: DistilledDataConfig, shape: tuple[int, ...], learner: Learner, train: TokenizedSplit, seed: int
) -> Tensor:
    """Initial embeddings (N, L, D): noise, or real texts."""
    draw = generator(seed, "distilled", "inputs_embeds")
    if config.init is Init.noise:
        return torch.randn(shape, generator=draw)
    rows = stratified_sample(train.labels, config.data_per_label, draw)
    return torch.stack([_tiled(learner, train, int(row), config.positions) for row in rows])


def _lr_scales(shape: tuple[int, ...], learner: Learner) -> Tensor:
    """Initial logarithms of the factors on the learning rate, (T, P) or (P,): 0, but for an output layer of many rows.

    A row of the output layer learns from the samples of its class, and the mean over all samples divides by C.
    """
    scales = torch.zeros(shape)
    if learner.num_labels > FEW_CLASSES:
        sizes = {name: len(parameter) for name, parameter in learner.model.named_parameters() if name in learner.head}
        output = [sizes.get(name) == learner.num_labels for name in learner.trainable]
        scales[..., output] = math.log(OUTPUT_RATE * learner.num_labels)
    return scales


def _attention_labels(config: DistilledDataConfig, shape: tuple[int, ...], learner: Learner, seed: int) -> Tensor:
    """Initial logits (N, Y, H, Q, L) of attention labels: noise where a layer can attend, masked elsewhere."""
    draw = generator(seed, "distilled", "attention_labels")
    key_mask = learner.key_mask(config.positions, config.attention_label_type)
    noise = torch.randn(shape, generator=draw)
    # Normalise each row, because its sum of exp is its learned weight, which starts at 1.
    return noise.masked_fill(~key_mask[:, None], MASKED_LOGIT).log_softmax(-1)


def _tiled(learner: Learner, train: TokenizedSplit, row: int, length: int) -> Tensor:
    """Word embeddings (length, D) of a text, repeated or cut to length."""
    ids = train.batch([row])["input_ids"][0]
    return learner.embed(ids.repeat(-(-length // len(ids)))[:length]).cpu().float()
