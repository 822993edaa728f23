"""What several tests need: overrides for the toy task on the tiny BERT, and a set as the reference writes it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from textdistill.distilled import DistilledDataset


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


# Keys of a set's shape that the reference implementation does not have.
OURS = {"init", "attention_label_weight"}


def write_reference_folder(folder: Path, distilled: DistilledDataset) -> None:
    """As the reference implementation's ``DistilledData.save_pretrained`` writes it."""
    config = {key: value for key, value in asdict(distilled.config).items() if key not in OURS}
    card = {
        "config": {key: str(value) if isinstance(value, str) else value for key, value in config.items()},
        "train_config": asdict(distilled.train_config),
        "num_labels": len(distilled.card.class_names),
        "hidden_size": distilled.card.model["embedding_size"],
        "num_layers": distilled.card.model["num_layers"],
        "num_heads": distilled.card.model["num_heads"],
    }
    (folder / "config.json").write_text(json.dumps(card, indent=4))
    torch.save({name: tensor.detach() for name, tensor in distilled.raw.items()}, folder / "data_dict")
