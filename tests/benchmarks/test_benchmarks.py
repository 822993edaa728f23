from __future__ import annotations

import csv
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.reference_recipe import ReferenceStep, configure_reference, padded_batch, random_batches
from benchmarks.workload import CLASS_NAMES, OurStep, configure, made_up_batch, noise_set

from benchmarks import (
    classes,
    evaluation,
    limit,
    measure,
    mixed_precision,
    outer_step,
    precision,
    recipe,
    report,
    scaling,
    time_to_accuracy,
)
from tests.support.words import CLASS_WORDS, FILLERS, toy_rows
from textdistill.data.tokenized import TokenizedSplit
from textdistill.evaluation.scoring import Scores
from textdistill.method.hypergradient import Estimator, hypergradient
from textdistill.method.inner_loop import InnerBatch
from textdistill.method.learner import Learner, Params
from textdistill.method.losses import task_loss
from textdistill.runs.results import Score

PROMISED = {
    outer_step: "seq_length attention inner_steps estimator seconds peak_mb time_ratio time_ratio_spread memory_ratio",
    precision: "seq_length inner_steps estimator precision eps inputs_embeds labels attention_labels lr",
    mixed_precision: "seq_length outer seconds time_ratio time_ratio_spread inputs_embeds labels attention_labels lr",
    recipe: "seq_length recipe seconds peak_mb time_ratio time_ratio_spread memory_ratio",
    time_to_accuracy: "recipe outer_steps seconds accuracy stopped time_ratio time_ratio_spread",
    limit: "seq_length flops seconds matmul_rate achieved_share matmul attention norm elementwise parameters other",
    scaling: "rows cold_start_seconds warm_start_seconds step_seconds step_ratio anon_mb memory_ratio",
    classes: "seq_length classes batch_tokens seconds peak_mb time_ratio memory_ratio memory_growth set_mb",
    evaluation: "learners rows rows_per_second bare_rows_per_second time_ratio time_ratio_spread",
}


@pytest.fixture(scope="module")
def toy_news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that reads as AG News: train.csv and test.csv with the classes 0 to 3."""
    folder = tmp_path_factory.mktemp("toy-news")
    for name, per_class, seed in (("train", 80, 0), ("test", 20, 1)):
        draw = random.Random(seed)
        rows = [(text, list(CLASS_WORDS).index(label)) for text, label in toy_rows(per_class, seed)]
        rows += [(" ".join(draw.choices(FILLERS, k=draw.randint(4, 9))), 3) for _ in range(per_class)]
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return folder


@pytest.mark.parametrize("benchmark", PROMISED, ids=lambda module: module.__name__.rpartition(".")[2])
def test_quick_writes_what_is_promised(benchmark: object, tiny_bert: Path, toy_news: Path, tmp_path: Path) -> None:
    page, output = report.PAGE.read_text(), tmp_path / "found" / "rows.json"
    reads_data = (precision, mixed_precision, recipe, time_to_accuracy, evaluation)
    data = ["--data", str(toy_news)] if benchmark in reads_data else []

    benchmark.main(["--quick", "--output", str(output), "--model", str(tiny_bert), *data])

    found = json.loads(output.read_text())
    assert set(found) == {"machine", "rows"}
    assert set(found["machine"]) == {"cpu", "cores", "threads", "system", "python", "torch", "transformers"}
    assert all(set(PROMISED[benchmark].split()) <= set(row) for row in found["rows"])
    assert {row["model"] for row in found["rows"]} == {tiny_bert.name}
    if benchmark is outer_step:
        assert {row["estimator"]: row["time_ratio"] for row in found["rows"]}.keys() == {*Estimator}
        assert [row["memory_ratio"] for row in found["rows"] if row["estimator"] == "reverse"] == [1.0]
    if benchmark is time_to_accuracy:
        assert [row["recipe"] for row in found["rows"]] == ["ours", "reference"] + ["reference, trial"] * 6
    if benchmark is limit:
        (row,) = found["rows"]
        assert row["achieved_share"] == pytest.approx(row["flops"] / row["seconds"] / row["matmul_rate"])
        assert sum(row[kind] for kind in PROMISED[limit].split()[5:]) == pytest.approx(1)
    assert report.PAGE.read_text() == page


def test_docs_have_a_place_for_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text(report.PAGE.read_text())
    monkeypatch.setattr(report, "PAGE", page)
    names = [module.__name__.rpartition(".")[2] for module in PROMISED]

    for text in ("an earlier table", "| new |"):
        for name in names:
            report.insert(name, f"{text} {name}")

    for name in names:
        assert (
            f"<!-- {name}: written by benchmarks/{name}.py -->\n| new | {name}\n<!-- end of {name} -->"
            in page.read_text()
        )
    assert "an earlier table" not in re.sub(r"(?s)<!-- (?!end).*?<!-- end", "", page.read_text())
    with pytest.raises(ValueError, match="must hold the lines"):
        report.insert("unknown", "")


def test_rows_are_kept_unless_measured_again_and_never_from_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "performance.md")
    given = measure.arguments("").parse_args(["--quick", "--output", str(tmp_path / "rows.json")])
    report.record("any", given, ["a"], iter([{"a": 2, "b": 1.0}, {"a": 1, "b": None}]))
    report.record("any", given, ["a"], iter([{"a": 2, "b": [1234.5, 0.123456]}]))

    assert json.loads(given.output.read_text())["rows"] == [{"a": 1, "b": None}, {"a": 2, "b": [1234.5, 0.123456]}]
    assert capsys.readouterr().out.endswith("| a | b |\n| --- | --- |\n| 1 |  |\n| 2 | 1,234 to 0.123 |\n")

    monkeypatch.setattr(report, "machine", lambda: {"cpu": "another"})
    with pytest.raises(SystemExit, match="another machine"):
        report.record("any", given, ["a"], iter([]))


def test_rounds_alternate_and_ratios_are_taken_within_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 2.0, 10.0, 40.0, 100.0, 300.0])
    order = []

    def fake(function: Callable[..., measure.Row], name: str) -> measure.Row:
        order.append(name)
        return {"seconds": next(seconds)}

    monkeypatch.setattr(measure, "fresh", fake)
    found = measure.alternate(dict, {"a": ("a",), "b": ("b",)}, repeats=3)

    assert order == ["a", "b"] * 3
    assert measure.ratio(found["b"], found["a"], "seconds") == (3.0, (2.0, 4.0))
    assert measure.median(found["a"], "seconds") == 10.0


def test_a_measurement_that_the_system_ends_leaves_no_figure() -> None:
    found = measure.alternate(os._exit, {"dies": (1,)}, repeats=2)

    assert found == {"dies": [None, None]}
    assert measure.median(found["dies"], "seconds") is None
    assert measure.ratio(found["dies"], [{"seconds": 1.0}] * 2, "seconds") == (None, None)


def test_peak_memory_is_above_idle_and_of_the_steps_alone() -> None:
    # 200 MB before the first step do not count, 100 MB within one do.
    torch.ones(200 * 2**18).sum()
    seconds, peak = measure.observe(lambda _: torch.ones(100 * 2**18).sum(), 3)

    assert len(seconds) == 3
    assert 95 < peak < 150


def test_counted_flops_are_those_of_the_closed_formula(tiny_bert: Path) -> None:
    length, tokens = 24, 16
    config = configure(str(tiny_bert), f"distilled_data.seq_length={length}")
    learner = Learner(config.model, CLASS_NAMES)
    step = OurStep(config, learner, noise_set(config, learner))
    batch = made_up_batch(config, learner, tokens)
    width, inner, layers, classes = 16, 32, 2, len(CLASS_NAMES)

    def linear(samples: int, positions: int) -> int:
        """One unit of work: every linear map forwards, the pooler's and the classifier's on one position."""
        body = layers * positions * (4 * width**2 + 2 * width * inner)
        return 2 * samples * (body + width**2 + width * classes)

    def attention(samples: int, positions: int) -> int:
        """Fused, forwards and backwards: 2 products and 5, since the backward pass makes the weights again."""
        return layers * 7 * 2 * samples * positions**2 * width

    row = layers * 2 * classes * length * width
    # The distilled samples: 3 units for both gradients, 2 for that of the inputs after the shift; the real batch: 3.
    expected = (5 * linear(classes, length) + 2 * attention(classes, length) + 2 * 3 * row) + (
        3 * linear(config.data.train_batch_size, tokens) + attention(config.data.train_batch_size, tokens)
    )
    assert sum(limit.count_flops(lambda: step(batch, 0)).values()) == expected

    # The reference: 3 units and twice 3 for the gradient of the gradient. Its attention is products of another kind.
    config = configure_reference(str(tiny_bert), f"distilled_data.seq_length={length}")
    reference = ReferenceStep(learner, noise_set(config, learner), config.train, seed=1, max_steps=10)
    flops = limit.count_flops(lambda: reference(batch, 0))
    real = 3 * linear(config.data.train_batch_size, tokens)
    assert flops[torch.ops.aten.mm] + flops[torch.ops.aten.addmm] == 9 * linear(classes, length) + real


def test_replayed_matmuls_are_those_of_the_step(tiny_bert: Path) -> None:
    a, b = torch.randn(6, 4), torch.randn(5, 4)
    with limit.Matmuls() as matmuls:
        for _ in range(3):
            a @ b.t()
    with limit.Matmuls() as replayed:
        matmuls.replay()()

    assert list(matmuls.found.values()) == [3]
    assert matmuls.found.keys() == replayed.found.keys()
    assert list(replayed.found.values()) == [1]


@pytest.mark.parametrize("steps", [1, 2])
def test_the_references_recipe_has_the_gradient_of_reverse(tiny_bert: Path, steps: int) -> None:
    config = configure_reference(
        str(tiny_bert), "distilled_data.seq_length=8", f"learner_train.train_step={steps}", "train.max_grad_norm=null"
    )
    learner = Learner(config.model, CLASS_NAMES).to(dtype=torch.float64)
    distilled, before = noise_set(config, learner), noise_set(config, learner)
    reference = ReferenceStep(learner, distilled, config.train, seed=1, max_steps=10)
    batch = made_up_batch(config, learner, tokens=12)

    loss = reference(batch, step=3)

    params: Params = {n: p.detach() for n, p in reference.model.named_parameters() if n in learner.trainable}
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    batches: list[InnerBatch] = before.batches(0)
    found, parts = hypergradient(
        Estimator.reverse,
        before.inner_loss(learner, exact=True),
        lambda params: task_loss(learner(params, inputs).logits, batch["labels"]),
        params,
        batches,
    )
    assert loss == pytest.approx(found.item(), abs=1e-12)
    for name, grad in before.pull_back(batches, parts).items():
        torch.testing.assert_close(distilled.raw[name].grad, grad, rtol=1e-7, atol=1e-11)
    reference(batch, step=4)  # the warm-up's first rate is 0
    assert not any(torch.equal(tensor, before.raw[name]) for name, tensor in distilled.raw.items())


def test_the_references_optimiser(tiny_bert: Path) -> None:
    config = configure_reference(str(tiny_bert), "distilled_data.seq_length=8", "train.lr_inputs_embeds=0.1")
    learner = Learner(config.model, CLASS_NAMES)
    distilled = noise_set(config, learner)
    groups = ReferenceStep(learner, distilled, config.train, seed=1, max_steps=100).optimizer.param_groups

    decays = {n: g["weight_decay"] for n, t in distilled.raw.items() for g in groups if g["params"][0] is t}
    assert decays == {"inputs_embeds": 0.0, "labels": 0.01, "lr": 0.01, "attention_labels": 0.0}
    assert {g["initial_lr"] for g in groups} == {0.1}
    assert config.distilled_data.seq_length == 8
    assert configure_reference(str(tiny_bert)).distilled_data.seq_length == 512


def test_the_references_batches(toy_split: TokenizedSplit) -> None:
    batch = padded_batch(toy_split, torch.tensor([0, 3]))
    plain = toy_split.batch([0, 3])
    assert batch["input_ids"].size(1) % 8 == 0
    for name, tensor in plain.items():
        width = tensor.size(-1)
        torch.testing.assert_close(batch[name][..., :width], tensor)
        if name != "labels":
            assert not batch[name][..., width:].any()

    batches = random_batches(toy_split, 8, seed=0)
    epochs = [sorted(torch.cat([next(batches)["labels"] for _ in range(3)]).tolist()) for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [24, 24]


def test_the_reference_is_stopped_and_says_so(tiny_bert: Path, toy_news: Path, tmp_path: Path) -> None:
    overrides = ("distilled_data.seq_length=8",)
    setting = time_to_accuracy.Setting(str(tiny_bert), str(toy_news), str(tmp_path), 5, 3, 1.1, 1, overrides)

    stopped = time_to_accuracy.reference(setting, 1, 0.01, 0.1, limit=0.0)
    ended = time_to_accuracy.reference(setting, 1, 0.01, 0.1, limit=1000.0)

    assert (stopped["outer_steps"], stopped["reached"]) == (1, False)
    assert (ended["outer_steps"], ended["reached"]) == (5, False)


def test_validation_does_not_count_as_time(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(str(tiny_bert), "distilled_data.seq_length=8")
    learner = Learner(config.model, CLASS_NAMES)
    now = 0.0

    def slow_score(*_: object) -> Scores:
        nonlocal now
        now += 1000
        return Scores({"loss": Score.of([1.0]), "accuracy": Score.of([0.5])}, np.zeros((3, 3), dtype=np.int64))

    monkeypatch.setattr(time_to_accuracy.time, "perf_counter", lambda: now)
    monkeypatch.setattr(time_to_accuracy, "score", slow_score)
    clock, distilled = time_to_accuracy.Clock(1, config, learner, None), noise_set(config, learner)
    now = 50.0  # loading before the first validation
    for _ in range(3):
        clock(distilled)
        now += 7
    assert clock.running() == 21
    assert clock(distilled) == {"loss": 1.0, "accuracy": 0.5}
    assert (clock.seconds, clock.running()) == (21, 21)
