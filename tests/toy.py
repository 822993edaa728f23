"""Overrides with which every verb runs in a second: the toy task on the tiny BERT."""

from __future__ import annotations

from pathlib import Path


def overrides(model: Path, data: Path, root: Path, *more: str) -> list[str]:
    """Two outer steps; runs go to ``root``, which tracks nothing unless ``more`` says so."""
    return [
        "data.task_name=toy",
        f"data.path={data}",
        "data.text_columns=[text]",
        "data.label_column=label",
        "data.max_length=32",
        f"model.model_name={model}",
        "distilled_data.seq_length=8",
        "train.max_steps=2",
        "train.n_eval_model=1",
        "evaluate.n_eval_model=2",
        f"base.save_dir_root={root}",
        f"base.data_dir_root={root}/data",
        "tracking=none",
        *more,
    ]
