"""examples/transfer.py: a set scored on encoders it was not made for."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from datasets import Dataset

from tests.support import toy
from tests.support.words import toy_rows
from textdistill.commands.distill import distill
from textdistill.config import compose

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "transfer.py"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder with an MRPC of 120 pairs."""
    texts, labels = zip(*toy_rows(40, seed=3), strict=True)
    answers = [int(label == "a") for label in labels]
    rows = Dataset.from_dict({"sentence1": list(texts), "sentence2": list(reversed(texts)), "label": answers})
    folder = tmp_path / "mrpc"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


def test_every_encoder_is_scored(
    tiny_bert: Path,
    toy_data: Path,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = toy.overrides(tiny_bert, toy_data, tmp_path, f"base.save_dir={tmp_path}/run")
    result = distill(compose(*settings, "distilled_data.attention_label_type=cls"))
    monkeypatch.setitem(SCRIPT["encoders"].__globals__, "CHECKPOINTS", (1, 2))
    capsys.readouterr()
    SCRIPT["main"]([str(tmp_path / "run" / "distilled"), str(pairs), *settings])
    lines = capsys.readouterr().out.splitlines()
    found = dict(line.strip("| ").split(" | ") for line in lines if line.startswith("|"))
    own = result.metrics["accuracy"]
    assert found.pop("the same") == f"{own.mean:.4f} ± {own.std:.4f}"
    assert set(found) == {
        "encoder", "---", "its first 1 layers of 2", "after 1 steps on mrpc", "after 2 steps on mrpc",
    }  # fmt: skip
