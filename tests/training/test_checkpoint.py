"""The file that keeps the state of a run: what it restores, and what it refuses."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from textdistill.training import checkpoint as checkpoint_module
from textdistill.training.checkpoint import Checkpoint, CheckpointFile, checksum

STATE = {"progress": {"step": 3, "losses": [0.1, 1 / 3]}, "nothing": None}
SETTINGS = {"train.epoch": 3, "model.model_name": "x", "data": ["a", "b"]}


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "double": torch.randn(2, 3, dtype=torch.float64),
        "half": torch.randn(4).bfloat16(),
        "transposed": torch.randn(3, 2).T,
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 5),
        "nan": torch.tensor([1.0, float("nan"), float("inf")]),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "checkpoint.safetensors"
    CheckpointFile(path, SETTINGS).save(Checkpoint({"x": torch.arange(6.0)}, STATE))
    return path


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path, tensors = tmp_path / "new" / "state", some_tensors()
    file = CheckpointFile(path, SETTINGS)
    file.save(Checkpoint(tensors, STATE))
    loaded = file.load()
    assert loaded.state == STATE
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name].nan_to_num(7.0), tensor.nan_to_num(7.0))
    assert [entry.name for entry in path.parent.iterdir()] == ["state"]


@pytest.mark.parametrize("after", [0, 40])
def test_disk_that_fills_leaves_the_earlier_state(saved: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"x" * after)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        CheckpointFile(saved, SETTINGS).save(Checkpoint({"x": torch.zeros(6)}, STATE))
    assert torch.equal(CheckpointFile(saved, SETTINGS).load().tensors["x"], torch.arange(6.0))
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_settings_that_differ_are_named(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"differs in extra .*, train\.epoch \(was 3, now 4\); restore") as error:
        CheckpointFile(saved, SETTINGS | {"train.epoch": 4, "extra": 1}).load()
    assert "model_name" not in str(error.value)


def test_every_flipped_bit_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for index in range(0, 8 * len(whole), 5):
        damaged = bytearray(whole)
        damaged[index // 8] ^= 1 << index % 8
        saved.write_bytes(damaged)
        try:
            loaded = CheckpointFile(saved, SETTINGS).load()
        except ValueError as error:
            assert str(saved) in str(error)
        else:  # white space of the header, or the like
            assert loaded.state == STATE
            assert torch.equal(loaded.tensors["x"], torch.arange(6.0))


def test_other_files_are_refused(saved: Path) -> None:
    def reseal(**changes: str) -> None:
        with safe_open(saved, "pt") as file:
            metadata = file.metadata()
        save_file(load_file(saved), saved, metadata | changes)

    text = json.dumps({"settings": SETTINGS})
    sha256 = checksum({"x": torch.arange(6.0)}, text)
    reseal(json=text, sha256=sha256)
    with pytest.raises(ValueError, match="must hold the state of a run as JSON"):
        CheckpointFile(saved, SETTINGS).load()
    reseal(format_version="2")
    with pytest.raises(ValueError, match="format_version of a checkpoint must be 1, got '2'"):
        CheckpointFile(saved, SETTINGS).load()
    save_file({"x": torch.zeros(1)}, saved)
    with pytest.raises(ValueError, match="format_version of a checkpoint must be 1, got None"):
        CheckpointFile(saved, SETTINGS).load()
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        CheckpointFile(saved, SETTINGS).load()
