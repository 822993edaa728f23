"""The settings of the outer loop: what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from textdistill.core.processes import Processes
from textdistill.data.tokenized import TokenizedSplit
from textdistill.training.config import TrainConfig
from textdistill.training.schedule import Schedule


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *((key, 0, "must be at least 1, got 0") for key in ("epoch", "max_steps", "val_interval", "val_steps")),
        *((key, 0, "must be at least 1, got 0") for key in ("n_eval_model", "heads_per_step", "checkpoint_interval")),
        *((key, 0, "must be at least 1, or -1 for .*, got 0") for key in ("log_interval",)),
        *(
            (key, -1.0, "must be at least 0 and finite, got -1")
            for key in ("lr_inputs_embeds", "lr_labels", "weight_decay")
        ),
        *(("adam_beta2", value, f"must be at least 0 and below 1, got {value}") for value in (-0.1, 1.0, math.nan)),
        ("warmup_ratio", 1.5, "must be from 0 to 1, got 1.5"),
        ("max_grad_norm", 0.0, "must be above 0, or null for no clipping, got 0"),
        ("scheduler_type", "reduce_lr_on_plateau", "must be one of linear, cosine, .*got 'reduce_lr_on_plateau'"),
        ("scheduler_type", "warmup_stable_decay", "must be one of linear, cosine, .*got 'warmup_stable_decay'"),
    ],
)
def test_values_out_of_range(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.{key} {message}"):
        TrainConfig(**{key: value}).check()


def test_fp16_and_bf16_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"train\.fp16 and train\.bf16 exclude each other"):
        TrainConfig(fp16=True, bf16=True).check()


def test_batches_must_be_shared_out_evenly(toy_split: TokenizedSplit) -> None:
    processes = Processes()
    with pytest.raises(ValueError, match=r"batches_per_step must be at most the 6 batches of data\.train_batch_size=5"):
        Schedule.of(TrainConfig(batches_per_step=7), toy_split, 5, processes)
    processes.count = 2
    with pytest.raises(ValueError, match="batches_per_step must be a multiple of the 2 processes, got 3"):
        Schedule.of(TrainConfig(batches_per_step=3), toy_split, 5, processes)
