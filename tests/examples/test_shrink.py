"""examples/shrink.py: a run becomes a small set that names no machine and states its own score."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import toy
from textdistill.commands.distill import distill
from textdistill.commands.evaluate import verify
from textdistill.config import compose

SCRIPT = Path(__file__).parents[2] / "examples" / "shrink.py"


def test_shrink(tiny_bert: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = toy.overrides(tiny_bert, toy_data, tmp_path, f"base.save_dir={tmp_path}/run")
    config = compose(*settings, "distilled_data.attention_label_type=cls", "train.max_steps=2")
    distill(config)
    output = tmp_path / "small"
    runpy.run_path(str(SCRIPT))["main"]([str(tmp_path / "run"), str(output), "evaluate.n_eval_model=3"])

    full = load_file(tmp_path / "run/distilled/distilled.safetensors")
    half = load_file(output / "distilled.safetensors")
    for name in ("inputs_embeds", "attention_labels"):
        assert torch.equal(half[name], full[name].half())
    for name in ("labels", "lr"):
        assert torch.equal(half[name], full[name])
        assert half[name].dtype == torch.float32
    card = (output / "config.json").read_text()
    provenance = json.loads(card)["provenance"]
    assert str(tmp_path) not in card
    assert str(tiny_bert) not in card
    assert provenance["config"]["base"]["seed"] == config.base.seed
    assert provenance["scores"]["accuracy"]["n"] == 3
    assert provenance["splits"]["test"]["rows"] == 60
    assert "(n=3)" in capsys.readouterr().out

    config.evaluate.n_eval_model = 3
    accuracy = verify(output, config).metrics["accuracy"]
    assert accuracy.measured == accuracy.stated
