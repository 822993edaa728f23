"""ONNX graphs of fine-tuned models say what the models say."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.words import CLASS_NAMES
from textdistill.commands.sets import finetune
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled import onnx as export
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import DistilledDataConfig, LearnerTrainConfig, SetMetadata, model_metadata
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner


@pytest.fixture
def folder(tiny_learner32: Learner, toy_split: TokenizedSplit, tmp_path: Path) -> Path:
    config = DistilledDataConfig(attention_label_type=AttentionLabelType.cls, seq_length=5)
    metadata = SetMetadata("toy", CLASS_NAMES, model_metadata(tiny_learner32))
    distilled = initial_set(config, LearnerTrainConfig(), metadata, tiny_learner32, toy_split, seed=0)
    distilled.save_pretrained(tmp_path / "set")
    return tmp_path / "set"


def test_onnx_gives_the_logits_of_the_model(folder: Path, tmp_path: Path) -> None:
    """For batches and lengths, padded or not, other than those of the example that the exporter saw."""
    output = tmp_path / "model"
    finetune(folder, output, onnx=True)
    model = AutoModelForSequenceClassification.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    session = onnxruntime.InferenceSession(output / "model.onnx")
    for texts in (["cat"], ["we saw a ship"] * 4, ["cat", "the old dog " * 9], ["bread " * 62]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits
        (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-5)


def test_without_the_packages(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install the extra: pip install 'textdistill\[onnx\]'"):
        finetune(folder, tmp_path / "model", onnx=True)
    assert not (tmp_path / "model").exists()
