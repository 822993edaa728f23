"""The outer loop: what it repeats, keeps, restores, records and refuses."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Adam, AdamW

from tests.support.words import CLASS_NAMES
from textdistill.core.processes import Processes
from textdistill.core.seeding import stream_seed
from textdistill.data.batches import train_batches
from textdistill.data.task import DataConfig, load_task
from textdistill.data.tokens import TokenizedSplit, tokenize
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import (
    DistilledDataConfig,
    Init,
    LabelType,
    LearnerTrainConfig,
    SetMetadata,
    model_metadata,
)
from textdistill.evaluation.baselines import Baseline, coresets, inner_loop
from textdistill.evaluation.scoring import score, trained_on
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator, hypergradient
from textdistill.method.learner import Learner, ModelConfig
from textdistill.method.losses import task_loss
from textdistill.training import trainer
from textdistill.training.checkpoint import Checkpoint, Interrupted, load_checkpoint
from textdistill.training.trainer import (
    CHECKPOINT_FILE,
    FitResult,
    InnerPrecision,
    OptimizerType,
    Schedule,
    TrainConfig,
    fit,
    make_optimizer,
    outer_step,
)

# Of tests in which no optimiser steps.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

# 30 rows in batches of 10.
BATCH, EPOCH = 10, 3
SOFT = {"label_type": LabelType.soft, "attention_label_type": AttentionLabelType.cls}


StepResult = tuple[float, float, float]


class Recorder:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float | None]]] = []

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        self.lines.append((step, dict(metrics)))

    def mark(self) -> int:
        return len(self.lines)

    def rewind(self, mark: int) -> None:
        del self.lines[mark:]

    def timeless(self) -> list[tuple[int, dict[str, float | None]]]:
        """The lines without what a clock says."""
        return [(step, {k: v for k, v in line.items() if not k.endswith("_seconds")}) for step, line in self.lines]

    def steps(self, name: str) -> list[int]:
        return [step for step, metrics in self.lines if name in metrics]

    def values(self, name: str) -> list[float | None]:
        return [metrics[name] for _, metrics in self.lines if name in metrics]


class Scripted:
    """A validation that returns losses one by one, or raises a signal, and remembers the sets that it was shown."""

    def __init__(self, *losses: float | signal.Signals) -> None:
        self.losses: Iterator[float | signal.Signals] = iter(losses)
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self, distilled: DistilledDataset) -> dict[str, float]:
        self.seen.append(raw_copy(distilled))
        loss = next(self.losses)
        if isinstance(loss, signal.Signals):
            signal.raise_signal(loss)
        return {"loss": loss}


def flat(distilled: DistilledDataset) -> dict[str, float]:
    """A validation that never changes."""
    return {"loss": 1.0}


def create(learner: Learner, split: TokenizedSplit, train_step: int = 1, **config: Any) -> DistilledDataset:
    data = DistilledDataConfig(**({"seq_length": 4} | config))
    inner_config = LearnerTrainConfig(train_step=train_step)
    return initial_set(
        data, inner_config, SetMetadata("toy", CLASS_NAMES, model_metadata(learner)), learner, split, seed=0
    )


def raw_copy(distilled: DistilledDataset) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in distilled.raw.items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def run(tiny_learner: Learner, toy_split: TokenizedSplit, tmp_path: Path) -> Callable[..., FitResult]:
    """``fit`` with everything but the distilled set and the settings of interest filled in."""

    def run(
        distilled: DistilledDataset,
        validate: trainer.Validate = flat,
        tracker: Recorder | None = None,
        seed: int = 0,
        batch_size: int = BATCH,
        checkpoint: Checkpoint | None = None,
        learner: Learner = tiny_learner,
        **config: Any,
    ) -> FitResult:
        settings = TrainConfig(**{"save_ckpt_dir": str(tmp_path / "checkpoints")} | config)
        recorder = tracker or Recorder()
        schedule = Schedule.of(settings, toy_split, batch_size)
        return fit(distilled, learner, toy_split, schedule, validate, recorder, settings, seed, checkpoint=checkpoint)

    return run


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outer steps that change nothing; their loss counts 1, 2, 3, ..."""
    losses = iter(range(1, 1000))
    monkeypatch.setattr(trainer, "outer_step", lambda *_: (float(next(losses)), 0.5, 0.1))


# --- What a run repeats and what it leaves alone


def test_one_seed_one_result(tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., FitResult]) -> None:
    def trained(seed: int) -> tuple[dict[str, Tensor], Recorder]:
        distilled, recorder = create(tiny_learner, toy_split, train_step=2, **SOFT), Recorder()
        run(distilled, Scripted(3.0, 2.0), recorder, seed, max_steps=3, val_steps=3, heads_per_step=2)
        return raw_copy(distilled), recorder

    (first, recorded), (again, recorded_again), (other, _) = trained(0), trained(0), trained(1)
    assert equal(first, again)
    assert recorded.timeless() == recorded_again.timeless()
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_every_outer_step_has_draws_of_its_own(
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of heads, and of real rows, all of which an epoch shows once."""
    seeds, labels = [], []

    def spy(distilled: DistilledDataset, learner: Learner, batches: list[dict[str, Tensor]], *args: Any) -> StepResult:
        seeds.append(args[-1])
        labels.extend(batch["labels"].tolist() for batch in batches)
        return 1.0, 0.5, 0.1

    monkeypatch.setattr(trainer, "outer_step", spy)
    run(create(tiny_learner, toy_split), epoch=2)
    assert len(set(seeds)) == 2 * EPOCH
    for epoch in (labels[:EPOCH], labels[EPOCH:]):
        assert sorted(label for batch in epoch for label in batch) == sorted(toy_split.labels.tolist())
    assert labels[:EPOCH] != labels[EPOCH:]


def test_learner_keeps_its_pretrained_body(
    tiny_bert: Path, toy_split: TokenizedSplit, tiny_learner: Learner, tmp_path: Path
) -> None:
    learner = Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    distilled = create(learner, toy_split, lr_init=1.0)
    config = TrainConfig(epoch=1, save_ckpt_dir=str(tmp_path))
    fit(distilled, learner, toy_split, Schedule.of(config, toy_split, BATCH), flat, Recorder(), config, 0)
    assert equal(dict(learner.model.state_dict()), before)
    untouched = Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)
    assert equal(learner.fresh_params(7), untouched.fresh_params(7))


# --- Which set is kept


@pytest.mark.parametrize(
    ("losses", "best"),
    [((3.0, 1.0, 2.0, 1.5), 1), ((1.0, 2.0, 3.0, 4.0), 0), ((4.0, 3.0, 2.0, 1.0), 3), ((2.0, 1.0, 1.0, 1.0), 1)],
)
def test_lowest_validation_loss_is_restored(
    losses: tuple[float, ...],
    best: int,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
    tmp_path: Path,
) -> None:
    distilled, validate = create(tiny_learner, toy_split, **SOFT), Scripted(*losses)
    result = run(distilled, validate, max_steps=3, val_steps=1)
    assert len({tensors["inputs_embeds"].sum().item() for tensors in validate.seen}) == 4
    assert equal(raw_copy(distilled), validate.seen[best])
    assert (result.outer_steps, result.best_step, result.validation) == (3, best, {"loss": losses[best]})
    for name, expected, step in (("best", validate.seen[best], best), ("last", validate.seen[-1], 3)):
        saved = DistilledDataset.from_pretrained(tmp_path / "checkpoints" / name)
        assert equal(raw_copy(saved), {key: tensor.float() for key, tensor in expected.items()})
        assert saved.metadata.provenance["outer_steps"] == step


# --- When it ends, validates and logs


@pytest.mark.parametrize(
    ("config", "steps"),
    [({"epoch": 2}, 6), ({"epoch": 2, "max_steps": 4}, 4), ({"epoch": 1, "max_steps": 10}, 3)],
)
@pytest.mark.usefixtures("still")
def test_epoch_or_max_steps_whichever_ends_first(
    config: dict[str, int],
    steps: int,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
) -> None:
    assert run(create(tiny_learner, toy_split), **config).outer_steps == steps


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        pytest.param({"epoch": 3}, [0, 3, 6, 9], id="every epoch"),
        pytest.param({"epoch": 5, "val_interval": 2}, [0, 6, 12, 15], id="every other epoch, and at the end"),
        pytest.param({"epoch": 3, "val_steps": 4}, [0, 4, 8, 9], id="val_steps"),
        pytest.param({"epoch": 3, "val_steps": 4, "val_interval": 1}, [0, 4, 8, 9], id="val_steps overrides"),
        pytest.param({"epoch": 9, "max_steps": 10, "val_interval": 5}, [0, 2, 4, 6, 8, 10], id="max_steps is earlier"),
        pytest.param({"max_steps": 2, "val_steps": 5}, [0, 2], id="val_steps is later than max_steps"),
    ],
)
@pytest.mark.usefixtures("still")
def test_validation_steps(
    config: dict[str, int],
    steps: list[int],
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
) -> None:
    recorder = Recorder()
    run(create(tiny_learner, toy_split), tracker=recorder, **config)
    assert recorder.steps("validation_loss") == steps


@pytest.mark.parametrize(
    ("batch_size", "config", "steps", "losses"),
    [
        pytest.param(1, {"epoch": 1}, list(range(3, 31, 3)), [2.0 + 3 * i for i in range(10)], id="a tenth of 30"),
        pytest.param(10, {"epoch": 1}, [1, 2, 3], [1.0, 2.0, 3.0], id="an epoch of less than 10 steps"),
        pytest.param(10, {"log_interval": 2, "max_steps": 5}, [2, 4, 5], [1.5, 3.5, 5.0], id="every 2, and the last"),
    ],
)
@pytest.mark.usefixtures("still")
def test_log_interval(
    batch_size: int,
    config: dict[str, int],
    steps: list[int],
    losses: list[float],
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
) -> None:
    recorder = Recorder()
    distilled = create(tiny_learner, toy_split, train_step=2, lr_init=0.25)
    run(distilled, tracker=recorder, batch_size=batch_size, **config)
    assert recorder.steps("train_loss") == steps
    assert recorder.values("train_loss") == losses
    for name in ("lr.0", "lr.1"):
        assert recorder.values(name) == [pytest.approx(0.25)] * len(steps)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("linear", [0.5, 1.0, 0.5, 0.0]),
        ("cosine", [0.5, 1.0, 0.5, 0.0]),
        ("cosine_with_restarts", [0.5, 1.0, 0.5, 0.0]),
        ("polynomial", [0.5, 1.0, 0.5, 0.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("constant_with_warmup", [0.5, 1.0, 1.0, 1.0]),
        ("inverse_sqrt", [0.5, 1.0, math.sqrt(2 / 3), math.sqrt(1 / 2)]),
    ],
)
@pytest.mark.usefixtures("still")
def test_scheduler_types(
    name: str,
    rates: list[float],
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
) -> None:
    recorder = Recorder()
    config = {"scheduler_type": name, "warmup_ratio": 0.5, "max_steps": 4, "lr_inputs_embeds": 1.0}
    run(create(tiny_learner, toy_split), tracker=recorder, log_interval=1, **config)
    assert recorder.values("optimizer_lr") == pytest.approx(rates, abs=1e-3)


def test_every_scheduler_type_is_tested() -> None:
    (mark,) = (m for m in test_scheduler_types.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert [name for name, _ in mark.args[1]] == list(trainer.SCHEDULER_TYPES)


# --- How it stops


def test_loss_that_is_not_finite_stops_the_run(
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = iter(range(1, 10))
    step = outer_step

    def diverging(distilled: DistilledDataset, *args: Any) -> StepResult:
        if next(calls) == 3:
            # The learner's parameters overflow, as they do with far too large a rate.
            distilled.raw["lr"].data.fill_(1e308)
        return step(distilled, *args)

    monkeypatch.setattr(trainer, "outer_step", diverging)
    distilled, validate = create(tiny_learner, toy_split), Scripted(3.0, 2.0)
    with pytest.raises(FloatingPointError) as error:
        run(distilled, validate, max_steps=5, val_steps=2, checkpoint_interval=2)
    message = str(error.value)
    stopped = r"outer_loss nan, hypergradient_norm nan after outer step 2, learned lr \[.*e\+30[78]\]: must be finite;"
    assert re.search(stopped, message)
    path = tmp_path / "checkpoints" / CHECKPOINT_FILE
    assert f"the checkpoint of step 2 is in {path};" in message
    assert "lower train.lr_inputs_embeds" in message
    assert all(tensor.isfinite().all() for tensor in distilled.raw.values())
    assert (tmp_path / "checkpoints" / "best").is_dir()
    # The state is that before the step.
    assert torch.equal(load_checkpoint(path, {}).tensors["raw.inputs_embeds"], validate.seen[1]["inputs_embeds"])


def test_hypergradient_that_is_not_finite_stops_the_run_too(
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the step that made it, with the set as it was."""
    pull_back = DistilledDataset.pull_back

    def broken(self: DistilledDataset, *args: Any) -> dict[str, Tensor]:
        return {name: grad * math.nan for name, grad in pull_back(self, *args).items()}

    monkeypatch.setattr(DistilledDataset, "pull_back", broken)
    distilled = create(tiny_learner, toy_split)
    before, lr = raw_copy(distilled), distilled.lr.tolist()
    with pytest.raises(FloatingPointError) as error:
        run(distilled, max_steps=5)
    message = str(error.value)
    assert f", hypergradient_norm nan after outer step 0, learned lr {lr}: must be finite; the checkpoint" in message
    assert f"the checkpoint of step 0 is in {tmp_path / 'checkpoints' / CHECKPOINT_FILE};" in message
    assert "outer_loss nan" not in message
    assert equal(raw_copy(distilled), before)


def test_validation_loss_that_is_not_finite_stops_the_run(
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., FitResult], tmp_path: Path
) -> None:
    with pytest.raises(
        FloatingPointError, match=r"validation_loss nan after outer step 0, .*; no checkpoint was written"
    ):
        run(create(tiny_learner, toy_split), Scripted(math.nan))
    with pytest.raises(FloatingPointError, match=r"validation_loss inf after outer step 2, .* of step 1 is in"):
        run(create(tiny_learner, toy_split), Scripted(1.0, 0.5, math.inf), val_steps=1, checkpoint_interval=1)


def test_overflow_in_float16_is_a_step_left_out(
    tiny_learner32: Learner, toy_split: TokenizedSplit, run: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is infinite, which neither stops the run nor counts as clipped; the scale is halved."""
    pull_back, calls = DistilledDataset.pull_back, iter(range(1, 100))

    def overflowing(self: DistilledDataset, *args: Any) -> dict[str, Tensor]:
        grads, call = pull_back(self, *args), next(calls)
        return {name: grad if call > 2 else torch.full_like(grad, math.inf) for name, grad in grads.items()}

    monkeypatch.setattr(DistilledDataset, "pull_back", overflowing)
    distilled, validate = create(tiny_learner32, toy_split), Scripted(*[1.0] * 4)
    result = run(distilled, validate, learner=tiny_learner32, max_steps=3, val_steps=1, fp16=True, max_grad_norm=1e9)
    assert result.clipped_steps == 0
    start, first, second, third = (seen["inputs_embeds"] for seen in validate.seen)
    assert torch.equal(start, first)
    assert torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["validate", "step"])
def test_interrupted_run_leaves_its_state_and_the_last_set(
    where: str,
    signum: signal.Signals,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step is finished first; a validation, which starts over, is not."""
    validate, step, calls = Scripted(2.0, 1.0, signum, 0.5), outer_step, iter(range(1, 10))

    def interrupted(*args: Any) -> StepResult:
        if where == "step" and next(calls) == 3:
            signal.raise_signal(signum)
        return step(*args)

    monkeypatch.setattr(trainer, "outer_step", interrupted)
    distilled, before = create(tiny_learner, toy_split), signal.getsignal(signum)
    with pytest.raises(KeyboardInterrupt) as error:
        run(distilled, validate, max_steps=9, val_steps=1 if where == "validate" else 5)
    assert signal.getsignal(signum) is before
    reached = 2 if where == "validate" else 3
    path = tmp_path / "checkpoints" / CHECKPOINT_FILE
    assert isinstance(error.value, Interrupted)
    assert error.value.signum == signum
    assert str(error.value) == f"interrupted at step {reached}/9; the state is in {path}"
    assert load_checkpoint(path, {}).state["progress"]["step"] == reached
    last = DistilledDataset.from_pretrained(tmp_path / "checkpoints" / "last")
    assert equal(raw_copy(last), {name: tensor.float() for name, tensor in raw_copy(distilled).items()})
    assert not torch.equal(distilled.raw["inputs_embeds"], validate.seen[0]["inputs_embeds"])
    assert last.metadata.provenance["outer_steps"] == reached


def test_second_signal_in_the_middle_of_a_step_writes_no_state(
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state is not whole there; the last checkpoint counts."""
    step, calls = outer_step, iter(range(1, 10))

    def interrupted(*args: Any) -> StepResult:
        result = step(*args)
        if next(calls) == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(trainer, "outer_step", interrupted)
    validate = Scripted(*[1.0] * 9)
    path = tmp_path / "checkpoints" / CHECKPOINT_FILE
    with pytest.raises(Interrupted) as error:
        run(create(tiny_learner, toy_split), validate, max_steps=9, val_steps=1, checkpoint_interval=2)
    assert str(error.value) == f"interrupted twice; the checkpoint of step 2 is in {path}"
    state = load_checkpoint(path, {})
    assert state.state["progress"]["step"] == 2
    assert torch.equal(state.tensors["raw.inputs_embeds"], validate.seen[2]["inputs_embeds"])


# --- How it goes on


def total(distilled: DistilledDataset) -> float:
    """A number that every outer step changes."""
    return sum(tensor.sum().item() for tensor in distilled.raw.values())


def lowest_at(best: float) -> trainer.Validate:
    """A validation that depends on the set and nothing else, lowest where ``total`` is ``best``."""
    return lambda distilled: {"loss": 1.0 + abs(total(distilled) - best)}


def interrupted_at(call: int, signum: signal.Signals, validation: trainer.Validate) -> trainer.Validate:
    calls = iter(range(1, 100))

    def validate(distilled: DistilledDataset) -> Mapping[str, float]:
        if next(calls) == call:
            signal.raise_signal(signum)
        return validation(distilled)

    return validate


def stepping(before: dict[int, Callable[[], None]]) -> Callable[..., StepResult]:
    """Outer steps before which something happens."""
    calls = iter(range(1, 100))

    def step(*args: Any) -> StepResult:
        before.get(next(calls), lambda: None)()
        return outer_step(*args)

    return step


def die() -> None:
    raise RuntimeError("died")


# Two heads, two inner steps; checkpoints, validations and log lines that do not coincide; epochs of 3 steps.
LONG = {
    **{"max_steps": 8, "val_steps": 2, "checkpoint_interval": 3, "log_interval": 2, "heads_per_step": 2},
    **{"lr_inputs_embeds": 0.05, "weight_decay": 0.01, "warmup_ratio": 0.25, "max_grad_norm": 0.2},
}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("adamw", {"scheduler_type": "linear"}),
        ("adam", {"scheduler_type": "cosine_with_restarts"}),
        ("sgd", {"scheduler_type": "constant_with_warmup"}),
        ("momentum", {"scheduler_type": "inverse_sqrt"}),
        ("adamw", {"fp16": True}),
    ],
)
def test_run_interrupted_three_times_ends_as_one_that_was_not(
    kind: str,
    config: dict[str, Any],
    tiny_learner: Learner,
    tiny_learner32: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit: by a signal in a step, by a death between two checkpoints, by a signal in a validation."""
    learner = tiny_learner32 if "fp16" in config else tiny_learner
    settings = {**LONG, "optimizer_type": OptimizerType(kind), "learner": learner, **config}
    state = tmp_path / "checkpoints" / CHECKPOINT_FILE

    def new() -> DistilledDataset:
        return create(learner, toy_split, train_step=2, **SOFT)

    totals: list[float] = []

    def noted(distilled: DistilledDataset) -> dict[str, float]:
        totals.append(total(distilled))
        return {"loss": 1.0}

    run(new(), noted, Recorder(), save_ckpt_dir=str(tmp_path / "first"), **settings)
    # The best set is on the way: else less would have to come through the checkpoints.
    validation = lowest_at(totals[2])
    whole, expected_lines, quiet = new(), Recorder(), tmp_path / "quiet"
    expected = run(whole, validation, expected_lines, save_ckpt_dir=str(quiet), **settings)
    assert expected.best_step == 4
    assert 0 < expected.clipped_steps < 8

    recorded = Recorder()
    monkeypatch.setattr(trainer, "outer_step", stepping({1: lambda: signal.raise_signal(signal.SIGINT)}))
    with pytest.raises(Interrupted, match="at step 1/8"):
        run(new(), validation, recorded, **settings)
    assert not recorded.steps("train_loss")
    monkeypatch.setattr(trainer, "outer_step", stepping({4: die}))
    with pytest.raises(RuntimeError, match="died"):
        run(new(), validation, recorded, checkpoint=load_checkpoint(state, {}), **settings)
    assert recorded.steps("train_loss") == [2, 4], "what the checkpoint of step 3 does not know comes again"
    monkeypatch.setattr(trainer, "outer_step", stepping({}))
    validate = interrupted_at(2, signal.SIGTERM, validation)
    with pytest.raises(Interrupted, match="at step 6/8"):
        run(new(), validate, recorded, checkpoint=load_checkpoint(state, {}), **settings)
    again = new()
    result = run(again, validation, recorded, checkpoint=load_checkpoint(state, {}), **settings)

    assert equal(raw_copy(again), raw_copy(whole))
    assert recorded.timeless() == expected_lines.timeless()
    assert replace(result, seconds=0.0, checkpoint_seconds=0.0) == replace(
        expected, seconds=0.0, checkpoint_seconds=0.0
    )
    assert 0 < result.checkpoint_seconds < result.seconds
    for name in ("best", "last"):
        first, second = (DistilledDataset.from_pretrained(folder / name) for folder in (quiet, state.parent))
        assert equal(raw_copy(first), raw_copy(second)), name
        assert first.metadata == second.metadata
    # Moments, schedule, scale of float16: all that goes on from the end.
    first_state, second_state = load_checkpoint(quiet / CHECKPOINT_FILE, {}), load_checkpoint(state, {})
    assert equal(first_state.tensors, second_state.tensors)
    for found in (first_state, second_state):
        for clock in ("seconds", "checkpoint_seconds"):
            del found.state["progress"][clock]
    assert first_state.state == second_state.state


@pytest.fixture
def checkpoint(
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., FitResult], tmp_path: Path
) -> Checkpoint:
    """Of step 4 of a run of 4 with momentum, which is its end."""
    run(create(tiny_learner, toy_split), max_steps=4, optimizer_type=OptimizerType.momentum)
    return load_checkpoint(tmp_path / "checkpoints" / CHECKPOINT_FILE, {})


def test_finished_run_goes_on_to_the_same_end(
    checkpoint: Checkpoint,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "outer_step", stepping({1: die}))
    distilled, recorder = create(tiny_learner, toy_split), Recorder()
    recorder.lines = [(0, {})] * checkpoint.state["progress"]["mark"]
    config = {"max_steps": 4, "optimizer_type": OptimizerType.momentum}
    result = run(distilled, Scripted(), recorder, checkpoint=checkpoint, **config)
    assert (result.outer_steps, result.best_step, result.validation) == (4, 0, {"loss": 1.0})
    assert equal(raw_copy(distilled), raw_copy(create(tiny_learner, toy_split)))
    assert len(recorder.lines) == checkpoint.state["progress"]["mark"]


def test_best_set_of_the_folder_is_that_of_the_checkpoint(
    checkpoint: Checkpoint,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
    tmp_path: Path,
) -> None:
    """What a run has written after its last checkpoint is not there for one that goes on."""
    best = tmp_path / "checkpoints" / "best"
    create(tiny_learner, toy_split, init=Init.noise).save_pretrained(best, outer_steps=9)
    run(
        create(tiny_learner, toy_split), Scripted(), checkpoint=checkpoint,
        max_steps=4, optimizer_type=OptimizerType.momentum,
    )  # fmt: skip
    saved = DistilledDataset.from_pretrained(best)
    assert equal(raw_copy(saved), {k: t.float() for k, t in raw_copy(create(tiny_learner, toy_split)).items()})
    assert saved.metadata.provenance["outer_steps"] == 0


NOT_OF_SUCH_A_RUN = rf"{CHECKPOINT_FILE} must hold the counters, tensors and moments of a run .*; remove it to start"


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        pytest.param({"seq_length": 5}, {}, NOT_OF_SUCH_A_RUN, id="shape"),
        pytest.param(SOFT, {}, NOT_OF_SUCH_A_RUN, id="parts"),
        pytest.param({}, {"optimizer_type": OptimizerType.adamw}, NOT_OF_SUCH_A_RUN, id="optimiser"),
        pytest.param({}, {"max_steps": 3}, r"train\.max_steps must be at least 4, the step reached, got 3", id="steps"),
    ],
)
def test_checkpoint_of_another_run_is_refused(
    shape: dict[str, Any],
    config: dict[str, Any],
    message: str,
    checkpoint: Checkpoint,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
) -> None:
    distilled, recorder = create(tiny_learner, toy_split, **shape), Recorder()
    recorder.lines = [(0, {})] * 100
    with pytest.raises(ValueError, match=message):
        run(
            distilled,
            tracker=recorder,
            checkpoint=checkpoint,
            **{"max_steps": 4, "optimizer_type": OptimizerType.momentum} | config,
        )
    assert len(recorder.lines) == 100


@pytest.mark.parametrize("damage", ["a counter is missing", "a counter is a text", "step", "rates", "no state"])
def test_checkpoint_that_makes_no_sense_is_refused(
    damage: str, checkpoint: Checkpoint, tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., FitResult]
) -> None:
    state: dict[str, Any] = {**checkpoint.state, "progress": dict(checkpoint.state["progress"])}
    if damage == "a counter is missing":
        del state["progress"]["validated"]
    elif damage == "a counter is a text":
        state["progress"]["clipped"] = "3"
    elif damage == "step":
        state["progress"]["step"] = -1
    elif damage == "rates":
        state["scheduler"] = state["scheduler"] | {"_last_lr": state["scheduler"]["_last_lr"][:1]}
    else:
        state = {}
    with pytest.raises(ValueError, match=NOT_OF_SUCH_A_RUN):
        run(
            create(tiny_learner, toy_split), checkpoint=Checkpoint(checkpoint.tensors, state),
            max_steps=4, optimizer_type=OptimizerType.momentum,
        )  # fmt: skip


def test_states_are_written_every_interval_and_at_the_end(
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, save = [], trainer.save_checkpoint

    def spy(path: Path, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
        steps.append(checkpoint.state["progress"]["step"])
        save(path, checkpoint, settings)

    monkeypatch.setattr(trainer, "save_checkpoint", spy)
    run(create(tiny_learner, toy_split), max_steps=5, checkpoint_interval=2)
    assert steps == [0, 2, 4, 5]


# --- One outer step


def batch_of(split: TokenizedSplit) -> dict[str, Tensor]:
    return next(train_batches(split, BATCH, seed=0, epoch=0))


def step_once(
    distilled: DistilledDataset, learner: Learner, split: TokenizedSplit, **config: Any
) -> tuple[dict[str, Tensor], StepResult]:
    """The displacement of every part by one outer step, and what the step returns."""
    rates = {"lr_inputs_embeds": 1.0, "lr_lr_scales": 1.0}
    settings = TrainConfig(**({"optimizer_type": OptimizerType.sgd} | rates | config))
    before = raw_copy(distilled)
    scaler = torch.amp.GradScaler("cpu", enabled=settings.fp16)
    optimizer = make_optimizer(distilled, settings)
    result = outer_step(distilled, learner, [batch_of(split)], optimizer, scaler, settings, seed=5)
    return {name: tensor - before[name] for name, tensor in raw_copy(distilled).items()}, result


def test_heads_are_averaged(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    distilled = create(tiny_learner, toy_split, train_step=2, **SOFT)
    inputs = batch_of(toy_split)
    labels = inputs.pop("labels")
    losses, hits, grads = [], [], []
    for head in range(2):
        batches = distilled.batches(stream_seed(5, "inner", head))
        params = tiny_learner.fresh_params(stream_seed(5, "head", head))

        def outer_loss(params: dict[str, Tensor]) -> Tensor:
            logits = tiny_learner(params, inputs).logits
            hits.append((logits.argmax(-1) == labels).float().mean().item())
            return task_loss(logits, labels)

        inner_loss = distilled.inner_loss(tiny_learner)
        loss, parts = hypergradient(Estimator.difference, inner_loss, outer_loss, params, batches)
        losses.append(loss.item())
        grads.append(distilled.pull_back(batches, parts))
    moved, (loss_of_step, accuracy, norm) = step_once(
        distilled, tiny_learner, toy_split, heads_per_step=2, max_grad_norm=None
    )
    assert moved.keys() == grads[0].keys()
    for name, tensor in moved.items():
        torch.testing.assert_close(tensor, -(grads[0][name] + grads[1][name]) / 2, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(grads[0]["inputs_embeds"], grads[1]["inputs_embeds"], rtol=0.1)
    assert loss_of_step == pytest.approx(sum(losses) / 2, rel=1e-12)
    assert accuracy == pytest.approx(sum(hits) / 2)
    assert norm == pytest.approx(math.sqrt(sum(tensor.square().sum().item() for tensor in moved.values())), rel=1e-6)


def test_estimators_agree(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    moved = {
        estimator: step_once(
            create(tiny_learner, toy_split, train_step=2, **SOFT),
            tiny_learner,
            toy_split,
            estimator=estimator,
            max_grad_norm=None,
        )[0]
        for estimator in Estimator
    }
    for name, exact in moved[Estimator.reverse].items():
        torch.testing.assert_close(moved[Estimator.forward][name], exact, rtol=1e-8, atol=1e-12)
        assert (moved[Estimator.difference][name] - exact).norm() < 1e-2 * exact.norm()


def test_gradient_is_clipped(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    def norm(moved: dict[str, Tensor]) -> float:
        return math.sqrt(sum(tensor.square().sum().item() for tensor in moved.values()))

    free = norm(step_once(create(tiny_learner, toy_split), tiny_learner, toy_split, max_grad_norm=None)[0])
    limit = free / 10
    clipped, (*_, told) = step_once(create(tiny_learner, toy_split), tiny_learner, toy_split, max_grad_norm=limit)
    assert norm(clipped) == pytest.approx(limit, rel=1e-4)
    assert told == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize(
    ("limit", "shares", "count"), [(1.0, [0.5, 0.5, 1.0], 3), (0.1, [1.0, 1.0, 1.0], 5), (None, [], 0)]
)
def test_clipped_steps_are_counted(
    limit: float | None,
    shares: list[float],
    count: int,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., FitResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the share of the steps since the last line, and in all; a norm at the limit is not clipped."""
    norms = iter([0.5, 1.5, 2.0, 1.0, 3.0])
    monkeypatch.setattr(trainer, "outer_step", lambda *_: (1.0, 0.5, next(norms)))
    recorder = Recorder()
    result = run(create(tiny_learner, toy_split), tracker=recorder, max_steps=5, log_interval=2, max_grad_norm=limit)
    assert recorder.values("clipped") == shares
    assert result.clipped_steps == count


@pytest.mark.parametrize(
    "settings",
    [{"bf16": True}, {"fp16": True}, {"inner_precision": InnerPrecision.bf16, "estimator": Estimator.forward}],
    ids=lambda settings: next(iter(settings)),
)
def test_mixed_precision_runs_on_the_cpu(
    settings: dict[str, Any], tiny_learner32: Learner, toy_split: TokenizedSplit, tmp_path: Path
) -> None:
    plain, (loss, *_) = step_once(create(tiny_learner32, toy_split), tiny_learner32, toy_split)
    mixed, (mixed_loss, *_) = step_once(create(tiny_learner32, toy_split), tiny_learner32, toy_split, **settings)
    assert mixed_loss != loss
    assert mixed_loss == pytest.approx(loss, rel=0.02)
    cosine = torch.cosine_similarity(plain["inputs_embeds"].flatten(), mixed["inputs_embeds"].flatten(), dim=0)
    assert cosine > 0.95
    config = TrainConfig(max_steps=2, save_ckpt_dir=str(tmp_path), **settings)
    distilled = create(tiny_learner32, toy_split)
    schedule = Schedule.of(config, toy_split, BATCH)
    assert fit(distilled, tiny_learner32, toy_split, schedule, flat, Recorder(), config, 0).outer_steps == 2


# --- The optimiser


@pytest.mark.parametrize(
    ("kind", "moved"), [("adamw", 0.2), ("adam", 0.2), ("sgd", 0.2), ("momentum", 0.1 * (1 + 1.9))]
)
def test_optimizer_types(kind: str, moved: float, tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    """Two updates with a gradient of ones everywhere."""
    distilled = create(tiny_learner, toy_split, **SOFT)
    before = raw_copy(distilled)
    config = TrainConfig(optimizer_type=OptimizerType(kind), lr_inputs_embeds=0.1, lr_lr_scales=0.1)
    optimizer = make_optimizer(distilled, config)
    for _ in range(2):
        for tensor in distilled.raw.values():
            tensor.grad = torch.ones_like(tensor)
        optimizer.step()
    assert len(distilled.raw) == 5
    for name, tensor in raw_copy(distilled).items():
        torch.testing.assert_close(tensor, before[name] - moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "adam"])
@pytest.mark.parametrize(("given", "beta2"), [({}, 0.99), ({"adam_beta2": 0.5}, 0.5)])
def test_adam_beta2(
    given: dict[str, float], beta2: float, kind: str, tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    """A step after a gradient of ones and one of zeros."""
    distilled = create(tiny_learner, toy_split, **SOFT)
    config = TrainConfig(optimizer_type=OptimizerType(kind), lr_inputs_embeds=0.1, lr_lr_scales=0.1, **given)
    optimizer = make_optimizer(distilled, config)
    for gradient in (1.0, 0.0):
        before = raw_copy(distilled)
        for tensor in distilled.raw.values():
            tensor.grad = torch.full_like(tensor, gradient)
        optimizer.step()
    moved = 0.1 * (0.9 * 0.1 / (1 - 0.9**2)) / math.sqrt(beta2 * (1 - beta2) / (1 - beta2**2))
    for name, tensor in raw_copy(distilled).items():
        torch.testing.assert_close(tensor, before[name] - moved, rtol=0, atol=1e-6)


def test_hard_labels_are_not_learned(
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., FitResult]
) -> None:
    distilled = create(tiny_learner, toy_split)
    before = raw_copy(distilled)
    run(distilled, Scripted(2.0, 1.0), max_steps=1)
    changed = {name for name, tensor in distilled.raw.items() if not torch.equal(tensor, before[name])}
    assert changed == {"inputs_embeds", "lr", "lr_scales"}


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        pytest.param({}, {"attention_labels": 0.05, "labels": 0.01, "lr": 0.01}, id="our defaults"),
        pytest.param(
            {"lr_inputs_embeds": 0.5},
            {"inputs_embeds": 0.5, "attention_labels": 0.5, "labels": 0.5, "lr": 0.5},
            id="the others follow",
        ),
        pytest.param(
            {"lr_inputs_embeds": 0.5, "lr_labels": 0.2, "lr_lr": 0.0},
            {"inputs_embeds": 0.5, "attention_labels": 0.5, "labels": 0.2, "lr": 0.0},
            id="unless given",
        ),
        pytest.param(
            {"lr_attention_labels": 3.0, "lr_lr_scales": 0.4},
            {"attention_labels": 3.0, "labels": 0.01, "lr": 0.01, "lr_scales": 0.4},
            id="two",
        ),
    ],
)
@pytest.mark.parametrize(("init", "share"), [("noise", 0.1), ("real", 0.2)])
def test_learning_rates(
    init: str,
    share: float,
    given: dict[str, float],
    rates: dict[str, float],
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
) -> None:
    distilled = create(tiny_learner, toy_split, init=Init(init), **SOFT)
    distilled.raw["inputs_embeds"].data.mul_(7.0)
    names = {id(tensor): name for name, tensor in distilled.raw.items()}
    groups = make_optimizer(distilled, TrainConfig(**given)).param_groups
    found = {names[id(tensor)]: group["lr"] for group in groups for tensor in group["params"]}
    scale = distilled.raw["inputs_embeds"].std().item()
    assert found == pytest.approx({"inputs_embeds": share * scale, "lr_scales": 0.05} | rates)


@pytest.mark.parametrize(("kind", "cls"), [("adamw", AdamW), ("adam", Adam)])
def test_weight_decay_is_on_embeddings_and_attention_only(
    kind: str, cls: type, tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    distilled = create(tiny_learner, toy_split, **SOFT)
    before = raw_copy(distilled)
    optimizer = make_optimizer(
        distilled, TrainConfig(optimizer_type=OptimizerType(kind), lr_inputs_embeds=0.1, weight_decay=0.5)
    )
    assert type(optimizer) is cls
    for tensor in distilled.raw.values():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    decayed = {name for name, tensor in distilled.raw.items() if not torch.equal(tensor, before[name])}
    assert decayed == {"inputs_embeds", "attention_labels"}
    if cls is AdamW:
        torch.testing.assert_close(distilled.raw["inputs_embeds"].detach(), before["inputs_embeds"] * 0.95)


# --- What is refused


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *((key, 0, "must be at least 1, got 0") for key in ("epoch", "max_steps", "val_interval", "val_steps")),
        *((key, 0, "must be at least 1, got 0") for key in ("n_eval_model", "heads_per_step", "checkpoint_interval")),
        *((key, 0, "must be at least 1, or -1 for a tenth of an epoch, got 0") for key in ("log_interval",)),
        *(
            (key, -1.0, "must be at least 0 and finite, got -1")
            for key in ("lr_inputs_embeds", "lr_labels", "weight_decay")
        ),
        *(("adam_beta2", value, f"must be at least 0 and below 1, got {value}") for value in (-0.1, 1.0, math.nan)),
        ("warmup_ratio", 1.5, "must be from 0 to 1, got 1.5"),
        ("max_grad_norm", 0.0, "must be above 0, or null for no clipping, got 0"),
        ("scheduler_type", "reduce_lr_on_plateau", "must be one of linear, cosine, .*got 'reduce_lr_on_plateau'"),
        ("scheduler_type", "warmup_stable_decay", "must be one of linear, cosine, .*got 'warmup_stable_decay'"),
    ],
)
def test_values_out_of_range(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.{key} {message}"):
        TrainConfig(**{key: value}).check()


def test_fp16_and_bf16_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"train\.fp16 and train\.bf16 exclude each other"):
        TrainConfig(fp16=True, bf16=True).check()


# --- It learns


def test_distilled_beats_random_real_samples(
    separable_bert: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig("toy", str(toy_data), ["text"], "label", max_length=32)
    task = load_task(data, seed=0)
    learner = Learner(ModelConfig("toy", str(separable_bert)), task.class_names)
    splits = tokenize(task, learner.tokenizer, data)
    shape, inner = DistilledDataConfig(seq_length=8, label_type=LabelType.unrestricted), LearnerTrainConfig()
    config = TrainConfig(max_steps=30, val_steps=15, lr_inputs_embeds=0.1, save_ckpt_dir=str(tmp_path))
    distilled_accuracy, random_accuracy = [], []
    for seed in range(5):
        distilled = initial_set(
            shape, inner, SetMetadata("toy", CLASS_NAMES, model_metadata(learner)), learner, splits["train"], seed
        )

        def validate(distilled: DistilledDataset, seed: int = seed) -> dict[str, float]:
            train = trained_on(distilled, learner, seed, "validation")
            return {"loss": score(train, learner, splits["validation"], (), 3, 256, Processes())["loss"].mean}

        schedule = Schedule.of(config, splits["train"], 32)
        fit(distilled, learner, splits["train"], schedule, validate, Recorder(), config, seed)
        trained = trained_on(distilled, learner, seed, "evaluation")
        distilled_accuracy.append(score(trained, learner, splits["test"], (), 5, 256, Processes())["accuracy"].mean)
        rows = coresets(Baseline.random, learner, splits["train"], 1, 256, seed)
        random, _ = inner_loop(learner, splits, rows, inner, 256, seed, Processes())
        random_accuracy.append(score(random, learner, splits["test"], (), 5, 256, Processes())["accuracy"].mean)
    assert np.mean(distilled_accuracy) > np.mean(random_accuracy) + 0.05
