"""What several tests need: runs of the toy task on the tiny BERT, and a set as the reference writes it."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import BertTokenizerFast

from tests.support.words import CLASS_WORDS, FILLERS, VOCABULARY
from textdistill.config import RunConfig, compose
from textdistill.distilled.dataset import DistilledDataset

# What a page must show as it is: names of classes, of the task, of a folder, and of tokens.
HACK = "</script><script>window.hacked = 1</script>"
HOSTILE_CLASSES = {"a": '<img src=x onerror="window.hacked=1">', "b": "{{ 7 * 7 }} &amp; 'b'", "c": HACK}
HOSTILE_TASK = '<b onclick="window.hacked=1">toy</b>'
HOSTILE_FOLDER = "a run <i>&'\""


def overrides(model: Path, data: Path, root: Path, *more: str) -> list[str]:
    """Two outer steps in float32 on any machine; runs go to ``root``, which tracks nothing unless ``more`` says so."""
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
        "train.bf16=false",
        "evaluate.n_eval_model=2",
        "evaluate.bf16=false",
        f"base.save_dir_root={root}",
        f"base.data_dir_root={root}/data",
        "tracking=none",
        *more,
    ]


# Keys of a set's shape that the reference implementation does not have.
OURS = {"init", "attention_label_weight", "lr_for_parameter"}


def write_reference_folder(folder: Path, distilled: DistilledDataset) -> None:
    """As the reference implementation's ``DistilledData.save_pretrained`` writes it."""
    config = {key: value for key, value in asdict(distilled.config).items() if key not in OURS}
    card = {
        "config": {key: str(value) if isinstance(value, str) else value for key, value in config.items()},
        "train_config": asdict(distilled.inner_config),
        "num_labels": len(distilled.metadata.class_names),
        "hidden_size": distilled.metadata.model.embedding_size,
        "num_layers": distilled.metadata.model.num_layers,
        "num_heads": distilled.metadata.model.num_heads,
    }
    (folder / "config.json").write_text(json.dumps(card, indent=4))
    raw = {name: tensor.detach() for name, tensor in distilled.raw.items() if name != "lr_scales"}
    torch.save(raw, folder / "data_dict")


def write_classes(folder: Path, sizes: Sequence[int]) -> Path:
    """Writes train.csv and test.csv with as many rows of each class; classes are called "class 000" and so on.

    Three in four rows hold two words that only their class has in this order.
    """
    folder.mkdir()
    words = [word for group in CLASS_WORDS.values() for word in group]
    draw = random.Random(0)
    for name, factor in (("train", 4), ("test", 1)):
        rows = [["text", "label"]]
        for index, size in enumerate(sizes):
            for _ in range(factor * size):
                own = words[index % 24 : index % 24 + 1] + words[index // 24 :][:1]
                text = own if draw.random() < 0.75 else draw.choices(words, k=2)
                rows.append([" ".join([*text, *draw.choices(FILLERS, k=4)]), f"class {index:03}"])
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def hostile_config(model: Path, data: Path, folder: Path, *more: str) -> RunConfig:
    """A run on the toy task whose classes, task, folder and tokens are markup; all of it lies in ``folder``."""
    hostile_model, hostile_data = folder / "model", folder / "data"
    if not hostile_model.exists():
        shutil.copytree(model, hostile_model)
        words = {word: f"{HACK}{word}" if word in FILLERS else word for word in VOCABULARY}
        BertTokenizerFast(vocab={words[word]: i for i, word in enumerate(VOCABULARY)}).save_pretrained(hostile_model)
        hostile_data.mkdir()
        for name in ("train", "test"):
            with (data / f"{name}.csv").open(newline="") as file:
                (header, *rows) = csv.reader(file)
            with (hostile_data / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([header, *([text, HOSTILE_CLASSES[label]] for text, label in rows)])
    config = compose(*overrides(hostile_model, hostile_data, folder, *more))
    config.data.task_name = config.model.task_name = config.evaluate.task_name = HOSTILE_TASK
    config.base.save_dir = str(folder / "runs" / HOSTILE_FOLDER)
    config.train.save_ckpt_dir = f"{config.base.save_dir}/checkpoints"
    return config
