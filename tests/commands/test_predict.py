"""Predicts the labels of texts from a set and from a model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertTokenizerFast, PreTrainedTokenizerBase, pipeline

from tests.support.models import tiny_bert_config
from tests.support.runs import our_warnings, strict_json
from tests.support.words import CLASS_NAMES, toy_rows
from textdistill.commands.predict import Predictions, load_classifier, predict, prediction_columns
from textdistill.commands.sets import finetune
from textdistill.distilled import storage
from textdistill.distilled.dataset import DistilledDataset

TEXTS = [text for text, _ in toy_rows(30, seed=7)]


@pytest.fixture(scope="module")
def model_dir(distilled_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(finetune(distilled_dir, tmp_path_factory.mktemp("finetuned") / "model").output)


def stating(distilled_dir: Path, folder: Path, **data: Any) -> Path:
    """A copy of the set whose card says something else about its data."""
    shutil.copytree(distilled_dir, folder)
    card = strict_json((folder / "config.json").read_text())
    del card["config_sha256"]
    card["data"] |= data
    (folder / "config.json").write_bytes(storage.sealed(card))
    return folder


def save_classifier(folder: Path, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Path:
    config = tiny_bert_config()
    for key, value in settings.items():
        setattr(config, key, value)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- What is predicted


def test_predictions_are_those_of_an_ordinary_pipeline(distilled_dir: Path, model_dir: Path) -> None:
    """Text by text, without batches, as a stranger to this package would compute them."""
    classify = pipeline("text-classification", str(model_dir), device="cpu", top_k=None)
    answers = [{answer["label"]: answer["score"] for answer in classify(text)[0]} for text in TEXTS]
    expected = np.array([[answer[name] for name in CLASS_NAMES] for answer in answers])
    for source in (distilled_dir, model_dir, DistilledDataset.from_pretrained(distilled_dir)):
        predictions = predict(source, TEXTS)
        assert predictions.class_names == CLASS_NAMES
        assert predictions.probabilities.dtype == np.float32
        np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-6)
        assert predictions.labels == [max(answer, key=answer.__getitem__) for answer in answers]


def test_seed_decides_the_head(distilled_dir: Path, tmp_path: Path) -> None:
    finetune(distilled_dir, tmp_path / "model", seed=7)
    ours = predict(distilled_dir, TEXTS, seed=7).probabilities
    np.testing.assert_array_equal(ours, predict(tmp_path / "model", TEXTS).probabilities)
    assert not np.allclose(ours, predict(distilled_dir, TEXTS).probabilities, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_keep_their_order_in_every_batch_size(batch_size: int, model_dir: Path) -> None:
    texts = sorted(TEXTS, key=len)
    forwards = predict(model_dir, texts, batch_size=batch_size).probabilities
    backwards = predict(model_dir, texts[::-1], batch_size=batch_size).probabilities
    np.testing.assert_allclose(forwards, backwards[::-1], atol=1e-6)
    np.testing.assert_allclose(forwards[:1], predict(model_dir, texts[:1]).probabilities, atol=1e-6)


def test_rows_of_predictions() -> None:
    predictions = Predictions(("no", "yes"), np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32), 0)
    assert len(predictions) == 2
    assert predictions.to_rows() == [
        {"prediction": "yes", "probability": 0.75, "p_no": 0.25, "p_yes": 0.75},
        {"prediction": "no", "probability": 0.9, "p_no": 0.9, "p_yes": 0.1},
    ]
    assert list(predictions.to_rows()[0]) == prediction_columns(predictions.class_names)


# --- What texts may be


def test_texts_come_in_any_sequence(model_dir: Path) -> None:
    expected = predict(model_dir, TEXTS[:4]).probabilities
    frame = pd.DataFrame({"text": TEXTS[:4]})
    for texts in (
        tuple(TEXTS[:4]),
        np.array(TEXTS[:4]),
        frame["text"],
        Dataset.from_pandas(frame)["text"],
        iter(TEXTS[:4]),
    ):
        np.testing.assert_array_equal(predict(model_dir, texts).probabilities, expected)
    assert predict(model_dir, TEXTS[0]).labels == predict(model_dir, TEXTS[:1]).labels, "one string is one text"


def test_pairs_are_joined_by_the_tokenizer(model_dir: Path) -> None:
    pairs = list(zip(TEXTS[:5], TEXTS[5:10], strict=True))
    classify = pipeline("text-classification", str(model_dir), device="cpu", top_k=None)
    answers = [classify({"text": first, "text_pair": second}) for first, second in pairs]
    expected = [[{a["label"]: a["score"] for a in answer}[name] for name in CLASS_NAMES] for answer in answers]
    np.testing.assert_allclose(predict(model_dir, pairs).probabilities, expected, atol=1e-6)


def test_white_space_around_a_text_does_not_count(model_dir: Path) -> None:
    padded = [f" \n{text}\t" for text in TEXTS]
    np.testing.assert_array_equal(predict(model_dir, padded).probabilities, predict(model_dir, TEXTS).probabilities)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "must be one or more texts, got none"),
        (["cat", "", "dog", " \n"], "must not be empty, got 2 empty ones, the first in row 2"),
        ([("cat", ""), ("cat", "dog")], "must not be empty, got 1 empty ones, the first in row 1"),
        (["cat", ("cat", "dog")], "not a mixture"),
        ([("a", "b", "c")], "give one or two texts a row"),
        ([["cat", None]], "must be strings, got .* in row 1"),
        ({"text": ["cat"]}, "got a table"),
        (pd.DataFrame({"text": ["cat"]}), "got a table"),
        (Dataset.from_dict({"text": ["cat"]}), "got a table"),
    ],
)
def test_what_is_no_text_is_refused(texts: Any, message: str, model_dir: Path) -> None:
    with pytest.raises(ValueError, match=message):
        predict(model_dir, texts)


def test_set_of_pairs_needs_pairs(distilled_dir: Path, tmp_path: Path) -> None:
    pairs = stating(distilled_dir, tmp_path / "set", text_columns=["premise", "hypothesis"])
    with pytest.raises(ValueError, match=r"was made for pairs of texts \(premise, hypothesis\), got 1 text"):
        predict(pairs, ["cat"])
    assert len(predict(pairs, [("cat", "dog")])) == 1
    with pytest.raises(ValueError, match=r"was made for single texts \(text\), got 2 text"):
        predict(distilled_dir, [("cat", "dog")])


# --- Truncation


def test_cut_texts_are_counted(distilled_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of 4, 5 and 9 words, with [CLS] and [SEP] 6, 7 and 11 tokens."""
    texts = ["cat dog goat fox", "cat dog goat fox hare", "cat dog goat fox hare cat dog goat fox"]
    short = stating(distilled_dir, tmp_path / "set", max_length=7)
    predictions = predict(short, texts)
    assert predictions.truncated == 1
    assert our_warnings(caplog) == ["1 of 3 texts were cut to 7 tokens"]
    np.testing.assert_allclose(predictions.probabilities[2], predictions.probabilities[1], atol=1e-6)
    assert predict(distilled_dir, texts).truncated == 0


@pytest.mark.parametrize("stated", ["long", 10**9, None])
def test_length_that_a_stranger_states_is_not_trusted(stated: Any, distilled_dir: Path, tmp_path: Path) -> None:
    strange = stating(distilled_dir, tmp_path / "set", max_length=stated)
    assert load_classifier(strange).max_length == tiny_bert_config().max_position_embeddings


# --- What a source may be


def test_encoder_that_is_gone_is_named(distilled_dir: Path, tiny_bert: Path, tmp_path: Path) -> None:
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    gone = json.loads((distilled_dir / "config.json").read_text())
    folder = Path(shutil.copytree(distilled_dir, tmp_path / "set"))
    del gone["config_sha256"]
    gone["model"]["name"] = str(tmp_path / "gone")
    (folder / "config.json").write_bytes(storage.sealed(gone))
    with pytest.raises(FileNotFoundError, match=r"the encoder .*gone of .*set cannot be loaded .*--model"):
        predict(folder, TEXTS)
    found = predict(folder, TEXTS, model=str(tiny_bert))
    np.testing.assert_array_equal(found.probabilities, predict(distilled, TEXTS).probabilities)


def test_code_in_a_model_folder_is_not_run(model_dir: Path, tmp_path: Path) -> None:
    """A model of a type of its own is refused. One of a known type is read without the code."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name, change in (("known", {}), ("unknown", {"model_type": "evil"})):
        folder = Path(shutil.copytree(model_dir, tmp_path / name))
        shutil.copy(tmp_path / "evil.py", folder)
        config = json.loads((folder / "config.json").read_text()) | change
        config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForSequenceClassification"), "evil.Evil")
        (folder / "config.json").write_text(json.dumps(config))
    assert len(predict(tmp_path / "known", TEXTS)) == len(TEXTS)
    with pytest.raises(ValueError, match="trust_remote_code"):
        predict(tmp_path / "unknown", TEXTS)
    assert not (tmp_path / "ran").exists()


def test_folders_that_hold_no_classifier(
    distilled_dir: Path, tiny_bert: Path, tokenizer: BertTokenizerFast, model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"tiny-bert must be a fine-tuned classifier, .* weights for .*classifier"):
        predict(tiny_bert, TEXTS)
    for name, settings in (("several", {"problem_type": "multi_label_classification"}), ("number", {"num_labels": 1})):
        with pytest.raises(ValueError, match="must be a classifier with one label a text"):
            predict(save_classifier(tmp_path / name, tokenizer, **settings), TEXTS)
    with pytest.raises(ValueError, match=r"got a run folder; give .*run/distilled"):
        predict(distilled_dir.parent, TEXTS)
    with pytest.raises(ValueError, match=r"--model must be left out for .*model"):
        predict(model_dir, TEXTS, model="minilm-l6")
    with pytest.raises(FileNotFoundError):
        predict(tmp_path / "nothing", TEXTS)


def test_prediction_leaves_no_gradients(model_dir: Path) -> None:
    classifier = load_classifier(model_dir)
    classifier([("cat",)])
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in classifier.model.parameters())
