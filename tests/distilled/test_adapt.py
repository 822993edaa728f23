"""A distilled set and learners: fine-tuning, adaptation to another model, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from tests.support.models import tiny_bert_config
from tests.support.sets import CLS, create
from tests.support.words import CLASS_NAMES
from textdistill.core.seeding import stream_seed
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.adapt import adapt_to, check_fits
from textdistill.method.attention import AttentionLabelType
from textdistill.method.inner_loop import fine_tune
from textdistill.method.learner import Learner, ModelConfig


def test_finetune_is_the_learner_that_evaluation_scores(tiny_learner32: Learner, toy_split: TokenizedSplit) -> None:
    distilled = create(tiny_learner32, toy_split, steps=2, attention_label_type=CLS)
    params = fine_tune(
        distilled.inner_loss(tiny_learner32),
        tiny_learner32.fresh_params(stream_seed(7, "head", "evaluation", 2)),
        distilled.batches(stream_seed(7, "inner", "evaluation", 2)),
    )
    # By name: the card remembers which model the set was made for.
    for model in (distilled.finetune(seed=7, index=2), distilled.finetune(tiny_learner32, seed=7, index=2)):
        weights = dict(model.named_parameters())
        assert all(torch.equal(weights[name], tensor) for name, tensor in params.items())
        assert model.config.id2label == dict(enumerate(CLASS_NAMES))
    other = distilled.finetune(tiny_learner32, seed=7, index=1)
    assert not torch.equal(dict(other.named_parameters())["classifier.weight"], params["classifier.weight"])


OTHER_MODELS: dict[str, tuple[dict[str, int], tuple[str, ...], str]] = {
    "width": ({"hidden_size": 24}, CLASS_NAMES, "with embedding_size 16, but model.model_name={name} has 24"),
    "depth": ({"num_hidden_layers": 1}, CLASS_NAMES, "with num_layers 2, but model.model_name={name} has 1"),
    "heads": ({"num_attention_heads": 2}, CLASS_NAMES, "with num_heads 4, but model.model_name={name} has 2"),
    "classes": ({}, ("a", "b"), "the distilled set has 3 classes, but the data have 2"),
    "positions": (
        {"max_position_embeddings": 6},
        CLASS_NAMES,
        "the distilled set has 7 positions, but model.model_name={name} takes at most 6",
    ),
}


@pytest.mark.parametrize("what", list(OTHER_MODELS))
def test_a_learner_of_another_shape_is_refused(
    tiny_learner32: Learner,
    toy_split: TokenizedSplit,
    save_model: Callable[..., Path],
    tmp_path: Path,
    what: str,
) -> None:
    changes, class_names, message = OTHER_MODELS[what]
    name = str(save_model(BertConfig(**(tiny_bert_config().to_dict() | changes)), tmp_path / what))
    other = Learner(ModelConfig(model_name=name), class_names)
    distilled = create(tiny_learner32, toy_split, attention_label_type=CLS)
    with pytest.raises(ValueError, match=re.escape(message.format(name=name))):
        check_fits(distilled, other)
    if what in ("depth", "heads"):  # these matter to attention labels only
        check_fits(create(tiny_learner32, toy_split, lr_for_parameter=False), other)
        distilled.raw["lr_scales"].data += torch.randn(1, len(tiny_learner32.trainable))
        adapted = adapt_to(distilled, other)
        check_fits(adapted, other)
        assert adapted.config.attention_label_type is AttentionLabelType.none
        assert adapted.config.lr_for_parameter is (what == "heads")
        # Another depth has other parameters.
        left_out = {"attention_labels"} | ({"lr_scales"} if what == "depth" else set())
        assert adapted.raw.keys() == distilled.raw.keys() - left_out
        assert distilled.raw.keys() >= left_out
        torch.testing.assert_close(adapted.lr, distilled.lr)
    else:
        assert adapt_to(distilled, other) is distilled
        with pytest.raises(ValueError, match=re.escape(message.format(name=name))):
            distilled.finetune(other)


def test_attention_labels_need_rows_without_dropout(
    tiny_learner: Learner, toy_split: TokenizedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "rows_are_dropped", True)
    create(tiny_learner, toy_split)
    with pytest.raises(ValueError, match=r"model\.disable_dropout must be true for attention labels"):
        create(tiny_learner, toy_split, attention_label_type=AttentionLabelType.cls)
