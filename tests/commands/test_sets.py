"""Fine-tunes from a saved set, and shows what it holds."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from tests.support.runs import (
    pipeline_scores,
    strict_json,
)
from tests.support.words import CLASS_NAMES
from textdistill.commands.sets import finetune, show
from textdistill.distilled.dataset import DistilledDataset

# --- finetune


def test_finetuned_model_scores_what_evaluate_reports(
    finished: dict[str, Any], distilled_dir: Path, toy_data: Path, tmp_path: Path
) -> None:
    done = finetune(distilled_dir, tmp_path / "model", seed=5)
    assert done.output == str(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.id2label == dict(enumerate(CLASS_NAMES))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").model_max_length == 32
    accuracy, loss = pipeline_scores(tmp_path / "model", toy_data)
    assert accuracy == finished["metrics"]["accuracy"]["values"][0]
    assert loss == pytest.approx(finished["metrics"]["loss"]["values"][0], abs=1e-5)
    # Learners differ in loss, so that this was learner 0 and no other.
    assert len({round(value, 3) for value in finished["metrics"]["loss"]["values"]}) == 3


def test_finetune_does_not_overwrite(distilled_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output must be a new or empty folder, got .*; choose"):
        finetune(distilled_dir, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- show


def test_show(distilled_dir: Path, tiny_bert: Path) -> None:
    summary = show(distilled_dir, nearest=2, positions=4)
    strict_json(json.dumps(asdict(summary)))
    assert summary.shapes == {
        "attention_labels": (3, 2, 4, 1, 8),
        "inputs_embeds": (3, 8, 16),
        "labels": (3, 3),
        "lr": (1,),
        "lr_scales": (1, 40),
    }
    assert summary.bytes["inputs_embeds"] == 3 * 8 * 16 * 4
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    assert summary.lr == distilled.lr.tolist()
    assert distilled.lr_scales is not None
    assert [list(step.values()) for step in summary.lr_scales] == distilled.lr_scales.tolist()
    assert summary.labels == distilled.labels.tolist()
    assert distilled.attention_labels is not None
    assert distilled.attention_weights is not None
    for sample, peaks in enumerate(summary.attention):
        rows = distilled.attention_labels[sample]
        weights = distilled.attention_weights[sample]
        strength = (rows.amax(-1) * weights).max().item()
        assert peaks[0].probability * peaks[0].weight == pytest.approx(strength)
        for peak in peaks:
            where = (peak.layer, peak.head, peak.row, peak.key)
            assert rows[where].item() == peak.probability == rows[where[:3]].max().item()
    tokens = summary.tokens
    assert [len(tokens), len(tokens[0]), len(tokens[0][0])] == [3, 4, 2]
    # The nearest token of one position, from its definition.
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model = DistilledDataset.from_pretrained(distilled_dir).finetune()
    words = model.get_input_embeddings().weight.detach()
    cosines = torch.cosine_similarity(words, distilled.raw["inputs_embeds"][1, 2].detach(), dim=-1)
    assert tokens[1][2][0].token == tokenizer.convert_ids_to_tokens(int(cosines.argmax()))
    assert tokens[1][2][0].cosine == pytest.approx(cosines.max().item(), abs=1e-5)


def test_show_does_without_the_model(distilled_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    distilled.metadata = replace(
        distilled.metadata, model=replace(distilled.metadata.model, name=str(tmp_path / "gone"))
    )
    distilled.save_pretrained(tmp_path / "set")
    summary = show(tmp_path / "set")
    assert summary.tokens is None
    assert summary.shapes["lr"] == (1,)
    assert "no nearest tokens" in caplog.text
