"""The outer loop: what it repeats, keeps, restores, records and refuses."""

from __future__ import annotations

import logging
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

from tests.support.training import BATCH, EPOCH, MIXED_PRECISION, SOFT, acting_before, create, equal, raw_copy, stepping
from tests.support.words import CLASS_NAMES
from textdistill.core.processes import Processes
from textdistill.data.task import DataConfig, load_task
from textdistill.data.tokenized import TokenizedSplit
from textdistill.data.tokens import tokenize
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
from textdistill.evaluation.baselines import inner_loop_learners
from textdistill.evaluation.coresets import Coreset, choose_coresets
from textdistill.evaluation.scoring import score, trained_on
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner, ModelConfig
from textdistill.runs.folder import RunFolder
from textdistill.runs.results import TrainingSummary
from textdistill.training.checkpoint import Checkpoint, CheckpointFile
from textdistill.training.config import SCHEDULER_TYPES, OptimizerType, SelectBy, TrainConfig
from textdistill.training.interrupts import Interrupted
from textdistill.training.outer_step import OuterStep, RealBatches, StepResult
from textdistill.training.schedule import DEFAULT_STEPS, Schedule
from textdistill.training.trainer import Callback, StopTraining, Trainer, Validation

# Of tests in which no optimiser steps.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

CHECKPOINT_FILE = RunFolder("").checkpoint.name


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


def trainer(
    outer_step: OuterStep,
    split: TokenizedSplit,
    batch_size: int,
    validation: Validation,
    tracker: Recorder,
    callback: Callback | None = None,
    file: type[CheckpointFile] = CheckpointFile,
) -> Trainer:
    """A trainer that writes to ``train.save_ckpt_dir``."""
    schedule = Schedule.of(outer_step.config, split, batch_size, outer_step.processes)
    batches = RealBatches(split, schedule, outer_step.seed, outer_step.processes)
    folder = RunFolder("", outer_step.config.save_ckpt_dir)
    return Trainer(outer_step, batches, validation, folder, file(folder.checkpoint, {}), tracker, callback)


@pytest.fixture
def run(tiny_learner: Learner, toy_split: TokenizedSplit, tmp_path: Path) -> Callable[..., TrainingSummary]:
    """``Trainer.train`` with everything but the distilled set and the settings of interest filled in."""

    def run(
        distilled: DistilledDataset,
        validate: Validation = flat,
        tracker: Recorder | None = None,
        seed: int = 0,
        batch_size: int = BATCH,
        checkpoint: Checkpoint | None = None,
        learner: Learner = tiny_learner,
        step: type[OuterStep] = OuterStep,
        callback: Callback | None = None,
        file: type[CheckpointFile] = CheckpointFile,
        **config: Any,
    ) -> TrainingSummary:
        settings = TrainConfig(**{"save_ckpt_dir": str(tmp_path / "checkpoints")} | config)
        outer_step = step(distilled, learner, settings, seed, Processes())
        recorder = tracker or Recorder()
        return trainer(outer_step, toy_split, batch_size, validate, recorder, callback, file).train(checkpoint)

    return run


# An outer step that changes nothing; its loss is 1, 2, 3, ...
STILL = stepping(lambda self, batches, step: StepResult(float(step), 0.5, 0.1))


def read(path: Path) -> Checkpoint:
    return CheckpointFile(path, {}).load()


# --- What a run repeats and what it leaves alone


def test_one_seed_one_result(
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., TrainingSummary]
) -> None:
    def trained(seed: int) -> tuple[dict[str, Tensor], Recorder]:
        distilled, recorder = create(tiny_learner, toy_split, train_step=2, **SOFT), Recorder()
        run(distilled, Scripted(3.0, 2.0), recorder, seed, max_steps=3, val_steps=3, heads_per_step=2)
        return raw_copy(distilled), recorder

    (first, recorded), (again, recorded_again), (other, _) = trained(0), trained(0), trained(1)
    assert equal(first, again)
    assert recorded.timeless() == recorded_again.timeless()
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_every_outer_step_has_draws_of_its_own(
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of heads, and of real rows, all of which an epoch shows once."""
    seeds, labels, fresh_params = [], [], Learner.fresh_params

    def spy(self: OuterStep, batches: list[dict[str, Tensor]], step: int) -> StepResult:
        labels.extend(batch["labels"].tolist() for batch in batches)
        return OuterStep.__call__(self, batches, step)

    def draw(self: Learner, seed: int) -> dict[str, Tensor]:
        seeds.append(seed)
        return fresh_params(self, seed)

    monkeypatch.setattr(Learner, "fresh_params", draw)
    run(create(tiny_learner, toy_split), epoch=2, step=stepping(spy))
    assert len(seeds) == len(set(seeds)) == 2 * EPOCH
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
    trainer(OuterStep(distilled, learner, config, 0, Processes()), toy_split, BATCH, flat, Recorder()).train()
    assert equal(dict(learner.model.state_dict()), before)
    untouched = Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)
    assert equal(learner.fresh_params(7), untouched.fresh_params(7))


def test_hard_labels_are_not_learned(
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., TrainingSummary]
) -> None:
    distilled = create(tiny_learner, toy_split, label_type=LabelType.hard, attention_label_type=AttentionLabelType.none)
    before = raw_copy(distilled)
    run(distilled, Scripted(2.0, 1.0), max_steps=1)
    changed = {name for name, tensor in distilled.raw.items() if not torch.equal(tensor, before[name])}
    assert changed == {"inputs_embeds", "lr", "lr_scales"}


# --- What it says while it works


def test_forecast_is_logged_once_and_follows_validations(
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A resumed run counts from its own steps, and says once again what is left."""
    with caplog.at_level(logging.INFO):
        run(create(tiny_learner, toy_split), step=STILL, max_steps=20, val_steps=8)
    lines = [record.getMessage() for record in caplog.records]
    (said,) = [line for line in lines if "peak memory" in line]
    assert re.fullmatch(r"the run takes about \d+ seconds more; peak memory \d+\.\d GB", said)
    validations = [line for line in lines if "validation: " in line]
    assert [bool(re.search(r"; about \d+ seconds left$", line)) for line in validations] == [False, True, True, True]


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
    run: Callable[..., TrainingSummary],
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


@pytest.mark.parametrize("select_by", [name for name in SelectBy if name is not SelectBy.loss])
@pytest.mark.parametrize("stops", [(3,), (2, 3), (1, 3)])
def test_highest_score_is_restored(
    select_by: SelectBy,
    stops: tuple[int, ...],
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
    tmp_path: Path,
) -> None:
    """The earlier of two equal ones, whatever the loss, also where the run stops and goes on from its checkpoint."""
    scores, losses = iter([-0.5, 0.75, 0.75, 0.25]), iter([4.0, 3.0, 2.0, 1.0])
    seen: list[dict[str, Tensor]] = []

    def validate(distilled: DistilledDataset) -> dict[str, float]:
        seen.append(raw_copy(distilled))
        return {select_by: next(scores), "loss": next(losses)}

    checkpoint = None
    for max_steps in stops:
        distilled = create(tiny_learner, toy_split, **SOFT)
        result = run(
            distilled, validate, checkpoint=checkpoint,
            max_steps=max_steps, val_steps=1, scheduler_type="constant", select_by=select_by,
        )  # fmt: skip
        checkpoint = read(tmp_path / "checkpoints" / CHECKPOINT_FILE)
    assert (result.best_step, result.validation) == (1, {select_by: 0.75, "loss": 3.0})
    assert equal(raw_copy(distilled), seen[1])


# --- When it ends, validates and logs


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"epoch": 2}, 6),
        ({"epoch": 2, "max_steps": 4}, 4),
        ({"epoch": 1, "max_steps": 10}, 3),
        ({"epoch": None, "max_steps": 4}, 4),
        ({"epoch": None, "max_steps": None}, DEFAULT_STEPS),
    ],
)
def test_epoch_or_max_steps_whichever_ends_first(
    config: dict[str, int],
    steps: int,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
) -> None:
    assert run(create(tiny_learner, toy_split), step=STILL, **config).outer_steps == steps


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        pytest.param({"max_steps": 20}, list(range(0, 21, 2)), id="ten times"),
        pytest.param({"max_steps": 3}, [0, 1, 2, 3], id="fewer than ten steps"),
        pytest.param({"epoch": 3, "val_interval": 1}, [0, 3, 6, 9], id="every epoch"),
        pytest.param({"epoch": 5, "val_interval": 2}, [0, 6, 12, 15], id="every other epoch, and at the end"),
        pytest.param({"epoch": 3, "val_steps": 4}, [0, 4, 8, 9], id="val_steps"),
        pytest.param({"epoch": 3, "val_steps": 4, "val_interval": 1}, [0, 4, 8, 9], id="val_steps overrides"),
        pytest.param({"epoch": 9, "max_steps": 10, "val_interval": 5}, list(range(11)), id="max_steps is earlier"),
        pytest.param({"max_steps": 2, "val_steps": 5}, [0, 2], id="val_steps is later than max_steps"),
    ],
)
def test_validation_steps(
    config: dict[str, int],
    steps: list[int],
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
) -> None:
    recorder = Recorder()
    run(create(tiny_learner, toy_split), tracker=recorder, step=STILL, **config)
    assert recorder.steps("validation_loss") == steps


@pytest.mark.parametrize(
    ("batch_size", "config", "steps", "losses"),
    [
        pytest.param(1, {"epoch": 1}, list(range(3, 31, 3)), [2.0 + 3 * i for i in range(10)], id="a tenth of 30"),
        pytest.param(10, {"epoch": 1}, [1, 2, 3], [1.0, 2.0, 3.0], id="an epoch of less than 10 steps"),
        pytest.param(10, {"log_interval": 2, "max_steps": 5}, [2, 4, 5], [1.5, 3.5, 5.0], id="every 2, and the last"),
    ],
)
def test_log_interval(
    batch_size: int,
    config: dict[str, int],
    steps: list[int],
    losses: list[float],
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
) -> None:
    recorder = Recorder()
    distilled = create(tiny_learner, toy_split, train_step=2, lr_init=0.25)
    run(distilled, tracker=recorder, batch_size=batch_size, step=STILL, **config)
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
def test_scheduler_types(
    name: str,
    rates: list[float],
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
) -> None:
    recorder = Recorder()
    config = {"scheduler_type": name, "warmup_ratio": 0.5, "max_steps": 4, "lr_inputs_embeds": 1.0}
    run(create(tiny_learner, toy_split), tracker=recorder, step=STILL, log_interval=1, **config)
    assert recorder.values("optimizer_lr") == pytest.approx(rates, abs=1e-3)


def test_every_scheduler_type_is_tested() -> None:
    (mark,) = (m for m in test_scheduler_types.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert [name for name, _ in mark.args[1]] == list(SCHEDULER_TYPES)


@pytest.mark.parametrize(
    ("limit", "shares", "count"), [(1.0, [0.5, 0.5, 1.0], 3), (0.1, [1.0, 1.0, 1.0], 5), (None, [], 0)]
)
def test_clipped_steps_are_counted(
    limit: float | None,
    shares: list[float],
    count: int,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
) -> None:
    """As the share of the steps since the last line, and in all; a norm at the limit is not clipped."""
    norms = iter([0.5, 1.5, 2.0, 1.0, 3.0])
    step = stepping(lambda self, batches, step: StepResult(1.0, 0.5, next(norms)))
    recorder = Recorder()
    result = run(
        create(tiny_learner, toy_split), tracker=recorder, step=step, max_steps=5, log_interval=2, max_grad_norm=limit
    )
    assert recorder.values("clipped") == shares
    assert result.clipped_steps == count


# --- How it stops


def test_loss_that_is_not_finite_stops_the_run(
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
    tmp_path: Path,
) -> None:
    distilled, validate = create(tiny_learner, toy_split), Scripted(3.0, 2.0)
    # The learner's parameters overflow, as they do with far too large a rate.
    diverging = acting_before({3: lambda: distilled.raw["lr"].data.fill_(1e308)})
    with pytest.raises(FloatingPointError) as error:
        run(distilled, validate, step=diverging, max_steps=5, val_steps=2, checkpoint_interval=2)
    message = str(error.value)
    stopped = r"outer_loss nan, hypergradient_norm nan after outer step 2, learned lr \[.*e\+30[78]\]: must be finite;"
    assert re.search(stopped, message)
    path = tmp_path / "checkpoints" / CHECKPOINT_FILE
    assert f"the checkpoint of step 2 is in {path};" in message
    assert "lower train.lr_inputs_embeds" in message
    assert all(tensor.isfinite().all() for tensor in distilled.raw.values())
    assert (tmp_path / "checkpoints" / "best").is_dir()
    # The state is that before the step.
    assert torch.equal(read(path).tensors["raw.inputs_embeds"], validate.seen[1]["inputs_embeds"])


def test_hypergradient_that_is_not_finite_stops_the_run_too(
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
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
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., TrainingSummary], tmp_path: Path
) -> None:
    with pytest.raises(
        FloatingPointError, match=r"validation_loss nan after outer step 0, .*; no checkpoint was written"
    ):
        run(create(tiny_learner, toy_split), Scripted(math.nan))
    with pytest.raises(FloatingPointError, match=r"validation_loss inf after outer step 2, .* of step 1 is in"):
        run(create(tiny_learner, toy_split), Scripted(1.0, 0.5, math.inf), val_steps=1, checkpoint_interval=1)


def test_overflow_in_float16_is_a_step_left_out(
    tiny_learner32: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
    monkeypatch: pytest.MonkeyPatch,
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
    run: Callable[..., TrainingSummary],
    tmp_path: Path,
) -> None:
    """A step is finished first; a validation, which starts over, is not."""
    validate = Scripted(2.0, 1.0, signum, 0.5)
    step = acting_before({3: lambda: signal.raise_signal(signum)} if where == "step" else {})
    distilled, before = create(tiny_learner, toy_split), signal.getsignal(signum)
    with pytest.raises(KeyboardInterrupt) as error:
        run(distilled, validate, step=step, max_steps=9, val_steps=1 if where == "validate" else 5)
    assert signal.getsignal(signum) is before
    reached = 2 if where == "validate" else 3
    path = tmp_path / "checkpoints" / CHECKPOINT_FILE
    assert isinstance(error.value, Interrupted)
    assert error.value.signum == signum
    assert str(error.value) == f"interrupted at step {reached}/9; the state is in {path}"
    assert read(path).state["progress"]["step"] == reached
    last = DistilledDataset.from_pretrained(tmp_path / "checkpoints" / "last")
    assert equal(raw_copy(last), {name: tensor.float() for name, tensor in raw_copy(distilled).items()})
    assert not torch.equal(distilled.raw["inputs_embeds"], validate.seen[0]["inputs_embeds"])
    assert last.metadata.provenance["outer_steps"] == reached


def test_second_signal_in_the_middle_of_a_step_writes_no_state(
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
    tmp_path: Path,
) -> None:
    """The state is not whole there; the last checkpoint counts."""

    def interrupted(self: OuterStep, batches: list[dict[str, Tensor]], step: int) -> StepResult:
        result = OuterStep.__call__(self, batches, step)
        if step == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return result

    validate = Scripted(*[1.0] * 9)
    path = tmp_path / "checkpoints" / CHECKPOINT_FILE
    with pytest.raises(Interrupted) as error:
        run(
            create(tiny_learner, toy_split), validate,
            step=stepping(interrupted), max_steps=9, val_steps=1, checkpoint_interval=2,
        )  # fmt: skip
    assert str(error.value) == f"interrupted twice; the checkpoint of step 2 is in {path}"
    state = read(path)
    assert state.state["progress"]["step"] == 2
    assert torch.equal(state.tensors["raw.inputs_embeds"], validate.seen[2]["inputs_embeds"])


def test_callback_sees_every_validation_and_may_end_the_run(
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., TrainingSummary]
) -> None:
    recorder, seen = Recorder(), []

    def callback(step: int, metrics: Mapping[str, float]) -> None:
        seen.append((step, dict(metrics)))
        if step == 2:
            raise StopTraining("enough")

    with pytest.raises(StopTraining, match="enough"):
        run(create(tiny_learner, toy_split), Scripted(3.0, 2.0, 1.0), recorder, callback=callback, val_steps=1)
    assert seen == [(0, {"loss": 3.0}), (1, {"loss": 2.0}), (2, {"loss": 1.0})]
    assert recorder.steps("validation_loss") == [0, 1, 2]


@pytest.mark.parametrize("settings", MIXED_PRECISION, ids=lambda settings: next(iter(settings)))
def test_mixed_precision_trains_on_the_cpu(
    settings: dict[str, Any],
    tiny_learner32: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
) -> None:
    distilled = create(tiny_learner32, toy_split)
    assert run(distilled, learner=tiny_learner32, max_steps=2, **settings).outer_steps == 2


# --- How it goes on


def total(distilled: DistilledDataset) -> float:
    """A number that every outer step changes."""
    return sum(tensor.sum().item() for tensor in distilled.raw.values())


def lowest_at(best: float) -> Validation:
    """A validation that depends on the set and nothing else, lowest where ``total`` is ``best``."""
    return lambda distilled: {"loss": 1.0 + abs(total(distilled) - best)}


def interrupted_at(call: int, signum: signal.Signals, validation: Validation) -> Validation:
    calls = iter(range(1, 100))

    def validate(distilled: DistilledDataset) -> Mapping[str, float]:
        if next(calls) == call:
            signal.raise_signal(signum)
        return validation(distilled)

    return validate


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
    run: Callable[..., TrainingSummary],
    tmp_path: Path,
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
    with pytest.raises(Interrupted, match="at step 1/8"):
        run(
            new(), validation, recorded,
            step=acting_before({1: lambda: signal.raise_signal(signal.SIGINT)}), **settings,
        )  # fmt: skip
    assert not recorded.steps("train_loss")
    with pytest.raises(RuntimeError, match="died"):
        run(new(), validation, recorded, checkpoint=read(state), step=acting_before({4: die}), **settings)
    assert recorded.steps("train_loss") == [2, 4], "what the checkpoint of step 3 does not know comes again"
    validate = interrupted_at(2, signal.SIGTERM, validation)
    with pytest.raises(Interrupted, match="at step 6/8"):
        run(new(), validate, recorded, checkpoint=read(state), **settings)
    again = new()
    result = run(again, validation, recorded, checkpoint=read(state), **settings)

    assert equal(raw_copy(again), raw_copy(whole))
    assert recorded.timeless() == expected_lines.timeless()
    assert replace(result, training_seconds=0.0, checkpoint_seconds=0.0) == replace(
        expected, training_seconds=0.0, checkpoint_seconds=0.0
    )
    assert 0 < result.checkpoint_seconds < result.training_seconds
    for name in ("best", "last"):
        first, second = (DistilledDataset.from_pretrained(folder / name) for folder in (quiet, state.parent))
        assert equal(raw_copy(first), raw_copy(second)), name
        assert first.metadata == second.metadata
    # Moments, schedule, scale of float16: all that goes on from the end.
    first_state, second_state = read(quiet / CHECKPOINT_FILE), read(state)
    assert equal(first_state.tensors, second_state.tensors)
    for found in (first_state, second_state):
        for clock in ("seconds", "checkpoint_seconds"):
            del found.state["progress"][clock]
    assert first_state.state == second_state.state


@pytest.fixture
def checkpoint(
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., TrainingSummary], tmp_path: Path
) -> Checkpoint:
    """Of step 4 of a run of 4 with momentum, which is its end."""
    run(create(tiny_learner, toy_split), max_steps=4, optimizer_type=OptimizerType.momentum)
    return read(tmp_path / "checkpoints" / CHECKPOINT_FILE)


def test_finished_run_goes_on_to_the_same_end(
    checkpoint: Checkpoint,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
) -> None:
    distilled, recorder = create(tiny_learner, toy_split), Recorder()
    recorder.lines = [(0, {})] * checkpoint.state["progress"]["mark"]
    config = {"max_steps": 4, "optimizer_type": OptimizerType.momentum}
    result = run(distilled, Scripted(), recorder, checkpoint=checkpoint, step=acting_before({1: die}), **config)
    assert (result.outer_steps, result.best_step, result.validation) == (4, 0, {"loss": 1.0})
    assert equal(raw_copy(distilled), raw_copy(create(tiny_learner, toy_split)))
    assert len(recorder.lines) == checkpoint.state["progress"]["mark"]


def test_best_set_of_the_folder_is_that_of_the_checkpoint(
    checkpoint: Checkpoint,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
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
        pytest.param({"attention_label_type": AttentionLabelType.none}, {}, NOT_OF_SUCH_A_RUN, id="parts"),
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
    run: Callable[..., TrainingSummary],
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
    damage: str,
    checkpoint: Checkpoint,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    run: Callable[..., TrainingSummary],
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
    tiny_learner: Learner, toy_split: TokenizedSplit, run: Callable[..., TrainingSummary]
) -> None:
    steps = []

    class Spy(CheckpointFile):
        def save(self, checkpoint: Checkpoint) -> None:
            steps.append(checkpoint.state["progress"]["step"])
            super().save(checkpoint)

    run(create(tiny_learner, toy_split), file=Spy, max_steps=5, checkpoint_interval=2)
    assert steps == [0, 2, 4, 5]


# --- It learns


def test_distilled_beats_random_real_samples(
    separable_bert: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig("toy", str(toy_data), text_columns=["text"], label_column="label", max_length=32)
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
            return {"loss": score(train, learner, splits["validation"], (), 3, 256, Processes()).metrics["loss"].mean}

        outer_step = OuterStep(distilled, learner, config, seed, Processes())
        trainer(outer_step, splits["train"], 32, validate, Recorder()).train()
        trained = trained_on(distilled, learner, seed, "evaluation")
        distilled_accuracy.append(
            score(trained, learner, splits["test"], (), 5, 256, Processes()).metrics["accuracy"].mean
        )
        rows = choose_coresets(Coreset.random, learner, splits["train"], 1, 256, seed)
        random, _ = inner_loop_learners(learner, splits, rows, inner, 256, seed, Processes())
        random_accuracy.append(score(random, learner, splits["test"], (), 5, 256, Processes()).metrics["accuracy"].mean)
    assert np.mean(distilled_accuracy) > np.mean(random_accuracy) + 0.05
