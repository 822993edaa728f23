"""Two processes that torchrun starts, against one that averages the same batches and heads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import toy
from tests.support.words import CLASS_NAMES
from textdistill.cli.main import main
from textdistill.core.processes import Processes
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
from textdistill.method import learner
from textdistill.method.attention import AttentionLabelType
from textdistill.method.learner import Learner, ModelConfig
from textdistill.method.pretrained import Pretrained
from textdistill.runs.folder import RunFolder
from textdistill.training.config import TrainConfig
from textdistill.training.outer_step import OuterStep

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
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TIMEOUT = 300.0
# Sums in another order differ by 1e-16, which the difference estimator divides by a step of 2.5e-6.
ROUNDING = 1e-10
PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.core import test_processes
test_processes.work(*sys.argv[1:])
"""


def arguments(root: Path, model: Path, data: Path, name: str, *more: str) -> list[str]:
    return ["distill", *toy.overrides(model, data, root, *SETTINGS, f"base.save_dir={root}/{name}", *more)]


@contextmanager
def float64() -> Iterator[None]:
    """A block in which encoders are loaded in float64."""
    load = learner.load_pretrained

    def load_double(*arguments: Any) -> Pretrained:
        pretrained = load(*arguments)
        return pretrained._replace(model=pretrained.model.double())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "load_pretrained", load_double)
        yield


def work(*places: str) -> None:
    """What each of two processes does, one thing after the other, since starting them takes longer than all of it.

    A hypergradient in float32; a run to its end; and a run until the signal that ends the process.
    """
    root, model, data = map(Path, places)
    rank = Processes().rank
    torch.save(gradients(model, range(rank, rank + 1), 2), root / f"{rank}.pt")
    with float64():
        main(arguments(root, model, data, "two"))
        main(arguments(root, model, data, "both", "train.checkpoint_interval=1"))


@dataclass(frozen=True)
class Worked:
    """What two processes have left: ``root`` with their runs and gradients, and what they printed."""

    root: Path
    output: str
    errors: str


@pytest.fixture(scope="module")
def worked(tiny_bert: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Worked:
    root = tmp_path_factory.mktemp("worked")
    (root / "program.py").write_text(PROGRAM)
    command = [*TORCHRUN, str(root / "program.py"), str(root), str(tiny_bert), str(toy_data)]
    with (root / "output").open("w") as output, (root / "errors").open("w") as errors:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=errors)
        while not RunFolder(root / "both").checkpoint.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)
    errors = (root / "errors").read_text()
    assert (root / "two" / "results.json").exists(), errors
    return Worked(root, (root / "output").read_text(), errors)


def raw(run_dir: Path) -> dict[str, Tensor]:
    return {
        name: t.detach() for name, t in DistilledDataset.from_pretrained(run_dir / "checkpoints" / "last").raw.items()
    }


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm()) for name in a)


@pytest.mark.usefixtures("process_state")
def test_two_processes_are_one_that_averages_their_batches_and_heads(
    worked: Worked, tiny_bert: Path, toy_data: Path, tmp_path: Path
) -> None:
    """And a run that two began goes on with one, and ends as if it had not been interrupted: in float64."""
    dirs = {"one": tmp_path / "one", "two": worked.root / "two", "both": worked.root / "both"}
    with float64():
        main(arguments(tmp_path, tiny_bert, toy_data, "one", "train.batches_per_step=2"))
    assert difference(raw(dirs["two"]), raw(dirs["one"])) < ROUNDING
    one, two = (json.loads((dirs[name] / "results.json").read_text()) for name in ("one", "two"))
    for name, metric in two["metrics"].items():
        assert metric["values"] == pytest.approx(one["metrics"][name]["values"], rel=1e-9), name
    assert two["metrics"]["loss"]["n"] == 2
    # One line each, from process 0.
    assert worked.output.count("results: ") == 1
    lines = [(d / "metrics.jsonl").read_text().splitlines() for d in (dirs["one"], dirs["two"])]
    assert [json.loads(line)["step"] for line in lines[0]] == [json.loads(line)["step"] for line in lines[1]]

    # Half of it with two processes, the rest with one.
    assert "interrupted at step" in worked.errors
    assert not (dirs["both"] / "results.json").exists()
    with float64():
        main(["resume", str(dirs["both"])])
    assert difference(raw(dirs["both"]), raw(dirs["one"])) < ROUNDING


def gradients(model: Path, ranks: range, count: int) -> dict[str, Tensor]:
    """The hypergradient in float32 of the batches of some of ``count`` ranks, as an outer step sums it up."""
    learner = Learner(ModelConfig(model_name=str(model)), CLASS_NAMES)
    config = DistilledDataConfig(
        attention_label_type=AttentionLabelType.cls, seq_length=7, label_type=LabelType.unrestricted, init=Init.noise
    )
    metadata = SetMetadata("toy", CLASS_NAMES, model_metadata(learner))
    distilled = initial_set(config, LearnerTrainConfig(train_step=2), metadata, learner, None, 0)
    settings = TrainConfig(heads_per_step=2, max_grad_norm=None)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (2, count, 6, 9), generator=random)
    batches = [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": torch.arange(6) % 3}
        for pair in ids
        for rows in pair[ranks.start : ranks.stop]
    ]
    outer_step, found = OuterStep(distilled, learner, settings, 0, Processes()), dict[str, Tensor]()

    def keep(*_: object) -> None:
        found.update({name: tensor.grad for name, tensor in distilled.raw.items() if tensor.grad is not None})

    # The step frees its gradients at its end.
    outer_step.optimizer.register_step_pre_hook(keep)
    outer_step(batches, 3)
    return found


def test_hypergradient_of_two_processes_in_float32(worked: Worked, tiny_bert: Path) -> None:
    expected = gradients(tiny_bert, range(2), 2)
    first, second = (torch.load(worked.root / f"{rank}.pt") for rank in range(2))
    assert expected.keys() == {"inputs_embeds", "labels", "attention_labels", "lr", "lr_scales"}
    for name, gradient in expected.items():
        assert torch.equal(first[name], second[name])
        assert (first[name] - gradient).norm() < 1e-6 * gradient.norm(), name


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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_peak_memory_is_that_of_the_process_and_not_of_its_parent() -> None:
    child = "from textdistill.core.processes import Processes; print(Processes().peak_memory_bytes)"
    parent = f"""
import subprocess, sys
filled = b"x" * 2**30
print(subprocess.run([sys.executable, "-c", {child!r}], check=True, capture_output=True, text=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", parent], check=True, capture_output=True, text=True, env=ENVIRONMENT)
    assert 2**26 < int(done.stdout) < 2**30
