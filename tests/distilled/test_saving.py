"""Distilled sets in folders: what is saved is loaded, and what a stranger changed is refused by key."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sets import ALL, CLS, NONE, a_set, create
from tests.support.toy import OURS, write_reference_folder
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled import hub, storage
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.saving import drop_local_paths
from textdistill.distilled.spec import (
    AttentionLabelWeight,
    Init,
    LabelType,
    SetMetadata,
)
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(list(LabelType)),
    st.sampled_from([NONE, CLS, ALL]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
def test_what_is_saved_is_what_is_loaded(
    seed: int,
    label_type: LabelType,
    attention: AttentionLabelType,
    per_label: int,
    length: int,
    steps: int,
    for_step: bool,
) -> None:
    distilled = a_set(seed, label_type, attention, per_label, length, steps, for_step)
    with tempfile.TemporaryDirectory() as folder:
        distilled.save_pretrained(Path(folder, "set"), outer_steps=3)
        loaded = DistilledDataset.from_pretrained(Path(folder, "set"))
    assert loaded.raw.keys() == distilled.raw.keys()
    for name, tensor in distilled.raw.items():
        assert torch.equal(loaded.raw[name], tensor)
        assert loaded.raw[name].requires_grad == tensor.requires_grad
    assert loaded.config == distilled.config
    assert loaded.inner_config == distilled.inner_config
    assert loaded.metadata == SetMetadata(
        "toy",
        ("no", "yes"),
        distilled.metadata.model,
        {"path": "x"},
        {"seed": seed, "outer_steps": 3},
    )


def test_the_card_names_task_model_and_shapes(tmp_path: Path) -> None:
    a_set(0).save_pretrained(tmp_path / "set")
    readme = (tmp_path / "set" / "README.md").read_text()
    assert "# toy, distilled for some/model" in readme
    assert 'from_pretrained("PATH")' in readme
    assert "`attention_labels`: (4, 2, 3, 1, 3)" in readme


# Keys of config.json and values of another type or out of range.
WRONG: list[tuple[str, Any, str]] = [
    ("task", 5, "task must be a string, got 5"),
    ("class_names", "ab", "class_names must be a list, got 'ab'"),
    ("class_names", ["no", 1], "class_names[1] must be a string, got 1"),
    ("class_names", ["no", "no"], "class_names must be one or more distinct strings, got ('no', 'no')"),
    ("class_names", [], "class_names must be one or more distinct strings, got ()"),
    ("class_names", ["x" * 10**6, None], "class_names[1] must be a string, got None"),
    ("class_names", ["x" * 10**5] * 2, "class_names must be one or more distinct strings, got ('xxx"),
    ("class_names", ["a", "b", "c"], "tensors of a distilled set must have shapes"),
    ("model", [], "model must be an object, got []"),
    ("model.name", None, "model.name must be a string, got None"),
    ("model.revision", 1, "model.revision must be a string, got 1"),
    ("model.embedding_size", "4", "model.embedding_size must be a whole number from 1 to 2^63 - 1, got '4'"),
    ("model.num_layers", 0, "model.num_layers must be a whole number"),
    ("model.num_heads", True, "model.num_heads must be a whole number"),
    ("model.num_heads", 2**62, "tensors of a distilled set must have shapes"),
    ("model.parameters", "weight", "model.parameters must be a list, got 'weight'"),
    ("model.parameters", ["weight"], "tensors of a distilled set must have shapes"),
    ("model.extra", 1, "model must have the keys"),
    ("extra", 1, "the file must have the keys"),
    ("data", None, "data must be an object, got None"),
    ("provenance", [], "provenance must be an object, got []"),
    ("distilled_data", None, "distilled_data must be an object, got None"),
    ("distilled_data.label_type", "hards", "distilled_data.label_type must be one of hard, soft, unrestricted"),
    ("distilled_data.attention_label_type", None, "must be one of none, cls, all, got None"),
    ("distilled_data.data_per_label", 10**300, "distilled_data.data_per_label must be a whole number"),
    ("distilled_data.data_per_label", 2**62, "tensors of a distilled set must have shapes"),
    ("distilled_data.seq_length", 2**62, "tensors of a distilled set must have shapes"),
    ("distilled_data.lr_init", "0.1", "distilled_data.lr_init must be a number, got '0.1'"),
    ("distilled_data.lr_init", -1, "distilled_data.lr_init must be above 0 and finite, got -1.0"),
    ("distilled_data.fix_order", 1, "distilled_data.fix_order must be true or false, got 1"),
    ("distilled_data.__class__", {}, "distilled_data must have the keys"),
    ("learner_train.train_step", 0, "learner_train.train_step must be a whole number"),
    ("learner_train.batch_size_per_label", 3, "learner_train.batch_size_per_label must be from 1 to"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_a_card_of_wrong_values_is_refused_by_key(tmp_path: Path, key: str, value: Any, message: str) -> None:
    a_set(0).save_pretrained(tmp_path / "set")
    path = tmp_path / "set" / "config.json"
    card = json.loads(path.read_text())
    *groups, last = key.split(".")
    group = card
    for name in groups:
        group = group[name]
    group[last] = value
    del card["config_sha256"]
    path.write_bytes(storage.sealed(card))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        DistilledDataset.from_pretrained(tmp_path / "set")
    assert str(path) in str(error.value)
    assert "restore the folder from its source" in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    "key",
    [
        *("task", "class_names", "model", "data", "provenance", "distilled_data", "learner_train", "model.name"),
        *("model.revision", "distilled_data.lr_init", "learner_train.train_step"),
    ],
)
def test_a_card_without_a_key_is_refused(tmp_path: Path, key: str) -> None:
    a_set(0).save_pretrained(tmp_path / "set")
    path = tmp_path / "set" / "config.json"
    card = json.loads(path.read_text())
    *groups, last = key.split(".")
    del (card[groups[0]] if groups else card)[last]
    del card["config_sha256"]
    path.write_bytes(storage.sealed(card))
    with pytest.raises(ValueError, match=re.escape(f"missing ['{last}']")) as error:
        DistilledDataset.from_pretrained(tmp_path / "set")
    assert str(path) in str(error.value)


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    a_set(0).to(dtype=torch.float64).save_pretrained(tmp_path / "set")
    tensors, config = storage.load_folder(tmp_path / "set")
    tensors["lr"][0] = 1e300
    storage.save_folder(tmp_path / "set", tensors, config, "")
    with pytest.raises(ValueError, match=r"distilled.safetensors: tensor 'lr' must hold finite values"):
        DistilledDataset.from_pretrained(tmp_path / "set")


@pytest.mark.parametrize("label_type", list(LabelType))
@pytest.mark.parametrize("attention", [NONE, CLS, ALL])
@pytest.mark.parametrize("for_step", [True, False])
def test_the_references_format_is_read(
    tmp_path: Path, label_type: LabelType, attention: AttentionLabelType, for_step: bool
) -> None:
    distilled = a_set(0, label_type, attention, for_step=for_step)
    write_reference_folder(tmp_path, distilled)
    loaded = DistilledDataset.from_pretrained(tmp_path)
    assert loaded.raw.keys() == distilled.raw.keys() - {"lr_scales"}
    assert all(torch.equal(tensor, distilled.raw[name]) for name, tensor in loaded.raw.items())
    assert loaded.inner_config == distilled.inner_config
    theirs = {key: value for key, value in asdict(distilled.config).items() if key not in OURS}
    ours = {"init": Init.noise, "attention_label_weight": AttentionLabelWeight.equal, "lr_for_parameter": False}
    assert asdict(loaded.config) == theirs | ours
    assert loaded.metadata.model.embedding_size == 4
    assert len(loaded.metadata.class_names) == 2


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "hidden_size", 5, "must have shapes"),
        (None, "num_heads", 2, "must have shapes"),
        (None, "num_labels", 2**60, "must have shapes"),
        (None, "num_labels", "2", "num_labels must be a whole number"),
        (None, "num_labels", 0, "num_labels must be a whole number"),
        (None, "num_heads", 2.0, "num_heads must be a whole number"),
        (None, "config", None, "config must be an object"),
        (None, "train_config", [], "train_config must be an object"),
        ("config", "seq_length", 4, "must have shapes"),
        ("config", "data_per_label", 1, "must have shapes"),
        ("config", "attention_label_type", "all", "must have shapes"),
        ("config", "attention_label_type", "none", "must have shapes"),
        ("config", "lr_for_step", False, "must have shapes"),
        ("config", "lr_for_step", "no", "config.lr_for_step must be true or false"),
        ("config", "unknown", 1, "config must have the keys"),
        ("train_config", "train_step", 3, "must have shapes"),
    ],
)
def test_a_reference_card_that_contradicts_its_tensors_is_refused(
    tmp_path: Path, section: str | None, key: str, value: Any, message: str
) -> None:
    write_reference_folder(tmp_path, a_set(0))
    path = tmp_path / "config.json"
    card = json.loads(path.read_text())
    (card[section] if section else card)[key] = value
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        DistilledDataset.from_pretrained(tmp_path)
    assert str(path) in str(error.value)


def test_shared_names_no_place_and_changes_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    distilled = a_set(0)
    distilled.config.pretrained_data_path = "/home/me/earlier"
    distilled.metadata = SetMetadata(
        "/home/me/tasks/mine",
        ("/r/news", "~"),
        replace(distilled.metadata.model, name="/home/me/models/tiny"),
        {"text_columns": ["text"]},
        {"seed": 1, "config": {"data": {"path": "data", "max_length": 32}}},
    )
    shared = distilled.without_local_paths()
    assert shared.metadata == SetMetadata(
        "mine",
        ("/r/news", "~"),
        replace(distilled.metadata.model, name="tiny"),
        {"text_columns": ["text"]},
        {"seed": 1, "config": {"data": {"max_length": 32}}},
    )
    assert shared.config.pretrained_data_path is None
    assert all(torch.equal(shared.raw[name], tensor) for name, tensor in distilled.raw.items())
    assert "name the model tiny: /home/me/models/tiny is a folder of this machine" in caplog.text
    assert distilled.metadata.task == "/home/me/tasks/mine"


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_the_precision_of_the_file_is_known(tmp_path: Path, dtype: torch.dtype | None) -> None:
    a_set(0).save_pretrained(tmp_path / "set", dtype)
    assert DistilledDataset.from_pretrained(tmp_path / "set").stored_dtype == (dtype or torch.float32)
    assert a_set(0).stored_dtype is None


def test_commit_of_a_hub_set_is_kept(
    tiny_learner: Learner, toy_split: TokenizedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tiny_learner, toy_split).save_pretrained(tmp_path / "snapshots" / "abc")
    assert DistilledDataset.from_pretrained(tmp_path / "snapshots" / "abc").revision is None
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshots" / "abc"))
    assert DistilledDataset.from_pretrained("owner/name", revision="v1").revision == "abc"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("minilm-l6", "minilm-l6"),
        ("owner/model", "owner/model"),
        ("World, Sports", "World, Sports"),
        ("/home/me/models/tiny", "tiny"),
        ("./models/tiny", "tiny"),
        ("~/tiny/", "tiny"),
        (3, 3),
        (None, None),
        ({"path": "x", "name": "a"}, {"name": "a"}),
        ({"save_dir": "x", "save_dir_root": "y", "pretrained_data_path": None, "seed": 1}, {"seed": 1}),
        ({"a": [{"b": ("/x/y", 0.5)}]}, {"a": [{"b": ("y", 0.5)}]}),
        ({"direct": "x", "paths_used": 2, "rooted": True}, {"direct": "x", "paths_used": 2, "rooted": True}),
    ],
)
def test_drop_local_paths(value: Any, expected: Any) -> None:
    assert drop_local_paths(value) == expected
