"""Evaluates, verifies and compares with baselines."""

from __future__ import annotations

import csv
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from tests.support.fixtures import SaveModel
from tests.support.models import tiny_bert_config
from tests.support.runs import (
    SETTINGS,
    Compose,
    assert_nothing_written,
    pipeline_scores,
    strict_json,
)
from textdistill.commands.distill import distill
from textdistill.commands.evaluate import baseline, evaluate, verify
from textdistill.commands.sets import finetune
from textdistill.distilled import storage
from textdistill.distilled.dataset import DistilledDataset
from textdistill.evaluation import baselines

# --- verify


def test_verify_measures_what_is_stated(
    finished: dict[str, Any], distilled_dir: Path, composed: Compose, tmp_path: Path
) -> None:
    verification = verify(distilled_dir, composed(*SETTINGS))
    assert verification.verified is verification.same_data is verification.same_model is True
    assert verification.anomalies == []
    assert verification.metrics.keys() == finished["metrics"].keys() > {"loss", "accuracy", "macro_f1", "mcc"}
    for name, metric in verification.metrics.items():
        expected = {key: finished["metrics"][name][key] for key in ("mean", "std", "n")}
        assert asdict(metric) == {"stated": expected, "measured": expected, "within": True}
    assert not (tmp_path / "run").exists(), "it writes nothing"


def stating(distilled_dir: Path, folder: Path, **scores: Any) -> Path:
    """A copy of the set whose card states other scores, sealed as its maker would."""
    shutil.copytree(distilled_dir, folder)
    card = strict_json((folder / "config.json").read_text())
    del card["config_sha256"]
    card["provenance"]["scores"] |= scores
    (folder / "config.json").write_bytes(storage.sealed(card))
    return folder


def test_card_of_an_earlier_release_is_compared_by_what_it_states(
    distilled_dir: Path, composed: Compose, tmp_path: Path
) -> None:
    """Such a card states loss and accuracy alone. A card without one of them is refused."""
    scores = strict_json((distilled_dir / "config.json").read_text())["provenance"]["scores"]
    for name, left_out in (("early", ()), ("bare", ("loss",))):
        folder = stating(distilled_dir, tmp_path / name)
        card = strict_json((folder / "config.json").read_text())
        del card["config_sha256"]
        card["provenance"]["scores"] = {key: scores[key] for key in ("loss", "accuracy") if key not in left_out}
        (folder / "config.json").write_bytes(storage.sealed(card))
    verification = verify(tmp_path / "early", composed(*SETTINGS))
    assert set(verification.metrics) == {"loss", "accuracy"}
    assert verification.verified
    with pytest.raises(ValueError, match=r"bare: the card must state mean, std and n of loss \(KeyError"):
        verify(tmp_path / "bare", composed(*SETTINGS))


@pytest.mark.parametrize(
    ("shift", "std", "within"),
    [(0.04, 0.05, True), (0.06, 0.05, False), (-0.06, 0.05, False), (0.0, None, True), (0.001, None, False)],
)
def test_verify_allows_the_stated_spread(
    shift: float,
    std: float | None,
    within: bool,
    finished: dict[str, Any],
    distilled_dir: Path,
    composed: Compose,
    tmp_path: Path,
) -> None:
    stated = {"mean": finished["metrics"]["loss"]["mean"] + shift, "std": std, "n": 3}
    found = verify(stating(distilled_dir, tmp_path / "set", loss=stated), composed(*SETTINGS))
    assert found.metrics["loss"].within is found.verified is within
    assert asdict(found.metrics["loss"].stated) == stated
    assert found.metrics["accuracy"].within


def test_verify_says_that_data_or_model_are_others(
    distilled_dir: Path, composed: Compose, toy_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)
    (data / "test.csv").write_text((data / "test.csv").read_text().replace("cat", "dog"))
    found = verify(distilled_dir, composed(*SETTINGS, f"data.path={data}"))
    assert (found.same_data, found.same_model) == (False, True)


def test_verify_needs_a_stated_score(distilled_dir: Path, composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoints/best: the card must state a score to be verified"):
        verify(distilled_dir.parent / "checkpoints" / "best", composed(*SETTINGS))
    for number, stated in enumerate([{"mean": 1.0, "std": 0.1}, {"mean": "1", "std": 0.1, "n": 3}, 0.5]):
        with pytest.raises(ValueError, match=r"the card must state mean, std and n of loss"):
            verify(stating(distilled_dir, tmp_path / f"set{number}", loss=stated), composed(*SETTINGS))


@pytest.mark.parametrize("name", ["distilled.safetensors", "config.json"])
def test_one_flipped_bit_is_named(name: str, distilled_dir: Path, composed: Compose, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(distilled_dir, tmp_path / "set"))
    content = bytearray((folder / name).read_bytes())
    # The lowest bit of a digit of the stated score, and of a tensor's last number.
    place = content.index(b'"mean"') + 11 if name == "config.json" else len(content) - 4
    content[place] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{folder}/{name}: (the |config_)sha256 must be"):
        verify(folder, composed(*SETTINGS))


# --- evaluate


def test_evaluate_repeats_the_score_of_distill(
    finished: dict[str, Any], distilled_dir: Path, composed: Compose, tmp_path: Path
) -> None:
    results = evaluate(distilled_dir, composed("base.seed=5", "evaluate.n_eval_model=3")).to_dict()
    assert results["metrics"] == finished["metrics"]
    assert results == strict_json((tmp_path / "run" / "results.json").read_text())
    assert results["distilled"] == str(distilled_dir)
    shared = ("task", "model", "protocol", "splits", "seed", "versions")
    assert {key: results[key] for key in shared} == {key: finished[key] for key in shared}
    other = evaluate(distilled_dir, composed("base.seed=6", "evaluate.n_eval_model=3"))
    assert other.metrics["loss"].values != finished["metrics"]["loss"]["values"]


def test_evaluate_refuses_other_classes(distilled_dir: Path, composed: Compose, toy_data: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for file in toy_data.iterdir():
        with file.open(newline="") as source, (renamed / file.name).open("w", newline="") as target:
            csv.writer(target).writerows([text, "z" if label == "a" else label] for text, label in csv.reader(source))
    with pytest.raises(ValueError, match=r"the 3 classes .*, got 3 classes; class 0 is 'a' in the set and 'b' in"):
        evaluate(distilled_dir, composed(f"data.path={renamed}"))
    assert_nothing_written(tmp_path)


VERBS = ("distill", "evaluate", "finetune")


@pytest.mark.parametrize(
    ("verb", "change", "message"),
    [
        *((verb, {"hidden_size": 32}, "embedding_size 16, but .* has 32") for verb in VERBS),
        *((verb, {"max_position_embeddings": 6}, "8 positions, but .* takes at most 6") for verb in VERBS),
        ("distill", {"num_hidden_layers": 3}, "num_layers 2, but .* has 3"),
        ("distill", {"num_attention_heads": 2}, "num_heads 4, but .* has 2"),
    ],
)
def test_model_of_another_shape_is_refused(
    verb: str,
    change: dict[str, int],
    message: str,
    distilled_dir: Path,
    composed: Compose,
    save_model: SaveModel,
    tmp_path: Path,
) -> None:
    model = save_model(BertConfig(**{**tiny_bert_config().to_dict(), **change}), tmp_path / "other-model")
    overrides = [f"model.model_name={model}", "data.max_length=6"]
    work = {
        "distill": lambda: distill(composed(*overrides, f"distilled_data.pretrained_data_path={distilled_dir}")),
        "evaluate": lambda: evaluate(distilled_dir, composed(*overrides)),
        "finetune": lambda: finetune(distilled_dir, tmp_path / "tuned", str(model)),
    }
    with pytest.raises(ValueError, match=message):
        work[verb]()
    assert_nothing_written(tmp_path)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"num_attention_heads": 2}])
def test_another_model_of_the_same_width(
    change: dict[str, int],
    distilled_dir: Path,
    composed: Compose,
    save_model: SaveModel,
    toy_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Attention labels of other layers and heads are left out, and the record says so."""
    model = save_model(BertConfig(**{**tiny_bert_config().to_dict(), **change}), tmp_path / "other-model")
    caplog.set_level("WARNING", "textdistill")
    config = composed(f"model.model_name={model}", "base.seed=5", "evaluate.n_eval_model=1")
    results = evaluate(distilled_dir, config).to_dict()
    assert "attention labels are left out: the set was made for" in caplog.text
    assert results["distilled_data"]["attention_label_type"] == "none"
    assert results["made_for"] == DistilledDataset.from_pretrained(distilled_dir).metadata.model.name
    finetune(distilled_dir, tmp_path / "tuned", str(model), seed=5)
    accuracy, loss = pipeline_scores(tmp_path / "tuned", toy_data)
    assert [accuracy] == results["metrics"]["accuracy"]["values"]
    assert [loss] == pytest.approx(results["metrics"]["loss"]["values"], abs=1e-5)


def test_max_length_beyond_the_models_positions(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.max_length must be at most the 64 positions of .*, got 65"):
        distill(composed("data.max_length=65"))
    assert_nothing_written(tmp_path)


# --- baseline


@pytest.mark.parametrize("kind", ["random", "k-centers", "herding"])
def test_baseline_inner_loop(kind: str, composed: Compose, finished: dict[str, Any], tmp_path: Path) -> None:
    results = baseline(kind, composed("base.seed=5", "evaluate.n_eval_model=6")).to_dict()
    assert results == strict_json((tmp_path / "run" / "results.json").read_text())
    assert (results["baseline"], results["training"], results["train_step"]) == (kind, "inner_loop", 1)
    assert results["data_per_label"] == 1
    assert results["lr"] in baselines.INNER_LRS
    assert results["metrics"]["accuracy"]["n"] == 6
    # The same rows as distill's.
    assert results["splits"] == finished["splits"]


def test_baseline_ordinary(composed: Compose, finished: dict[str, Any]) -> None:
    results = baseline("herding", composed("distilled_data.data_per_label=2"), baselines.Training.ordinary).to_dict()
    assert (results["baseline"], results["training"], results["data_per_label"]) == ("herding", "ordinary", 2)
    assert "lr" not in results
    assert results["splits"] == finished["splits"]


def test_baseline_full(composed: Compose, finished: dict[str, Any], tmp_path: Path) -> None:
    results = baseline("full", composed("base.seed=5")).to_dict()
    assert results == strict_json((tmp_path / "run" / "results.json").read_text())
    assert results["baseline"] == "full"
    assert results["metrics"]["accuracy"]["std"] is None
    assert results["metrics"]["accuracy"]["n"] == 1
    assert results["splits"] == finished["splits"]


def test_baseline_of_no_kind(composed: Compose) -> None:
    with pytest.raises(ValueError, match="unknown baseline 'k_centers'; known baselines: full, random, k-c"):
        baseline("k_centers", composed())
