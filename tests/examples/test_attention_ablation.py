"""examples/attention_ablation.py: scores without the attention labels of a layer, of all, of a head."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from tests.support import toy
from textdistill.commands.distill import distill
from textdistill.config import compose
from textdistill.distilled.dataset import DistilledDataset

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "attention_ablation.py"))


@pytest.fixture(scope="module")
def settings(tiny_bert: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("ablation")
    given = toy.overrides(tiny_bert, toy_data, folder, f"base.save_dir={folder}/run")
    distill(compose(*given, "distilled_data.attention_label_type=cls", "train.max_steps=1"))
    return given


def run_dir(settings: list[str]) -> Path:
    return Path(settings[-1].partition("=")[2])


def test_every_layer_and_head_is_left_out(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "heads.png"
    SCRIPT["main"]([str(run_dir(settings) / "distilled"), "--heads", str(picture), *settings])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("|")][2:]
    assert names == ["nothing", "all attention labels", "layer 0", "layer 1"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_is_left_out_has_no_part_in_the_loss(settings: list[str]) -> None:
    distilled = DistilledDataset.from_pretrained(run_dir(settings) / "distilled")
    weights = SCRIPT["without"](distilled, [(0, 1), (1, 0)]).attention_weights
    assert weights is not None
    for layer in range(2):
        for head in range(2):
            factor = 0.0 if (layer, head) in ((0, 1), (1, 0)) else 1.0
            assert torch.equal(weights[:, layer, head], factor * distilled.attention_weights[:, layer, head])
