"""Two processes that torchrun starts, against one that averages the same batches and heads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import toy
from conftest import CLASS_NAMES
from textdistill.attention import AttentionLabelType
from textdistill.checkpoint import CHECKPOINT_FILE
from textdistill.distilled import Card, DistilledDataConfig, DistilledDataset, Init, LabelType, LearnerTrainConfig
from textdistill.learner import Learner, ModelConfig
from textdistill.processes import Processes
from textdistill.tokens import TokenizedSplit
from textdistill.tracking import NullTracker
from textdistill.trainer import TrainConfig, fit, make_optimizer, outer_step

# Of everything that is averaged: two heads, dropout, two inner steps, a clipped and decayed optimiser.
SETTINGS = [
    "train.max_steps=4",
    "train.val_steps=2",
    "train.checkpoint_interval=2",
    "train.n_eval_model=3",
    "train.heads_per_step=2",
    "train.lr_inputs_embeds=0.05",
    "train.max_grad_norm=0.2",
    "data.train_batch_size=5",
    "learner_train.train_step=2",
    "distilled_data.label_type=unrestricted",
    "distilled_data.attention_label_type=cls",
    "model.disable_dropout=false",
]
# The command line, in float64.
PROGRAM = """
import sys
from textdistill import learner
located = learner._from_pretrained
def double(*args):
    model, info = located(*args)
    return model.double(), info
learner._from_pretrained = double
from textdistill.cli import main
main(sys.argv[1:])
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TIMEOUT = 120.0


def launch(count: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = TORCHRUN if count == 2 else [sys.executable]
    return subprocess.Popen(
        [*command, str(program), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(count: int, folder: Path, *arguments: str) -> str:
    """What a run prints."""
    with launch(count, folder, *arguments) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    return output


def raw(run_dir: Path) -> dict[str, Tensor]:
    return {
        name: t.detach() for name, t in DistilledDataset.from_pretrained(run_dir / "checkpoints" / "last").raw.items()
    }


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm()) for name in a)


def test_two_processes_are_one_that_averages_their_batches_and_heads(
    tiny_bert: Path, toy_data: Path, tmp_path: Path
) -> None:
    """And a run that two began goes on with one, and ends as if it had not been interrupted: in float64."""
    base = ["distill", *toy.overrides(tiny_bert, toy_data, tmp_path, *SETTINGS)]
    dirs = {name: tmp_path / name for name in ("one", "two", "both")}
    done = [
        run(1, tmp_path, *base, f"base.save_dir={dirs['one']}", "train.batches_per_step=2"),
        run(2, tmp_path, *base, f"base.save_dir={dirs['two']}"),
    ]
    assert difference(raw(dirs["two"]), raw(dirs["one"])) < 1e-12
    one, two = (json.loads((dirs[name] / "results.json").read_text()) for name in ("one", "two"))
    for name, metric in two["metrics"].items():
        assert metric["values"] == pytest.approx(one["metrics"][name]["values"], rel=1e-9), name
    assert two["metrics"]["loss"]["n"] == 2
    # One line each, from process 0.
    assert done[1].count("results: ") == 1
    lines = [(d / "metrics.jsonl").read_text().splitlines() for d in (dirs["one"], dirs["two"])]
    assert [json.loads(line)["step"] for line in lines[0]] == [json.loads(line)["step"] for line in lines[1]]

    # Half of it with two processes, the rest with one.
    half = ["train.checkpoint_interval=1", f"base.save_dir={dirs['both']}"]
    with launch(2, tmp_path, *base, *half) as begun:
        while not (dirs["both"] / "checkpoints" / CHECKPOINT_FILE).exists() and begun.poll() is None:
            time.sleep(0.02)
        begun.send_signal(signal.SIGTERM)
        _, errors = begun.communicate(timeout=TIMEOUT)
    assert "interrupted at step" in errors
    assert not (dirs["both"] / "results.json").exists()
    run(1, tmp_path, "resume", str(dirs["both"]))
    assert difference(raw(dirs["both"]), raw(dirs["one"])) < 1e-12


def gradients(model: Path, ranks: range, count: int) -> dict[str, Tensor]:
    """The hypergradient in float32 of the batches of some of ``count`` ranks, as an outer step sums it up."""
    learner = Learner(ModelConfig(model_name=str(model)), CLASS_NAMES)
    config = DistilledDataConfig(
        attention_label_type=AttentionLabelType.cls, seq_length=7, label_type=LabelType.unrestricted, init=Init.noise
    )
    card = Card("toy", CLASS_NAMES, {})
    distilled = DistilledDataset.create(config, LearnerTrainConfig(train_step=2), card, learner, None, 0)
    settings = TrainConfig(heads_per_step=2, max_grad_norm=None)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (2, count, 6, 9), generator=random)
    batches = [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": torch.arange(6) % 3}
        for pair in ids
        for rows in pair[ranks.start : ranks.stop]
    ]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    outer_step(distilled, learner, batches, make_optimizer(distilled, settings), scaler, settings, seed=3)
    return {name: tensor.grad for name, tensor in distilled.raw.items() if tensor.grad is not None}


def test_hypergradient_of_two_processes_in_float32(tiny_bert: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; import torch, test_processes\n"
        "from textdistill.processes import Processes; rank = Processes().rank\n"
        f"found = test_processes.gradients(Path({str(tiny_bert)!r}), range(rank, rank + 1), 2)\n"
        f"torch.save(found, f'{tmp_path}/{{rank}}.pt')\n"
    )
    subprocess.run([*TORCHRUN, str(program)], check=True, timeout=TIMEOUT, env=ENVIRONMENT, capture_output=True)
    expected = gradients(tiny_bert, range(2), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert expected.keys() == {"inputs_embeds", "labels", "attention_labels", "lr"}
    for name, gradient in expected.items():
        assert torch.equal(first[name], second[name])
        assert (first[name] - gradient).norm() < 1e-6 * gradient.norm(), name


def test_batches_must_be_shared_out_evenly(
    tiny_learner: Learner, toy_split: TokenizedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, card = DistilledDataConfig(seq_length=4), Card("toy", CLASS_NAMES, {})
    distilled = DistilledDataset.create(data, LearnerTrainConfig(), card, tiny_learner, toy_split, 0)

    def fitted(batches_per_step: int) -> None:
        config = TrainConfig(batches_per_step=batches_per_step, save_ckpt_dir=str(tmp_path))
        fit(distilled, tiny_learner, toy_split, 5, lambda _: {"loss": 1.0}, NullTracker(), config, 0)

    with pytest.raises(ValueError, match=r"batches_per_step must be at most the 6 batches of data\.train_batch_size=5"):
        fitted(7)
    monkeypatch.setattr("textdistill.processes.Processes.count", 2, raising=False)
    monkeypatch.setattr("textdistill.processes.Processes.__init__", lambda _: None)
    with pytest.raises(ValueError, match="batches_per_step must be a multiple of the 2 processes, got 3"):
        fitted(3)
    assert not list(tmp_path.iterdir())


def test_alone_nothing_is_exchanged() -> None:
    processes, tensor = Processes(), torch.ones(2)
    assert processes.main
    assert processes.sum([tensor])[0] is tensor
    assert processes.gather([1]) == [1]
    assert processes.broadcast(tensor) is tensor
    assert not processes.any(False)


def test_processes_that_cannot_reach_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="the 2 processes that were started must form a group, got 1"):
        Processes()
