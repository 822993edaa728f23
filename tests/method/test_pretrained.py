"""Weights: their identification, and the check of an installed package."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from tests.support.words import CLASS_NAMES
from textdistill.method import pretrained
from textdistill.method.learner import Learner, ModelConfig


def test_revision_is_the_checksum_of_local_weights(tiny_bert: Path, tiny_learner: Learner) -> None:
    weights = (tiny_bert / "model.safetensors").read_bytes()
    assert tiny_learner.revision == f"sha256:{hashlib.sha256(weights).hexdigest()}"
    assert tiny_learner.name == str(tiny_bert)


def test_minilm_weights_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(pretrained.MINILM_PACKAGE, reason="the package with MiniLM's weights is not installed")
    monkeypatch.setattr(pretrained, "MINILM_SHA256", "0" * 64)
    pretrained.locate_weights.cache_clear()
    with pytest.raises(ValueError, match=r"model\.model_name=minilm-l6.* must have sha256 0000.*, got 53aa5117"):
        Learner(ModelConfig(model_name=pretrained.MINILM), CLASS_NAMES)


def test_loading_warns_of_nothing(tiny_bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The head is not in the checkpoint, as it should be; transformers would print a table about it."""
    logger = logging.getLogger("transformers")
    before = logger.level
    pretrained.load_pretrained(str(tiny_bert), CLASS_NAMES, "eager")
    assert caplog.records == []
    assert logger.level == before
