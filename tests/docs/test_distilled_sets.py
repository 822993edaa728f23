"""docs/distilled_sets.md: its blocks, one after the other, and what its training loops arrive at."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.standin import Hub
from tests.support.words import CLASS_NAMES
from textdistill.cli import main as cli
from textdistill.core.seeding import stream_seed
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.adapt import train_learner
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import DistilledDataConfig, LabelType, LearnerTrainConfig, SetMetadata, model_metadata
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner, Params

PAGE = Path(__file__).parents[2] / "docs" / "distilled_sets.md"
BLOCKS = re.findall("```(sh|python)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def assert_same(model: nn.Module, params: Params) -> None:
    weights = dict(model.named_parameters())
    for name, tensor in params.items():
        torch.testing.assert_close(weights[name].detach(), tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("label_type", "lr_for_step", "lr_for_parameter"),
    [("hard", True, True), ("soft", True, False), ("unrestricted", False, True)],
)
def test_blocks(
    hub: Hub,
    tiny_learner32: Learner,
    toy_split: TokenizedSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    label_type: str,
    lr_for_step: bool,
    lr_for_parameter: bool,
) -> None:
    """Three steps on six samples: the first batch is read twice, each time with a rate of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("textdistill.cli.app.quiet_logs", lambda: None)
    config = DistilledDataConfig(
        attention_label_type=AttentionLabelType.none,
        data_per_label=2,
        seq_length=7,
        label_type=LabelType(label_type),
        lr_for_step=lr_for_step,
        lr_for_parameter=lr_for_parameter,
        lr_init=0.3,
    )
    metadata = SetMetadata("toy", CLASS_NAMES, model_metadata(tiny_learner32), {"text_columns": ["text"]})
    made = initial_set(config, LearnerTrainConfig(3), metadata, tiny_learner32, toy_split, seed=0)
    if lr_for_step:
        made.raw["lr"].data += torch.tensor([0.0, -1.0, 1.0])
    if lr_for_parameter:
        made.raw["lr_scales"].data += torch.randn(
            made.raw["lr_scales"].shape, generator=torch.Generator().manual_seed(0)
        )
    if label_type != "hard":
        made.raw["labels"].data += torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    made.save_pretrained("my-set")
    # A checkpoint that has the head of learner 0 already.
    head = tiny_learner32.fresh_params(stream_seed(42, "head", "evaluation", 0))
    tiny_learner32.to_model(head).save_pretrained("my-model")

    Path("texts.csv").write_text("text,id\nthe old horse,7\n")

    names: dict[str, Any] = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(block, names)
            continue
        for line in block.splitlines():
            command, *arguments = shlex.split(line)
            assert command == "textdistill"
            cli.main(arguments)

    expected = train_learner(made, tiny_learner32, 42, "evaluation", 0)
    assert not torch.allclose(expected["classifier.weight"], head["classifier.weight"], atol=1e-3)
    for name in ("model", "ordinary", "another"):
        assert_same(names[name], expected)
    assert Path("labels.csv").read_text().startswith("text,id,prediction,probability,p_a,p_b,p_c\nthe old horse,7,")
    assert [row["prediction"] for row in names["table"]] == names["predictions"].labels
    assert set(hub.repositories) == {"owner/my-set"}
    assert hub.repositories["owner/my-set"].private
    assert all(torch.equal(names["again"].raw[name], tensor) for name, tensor in made.raw.items())
