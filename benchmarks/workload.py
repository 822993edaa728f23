"""What is measured: our outer step in the configuration of the README's command, on made-up or real batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import transformers
from torch import Tensor

from textdistill.config import RunConfig, compose
from textdistill.core.processes import Processes
from textdistill.core.seeding import generator
from textdistill.data.task import TASKS, load_task
from textdistill.data.tokenized import TokenizedSplit
from textdistill.data.tokens import tokenize
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import Init, SetMetadata, model_metadata
from textdistill.method.learner import Learner
from textdistill.training.outer_step import OuterStep

CLASS_NAMES = TASKS["ag_news"].class_names
README = (
    "distilled_data.label_type=unrestricted",
    "distilled_data.attention_label_type=cls",
    "tracking=none",
    "data.train_batch_size=32",
)


def configure(model: str, *overrides: str) -> RunConfig:
    """Our defaults with the README's labels, then ``overrides``."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return compose(f"model.model_name={model}", *README, *overrides)


def noise_set(config: RunConfig, learner: Learner, class_names: tuple[str, ...] = CLASS_NAMES) -> DistilledDataset:
    """A distilled set that starts from noise and needs no texts: how it starts does not change the time of a step."""
    shape = replace(config.distilled_data, init=Init.noise)
    no_texts: TokenizedSplit = None  # type: ignore[assignment]
    metadata = SetMetadata(config.data.task_name, class_names, model_metadata(learner))
    return initial_set(shape, config.learner_train, metadata, learner, no_texts, config.base.seed)


def real_set(config: RunConfig, learner: Learner, train: TokenizedSplit) -> DistilledDataset:
    """The distilled set that a run starts with."""
    metadata = SetMetadata(config.data.task_name, CLASS_NAMES, model_metadata(learner))
    return initial_set(config.distilled_data, config.learner_train, metadata, learner, train, config.base.seed)


def made_up_batch(config: RunConfig, learner: Learner, tokens: int) -> dict[str, Tensor]:
    """A real batch of random texts of equal length: no padding, so all arithmetic counts."""
    random = generator(config.base.seed, "benchmark")
    shape = (config.data.train_batch_size, tokens)
    return {
        "input_ids": torch.randint(learner.model.config.vocab_size, shape, generator=random),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "token_type_ids": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.randint(learner.num_labels, shape[:1], generator=random),
    }


def real_splits(config: RunConfig, learner: Learner) -> dict[str, TokenizedSplit]:
    """The tokenised splits of ``config.data``."""
    return tokenize(load_task(config.data, config.base.seed), learner.tokenizer, config.data)


class OurStep:
    """Outer steps as the trainer takes them, without its schedule, validation and checkpoints."""

    def __init__(self, config: RunConfig, learner: Learner, distilled: DistilledDataset) -> None:
        self._step = OuterStep(distilled, learner, config.train, config.base.seed, Processes())

    def __call__(self, batch: Mapping[str, Tensor], step: int) -> None:
        """Outer step number ``step`` on a real batch."""
        self._step([batch], step)
