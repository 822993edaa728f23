"""A distilled set and a learner: whether they fit, how a set is adapted to another model, and fine-tuning."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch.nn.functional as F
from transformers import PreTrainedModel

from textdistill.core.seeding import stream_seed
from textdistill.distilled.dataset import DistilledDataset, before_softplus
from textdistill.distilled.spec import model_metadata
from textdistill.method.attention import AttentionLabelType
from textdistill.method.inner_loop import fine_tune
from textdistill.method.learner import Learner, ModelConfig, Params

logger = logging.getLogger(__name__)


def check_fits(distilled: DistilledDataset, learner: Learner) -> None:
    """Raises ValueError if ``learner`` cannot be trained on ``distilled``."""
    config, metadata = distilled.config, distilled.metadata
    supervised = config.attention_label_type is not AttentionLabelType.none
    made_for, actual = metadata.model, model_metadata(learner)
    for key in ["embedding_size", *(["num_layers", "num_heads"] if supervised else [])]:
        if getattr(made_for, key) != getattr(actual, key):
            raise ValueError(
                f"the distilled set was made for {made_for.name} with {key} {getattr(made_for, key)}, but"
                f" model.model_name={learner.name} has {getattr(actual, key)}; use a model of the same shape"
            )
    if config.lr_for_parameter and made_for.parameters != actual.parameters:
        raise ValueError(
            f"the distilled set has learning rates for the parameters of {made_for.name}, but those of"
            f" model.model_name={learner.name} have other names; use a model of the same family and depth"
        )
    if supervised and learner.rows_are_dropped:
        raise ValueError(
            f"model.disable_dropout must be true for attention labels with {learner.name}, got false: this family's"
            " attention is known only after dropout; or set distilled_data.attention_label_type=none"
        )
    if len(metadata.class_names) != learner.num_labels:
        raise ValueError(
            f"the distilled set has {len(metadata.class_names)} classes, but"
            f" the data have {learner.num_labels}; use the data of task {metadata.task!r}"
        )
    if config.positions > learner.max_positions:
        raise ValueError(
            f"the distilled set has {config.positions} positions, but model.model_name={learner.name}"
            f" takes at most {learner.max_positions}"
        )


def adapt_to(distilled: DistilledDataset, learner: Learner) -> DistilledDataset:
    """The set itself, or a copy without the parts that a model of another shape cannot use.

    Attention labels are left out if layers or heads differ. If parameters have other names, the geometric mean of
    their learning rates becomes the rate of all parameters. A warning tells of both.
    """
    config, raw = distilled.config, dict(distilled.raw)
    made_for, actual = distilled.metadata.model, model_metadata(learner)
    differ = [key for key in ("num_layers", "num_heads") if getattr(made_for, key) != getattr(actual, key)]
    if differ and config.attention_label_type is not AttentionLabelType.none:
        logger.warning(
            "attention labels are left out: the set was made for %s with %s",
            made_for.name,
            ", ".join(
                f"{key} {getattr(made_for, key)}, and {actual.name} has {getattr(actual, key)}" for key in differ
            ),
        )
        del raw["attention_labels"]
        config = replace(config, attention_label_type=AttentionLabelType.none)
    if config.lr_for_parameter and made_for.parameters != actual.parameters:
        logger.warning(
            "one learning rate for all parameters: the set was made for %s, whose parameters have other names than"
            " those of %s",
            made_for.name,
            actual.name,
        )
        raw["lr"] = before_softplus(F.softplus(raw["lr"]) * raw.pop("lr_scales").mean(-1).exp())
        config = replace(config, lr_for_parameter=False)
    if config is distilled.config:
        return distilled
    return DistilledDataset(raw, config, distilled.inner_config, distilled.metadata)


def train_learner(distilled: DistilledDataset, learner: Learner, seed: int, purpose: str, index: int) -> Params:
    """The parameters of learner ``index``, fine-tuned on the set.

    Args:
        distilled: on the learner's device.
        learner: must fit the set.
        seed: the run's seed.
        purpose: names the random stream of the head, ("head", purpose, index).
        index: of the learner in that stream.

    """
    params = learner.fresh_params(stream_seed(seed, "head", purpose, index))
    batches = distilled.batches(stream_seed(seed, "inner", purpose, index))
    return fine_tune(distilled.inner_loss(learner), params, batches)


def finetune(distilled: DistilledDataset, model: Learner | str | None, seed: int, index: int) -> PreTrainedModel:
    """Fine-tunes a model on the set; ``DistilledDataset.finetune`` documents it."""
    if not isinstance(model, Learner):
        name = model or distilled.metadata.model.name
        model = Learner(ModelConfig(distilled.metadata.task, name), distilled.metadata.class_names)
    adapted = adapt_to(distilled, model)
    check_fits(adapted, model)
    adapted.to(model.device, model.dtype)
    return model.to_model(train_learner(adapted, model, seed, "evaluation", index))
