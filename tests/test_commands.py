"""The verbs as functions: what a run folder holds, and that all verbs tell one story."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoTokenizer, BertConfig, pipeline

import toy
from conftest import CLASS_NAMES, SaveModel, tiny_bert_config
from textdistill import baselines, commands
from textdistill.commands import baseline, distill, evaluate, finetune, show
from textdistill.config import RunConfig, compose
from textdistill.distilled import DistilledDataset
from textdistill.evaluation import Score
from textdistill.task import TokenizedSplit

SETTINGS = [
    "distilled_data.label_type=unrestricted",
    "distilled_data.attention_label_type=cls",
    "distilled_data.lr_init=1.0",
    "train.max_steps=3",
    "train.val_steps=1",
    "train.n_eval_model=2",
    "evaluate.n_eval_model=3",
    "base.seed=5",
]
Compose = Callable[..., RunConfig]


@pytest.fixture
def composed(tiny_bert: Path, toy_data: Path, tmp_path: Path) -> Compose:
    """A quick configuration with the run folder ``tmp_path / "run"``."""

    def composed(*more: str) -> RunConfig:
        return compose(*toy.overrides(tiny_bert, toy_data, tmp_path, f"base.save_dir={tmp_path}/run", *more))

    return composed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, toy_data: Path, root: Path) -> dict[str, Any]:
    """The results of one distillation whose run folder is ``root / "run"``."""
    config = compose(*toy.overrides(tiny_bert, toy_data, root, f"base.save_dir={root}/run", *SETTINGS))
    return distill(config)


@pytest.fixture(scope="module")
def distilled_dir(finished: dict[str, Any], root: Path) -> Path:
    return root / "run" / "distilled"


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in DistilledDataset.from_pretrained(folder).raw.items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def assert_nothing_written(folder: Path) -> None:
    assert not list(folder.rglob("results.json"))
    assert not list(folder.rglob("distilled"))


def our_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("textdistill")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


# --- distill


def test_run_folder(finished: dict[str, Any], root: Path) -> None:
    run = root / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "run.log",
        "checkpoints",
        "distilled",
        "results.json",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best", "last"}
    assert_equal(tensors(run / "distilled"), tensors(run / "checkpoints" / "best"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["distilled_data"]["lr_init"] == 1.0
    assert config["train"]["save_ckpt_dir"] == f"{run}/checkpoints"
    assert "step 3/3 validation: loss" in (run / "run.log").read_text()
    lines = [strict_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in lines for name in line}
    assert logged == {
        *("step", "time", "train_loss", "lr.0", "optimizer_lr"),
        *(f"validation_{name}{suffix}" for name in ("loss", "accuracy") for suffix in ("", "_std")),
        *(f"{kind}.{name}" for name in ("loss", "accuracy") for kind in ("avg", "std")),
    }
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 1, 2, 3]
    # The best step has the lowest validation loss.
    best = min((line for line in lines if "validation_loss" in line), key=lambda line: line["validation_loss"])
    assert (finished["best_step"], finished["validation"]["loss"]) == (best["step"], best["validation_loss"])


def test_results(finished: dict[str, Any], root: Path, tiny_bert: Path) -> None:
    results = strict_json((root / "run" / "results.json").read_text())
    assert results == finished
    assert results["task"] == "toy"
    assert results["model"]["name"] == str(tiny_bert)
    assert results["model"]["revision"].startswith("sha256:")
    assert results["protocol"] == "clean"
    assert results["splits"] == {
        "train": {"source": "train (rest)", "rows": 216},
        "validation": {"source": "24 of train", "rows": 24},
        "test": {"source": "test", "rows": 60},
    }
    assert results["seed"] == 5
    assert results["outer_steps"] == 3
    assert results["best_step"] in range(4)
    assert set(results["metrics"]) == {"loss", "accuracy"}
    assert 0 < results["training_seconds"] < results["seconds"]
    assert set(results["versions"]) == {"textdistill", "torch", "transformers", "datasets"}
    for name, metric in results["metrics"].items():
        assert set(metric) == {"mean", "std", "n", "values"}
        assert metric["n"] == len(metric["values"]) == 3
        assert all(type(value) is float for value in (metric["mean"], metric["std"], *metric["values"])), name
        assert metric["mean"] == pytest.approx(sum(metric["values"]) / 3)
    assert all(math.isclose(value * 60, round(value * 60)) for value in results["metrics"]["accuracy"]["values"])


def test_card_tells_what_the_set_is(finished: dict[str, Any], distilled_dir: Path, tiny_bert: Path) -> None:
    card = DistilledDataset.from_pretrained(distilled_dir).card
    assert (card.task, card.class_names) == ("toy", CLASS_NAMES)
    assert card.model["name"] == str(tiny_bert)
    assert card.model["revision"] == finished["model"]["revision"]
    assert (card.data["max_length"], card.data["protocol"]) == (32, "clean")
    assert (card.provenance["seed"], card.provenance["outer_steps"]) == (5, 3)
    assert card.provenance["scores"] == finished["metrics"]


def test_selection_never_reads_the_test_split(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test split raises for every access until training is over."""
    events: list[str] = []

    class Sealed:
        def __init__(self, split: TokenizedSplit) -> None:
            self.split = split

        def __getattr__(self, name: str) -> Any:
            assert "trained" in events, f"selection read {name} of the test split"
            return getattr(self.split, name)

        def __len__(self) -> int:
            assert "trained" in events, "selection read the length of the test split"
            return len(self.split)

    tokenize, fit = commands.tokenize, commands.fit

    def sealing(*args: Any) -> dict[str, Any]:
        splits = tokenize(*args)
        return {**splits, "test": Sealed(splits["test"])}

    def fitting(*args: Any) -> Any:
        result = fit(*args)
        events.append("trained")
        return result

    monkeypatch.setattr(commands, "tokenize", sealing)
    monkeypatch.setattr(commands, "fit", fitting)
    assert distill(composed())["splits"]["test"]["rows"] == 60
    events.clear()
    with pytest.raises(AssertionError, match="selection read"):
        distill(composed("train.skip_train=true"))


def test_skip_train(composed: Compose, tmp_path: Path) -> None:
    results = distill(composed("train.skip_train=true"))
    assert results["outer_steps"] == 0
    assert "validation" not in results
    assert not (tmp_path / "run" / "checkpoints").exists()
    # The set as it starts, which training moves.
    start = tensors(tmp_path / "run" / "distilled")
    torch.testing.assert_close(torch.nn.functional.softplus(start["lr"]), torch.tensor([0.1]))
    distill(composed())
    assert not torch.equal(tensors(tmp_path / "run" / "checkpoints" / "last")["inputs_embeds"], start["inputs_embeds"])


def test_pretrained_data_path_goes_on_from_a_saved_set(
    finished: dict[str, Any], distilled_dir: Path, composed: Compose, tmp_path: Path
) -> None:
    same = distill(composed(*SETTINGS, f"distilled_data.pretrained_data_path={distilled_dir}", "train.skip_train=true"))
    assert_equal(tensors(tmp_path / "run" / "distilled"), tensors(distilled_dir))
    assert same["metrics"] == finished["metrics"]
    distill(composed(*SETTINGS, f"distilled_data.pretrained_data_path={distilled_dir}"))
    first, *_ = map(strict_json, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1:])
    assert (first["step"], first["validation_loss"]) == (0, finished["validation"]["loss"])
    last = tensors(tmp_path / "run" / "checkpoints" / "last")
    assert not torch.equal(last["inputs_embeds"], tensors(distilled_dir)["inputs_embeds"])


def test_pretrained_set_counts(
    distilled_dir: Path, composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"distilled_data.pretrained_data_path={distilled_dir}"
    distill(composed(path, "train.skip_train=true", "distilled_data.seq_length=4"))
    (warning,) = our_warnings(caplog)
    assert warning.startswith("distilled_data.{attention_label_type,seq_length,label_type,lr_init} have no effect")
    assert tensors(tmp_path / "run" / "distilled")["inputs_embeds"].shape == (3, 8, 16)
    with pytest.raises(ValueError, match=r"learner_train\.train_step must be 1, that of the set in .*, got 2"):
        distill(composed(path, "learner_train.train_step=2"))


def test_diverged_learners_are_no_result(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = Score.of([1.0, math.nan])
    monkeypatch.setattr(commands, "_score", lambda *_: {"loss": nan, "accuracy": nan})
    with pytest.raises(FloatingPointError, match=r"losses of the learners on the test split must be finite"):
        distill(composed())
    assert_nothing_written(tmp_path)


def test_warning_comes_once(composed: Compose, distilled_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = composed("train.lr_attention_labels=0.5")
    for verb in (lambda: distill(config), lambda: evaluate(distilled_dir, config), lambda: baseline("full", config)):
        caplog.clear()
        verb()
        assert our_warnings(caplog) == [
            "train.lr_attention_labels has no effect: distilled_data.attention_label_type=none"
        ]


# --- evaluate


def test_evaluate_repeats_the_score_of_distill(
    finished: dict[str, Any], distilled_dir: Path, composed: Compose, tmp_path: Path
) -> None:
    results = evaluate(distilled_dir, composed("base.seed=5", "evaluate.n_eval_model=3"))
    assert results["metrics"] == finished["metrics"]
    assert results == strict_json((tmp_path / "run" / "results.json").read_text())
    assert results["distilled"] == str(distilled_dir)
    shared = ("task", "model", "protocol", "splits", "seed", "versions")
    assert {key: results[key] for key in shared} == {key: finished[key] for key in shared}
    other = evaluate(distilled_dir, composed("base.seed=6", "evaluate.n_eval_model=3"))
    assert other["metrics"]["loss"]["values"] != finished["metrics"]["loss"]["values"]


def test_evaluate_refuses_other_classes(distilled_dir: Path, composed: Compose, toy_data: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for file in toy_data.iterdir():
        with file.open(newline="") as source, (renamed / file.name).open("w", newline="") as target:
            csv.writer(target).writerows([text, "z" if label == "a" else label] for text, label in csv.reader(source))
    with pytest.raises(ValueError, match=r"the distilled set has classes \['a', .*, but the data have \['b',"):
        evaluate(distilled_dir, composed(f"data.path={renamed}"))
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32}, "embedding_size 16, but .* has 32"),
        ({"num_hidden_layers": 3}, "num_layers 2, but .* has 3"),
        ({"num_attention_heads": 2}, "num_heads 4, but .* has 2"),
        ({"max_position_embeddings": 6}, "8 positions, but .* takes at most 6"),
    ],
)
@pytest.mark.parametrize("verb", ["distill", "evaluate", "finetune"])
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


def test_max_length_beyond_the_models_positions(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.max_length must be at most the 64 positions of .*, got 65"):
        distill(composed("data.max_length=65"))
    assert_nothing_written(tmp_path)


# --- finetune


def test_finetuned_model_scores_what_evaluate_reports(
    finished: dict[str, Any], distilled_dir: Path, toy_data: Path, tmp_path: Path
) -> None:
    done = finetune(distilled_dir, tmp_path / "model", seed=5)
    assert done["output"] == str(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.id2label == dict(enumerate(CLASS_NAMES))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").model_max_length == 32
    with (toy_data / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    classify = pipeline("text-classification", str(tmp_path / "model"), device="cpu", top_k=None)
    answers = [{a["label"]: a["score"] for a in answer} for answer in classify([row["text"] for row in rows])]
    hits = [max(answer, key=answer.__getitem__) == row["label"] for answer, row in zip(answers, rows, strict=True)]
    losses = [-math.log(answer[row["label"]]) for answer, row in zip(answers, rows, strict=True)]
    assert sum(hits) / len(hits) == finished["metrics"]["accuracy"]["values"][0]
    assert sum(losses) / len(losses) == pytest.approx(finished["metrics"]["loss"]["values"][0], abs=1e-5)
    # Learners differ in loss, so that this was learner 0 and no other.
    assert len({round(value, 3) for value in finished["metrics"]["loss"]["values"]}) == 3


def test_finetune_does_not_overwrite(distilled_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output must be a new or empty folder, got .*; choose"):
        finetune(distilled_dir, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- show


def test_show(distilled_dir: Path, tiny_bert: Path) -> None:
    found = strict_json(json.dumps(show(distilled_dir, nearest=2, positions=4)))
    assert found["shapes"] == {
        "attention_labels": [3, 2, 4, 1, 8],
        "inputs_embeds": [3, 8, 16],
        "labels": [3, 3],
        "lr": [1],
    }
    assert found["bytes"]["inputs_embeds"] == 3 * 8 * 16 * 4
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    assert found["lr"] == distilled.lr.tolist()
    assert found["labels"] == distilled.labels.tolist()
    assert distilled.attention_labels is not None
    for sample, peaks in enumerate(found["attention"]):
        rows = distilled.attention_labels[sample]
        assert peaks[0]["probability"] == rows.max().item()
        for peak in peaks:
            where = (peak["layer"], peak["head"], peak["row"], peak["key"])
            assert rows[where].item() == peak["probability"] == rows[where[:3]].max().item()
    tokens = found["tokens"]
    assert [len(tokens), len(tokens[0]), len(tokens[0][0])] == [3, 4, 2]
    # The nearest token of one position, from its definition.
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model = DistilledDataset.from_pretrained(distilled_dir).finetune()
    words = model.get_input_embeddings().weight.detach()
    cosines = torch.cosine_similarity(words, distilled.raw["inputs_embeds"][1, 2].detach(), dim=-1)
    assert tokens[1][2][0]["token"] == tokenizer.convert_ids_to_tokens(int(cosines.argmax()))
    assert tokens[1][2][0]["cosine"] == pytest.approx(cosines.max().item(), abs=1e-5)


def test_show_does_without_the_model(distilled_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    distilled.card.model["name"] = str(tmp_path / "gone")  # type: ignore[index]
    distilled.save_pretrained(tmp_path / "set")
    found = show(tmp_path / "set")
    assert found["tokens"] is None
    assert found["shapes"]["lr"] == [1]
    assert "no nearest tokens" in caplog.text


# --- baseline


def test_baseline_random(composed: Compose, finished: dict[str, Any], tmp_path: Path) -> None:
    results = baseline("random", composed("base.seed=5", "evaluate.n_eval_model=6"))
    assert results == strict_json((tmp_path / "run" / "results.json").read_text())
    assert results["baseline"] == "random"
    assert results["lr"] in baselines.RANDOM_LRS
    assert results["metrics"]["accuracy"]["n"] == 6
    # The same rows as distill's.
    assert results["splits"] == finished["splits"]


def test_baseline_full(composed: Compose, finished: dict[str, Any], tmp_path: Path) -> None:
    results = baseline("full", composed("base.seed=5"))
    assert results == strict_json((tmp_path / "run" / "results.json").read_text())
    assert results["baseline"] == "full"
    assert results["metrics"]["accuracy"]["std"] is None
    assert results["metrics"]["accuracy"]["n"] == 1
    assert results["splits"] == finished["splits"]


def test_baseline_of_no_kind(composed: Compose) -> None:
    with pytest.raises(ValueError, match="unknown baseline 'herding'; known baselines: full, random"):
        baseline("herding", composed())  # type: ignore[arg-type]
