"""Runs that are killed, interrupted or out of disk, and go on, end as a quiet run does: bit for bit.

TEXTDISTILL_KILLS sets the number of random kills (20).
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import equal

from tests.support.fixtures import WithStore
from tests.support.forkserver import FRESH
from textdistill.cli.main import main
from textdistill.distilled import storage
from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import JsonLines, MetricLine, read_lines
from textdistill.runs.mlflow_store import ensure_store, open_client
from textdistill.training import checkpoint

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("TEXTDISTILL_KILLS", "20"))
STEPS = 60


def run(arguments: list[str], log: Path, fault: Callable[[], None] | None) -> None:
    """What a process does."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if fault is not None:
        fault()
    main(["distill", *arguments])


@pytest.fixture(scope="module")
def settings(tiny_bert: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        *("data.task_name=toy", f"data.path={toy_data}", "data.text_columns=[text]", "data.label_column=label"),
        f"data.preprocessed_datasets_path={tmp_path_factory.mktemp('cache')}",
        *(
            f"model.model_name={tiny_bert}",
            "data.max_length=16",
            "data.train_batch_size=16",
            "learner_train.train_step=2",
        ),
        *("distilled_data.label_type=unrestricted", "distilled_data.attention_label_type=cls"),
        *("distilled_data.seq_length=8", f"train.max_steps={STEPS}", "train.val_steps=7", "train.log_interval=4"),
        *("train.n_eval_model=2", "train.checkpoint_interval=3", "train.resume=true", "evaluate.n_eval_model=2"),
    ]


Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start(settings: list[str]) -> Start:
    """Begins or goes on with the run of a folder."""

    def begin(root: Path, fault: Callable[[], None] | None = None) -> BaseProcess:
        root.mkdir(exist_ok=True)
        arguments = [*settings, f"base.save_dir={root}/run", f"base.save_dir_root={root}"]
        process = FRESH.Process(target=run, args=(arguments, root / "output", fault))
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def quiet(start: Start, with_store: WithStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that nothing disturbs."""
    root = with_store(tmp_path_factory.mktemp("quiet") / "root")
    finish(start, root)
    return left_by(root)


def finish(start: Start, root: Path) -> None:
    process = start(root)
    process.join()
    assert process.exitcode == 0, (root / "output").read_text()


def left_by(root: Path) -> dict[str, Any]:
    """Everything that a run leaves, times and places aside."""
    folder = root / "run"
    left: dict[str, Any] = {
        "lines": [timeless({"step": line.step, **line.values}) for line in read_lines(folder / "metrics.jsonl")]
    }
    left["results"] = timeless(json.loads((folder / "results.json").read_bytes()))
    for name in ("distilled", "checkpoints/best", "checkpoints/last"):
        card = json.loads((folder / name / storage.CONFIG_FILE).read_bytes())
        # A checksum of the card is one of times and places, too.
        left[name] = timeless({key: value for key, value in card.items() if key != "config_sha256"})
        left[name]["provenance"].pop("config", None)
    left["state"] = load_file(folder / "checkpoints" / "checkpoint.safetensors")
    (run_id,) = {path.parent.name for path in (root / "mlartifacts").glob("*/artifacts")}
    assert json.loads((RunFolder(folder).mlflow_id).read_bytes())["run_id"] == run_id
    client = open_client(ensure_store(root))
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert len(client.search_runs([found.info.experiment_id])) == 1
    left["mlflow"] = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        for name in found.data.metrics
        if not name.endswith("_seconds")
    }
    return left


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        measured = ("time", "seconds", "peak_memory_bytes")
        return {k: timeless(v) for k, v in value.items() if k not in measured and not k.endswith("_seconds")}
    return value


def assert_same(left: dict[str, Any], quiet: dict[str, Any]) -> None:
    assert {key: value for key, value in left.items() if key != "state"} == {
        key: value for key, value in quiet.items() if key != "state"
    }
    assert left["state"].keys() == quiet["state"].keys()
    for name, tensor in quiet["state"].items():
        assert equal(left["state"][name], tensor), name


def wait_for_training(root: Path, process: BaseProcess, beginnings: int) -> bool:
    """Waits until the outer loop of the ``beginnings``-th process on a folder runs; False if it has ended."""
    while process.is_alive():
        log = (root / "run" / "run.log").read_text() if (root / "run" / "run.log").exists() else ""
        if log.count("outer learning rates") >= beginnings:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(("signum", "share"), [(signal.SIGKILL, 1.0), (signal.SIGINT, 0.5), (signal.SIGTERM, 0.25)])
def test_any_moment(
    signum: signal.Signals, share: float, start: Start, quiet: dict[str, Any], with_store: WithStore, tmp_path: Path
) -> None:
    draw = random.Random(f"{signum} {os.environ.get('TEXTDISTILL_SEED', '0')}")
    left, runs = max(1, round(KILLS * share)), 0
    while left:
        root, begun = tmp_path / f"root{runs}", 0
        runs += 1
        if signum != signal.SIGKILL:  # which may hit the making of the store, too
            with_store(root)
        while left:
            process = start(root)
            # SIGKILL also before there is a run, the others once there is a state to keep.
            if signum == signal.SIGKILL and draw.random() < 0.2:
                time.sleep(draw.uniform(0, 2))
            elif wait_for_training(root, process, begun + 1):
                time.sleep(draw.uniform(0, 1.0))
            if not process.is_alive():
                break
            os.kill(process.pid or 0, signum)
            process.join()
            if process.exitcode == 0:
                break
            expected = -signum if signum == signal.SIGKILL else 128 + signum
            assert process.exitcode == expected, (root / "output").read_text()
            left -= 1
            log = root / "run" / "run.log"
            begun = log.read_text().count("outer learning rates") if log.exists() else 0
        process.join()
        finish(start, root)
        assert_same(left_by(root), quiet)


# --- Chosen moments: faults that a process brings on itself


def die_writing_the_state() -> None:
    """SIGKILL when half of the fourth checkpoint is written."""
    original, count = checkpoint.save_file, iter(range(4))

    def torn(tensors: Any, path: Path, metadata: Any) -> None:
        original(tensors, path, metadata)
        if next(count) == 3:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = torn  # type: ignore[assignment]


def die_before_the_rename() -> None:
    """SIGKILL when the best set is written but does not have its name yet."""
    original, count = Path.rename, iter(range(100))

    def torn(self: Path, target: Path) -> Path:
        if next(count) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, target)

    Path.rename = torn  # type: ignore[assignment,method-assign]


def die_in_a_line() -> None:
    """SIGKILL when half of a line of metrics.jsonl is written."""
    original, count = JsonLines.append, iter(range(1000))

    def torn(self: JsonLines, *args: Any) -> MetricLine:
        line = original(self, *args)
        if next(count) == 9:
            os.truncate(self.path, os.path.getsize(self.path) - 10)
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    JsonLines.append = torn  # type: ignore[method-assign]


def fill_the_disk() -> None:
    """No space left when half of the fourth checkpoint is written."""
    original, count = checkpoint.save_file, iter(range(100))

    def torn(tensors: Any, path: Path, metadata: Any) -> None:
        original(tensors, path, metadata)
        if next(count) >= 3:
            os.truncate(path, os.path.getsize(path) // 2)
            raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint.save_file = torn  # type: ignore[assignment]


@pytest.mark.parametrize("fault", [die_writing_the_state, die_before_the_rename, die_in_a_line, fill_the_disk])
def test_chosen_moment(
    fault: Callable[[], None], start: Start, quiet: dict[str, Any], with_store: WithStore, tmp_path: Path
) -> None:
    root = with_store(tmp_path / "root")
    process = start(root, fault)
    process.join()
    assert process.exitcode == (2 if fault is fill_the_disk else -signal.SIGKILL), (root / "output").read_text()
    state = root / "run" / "checkpoints" / "checkpoint.safetensors"
    assert load_file(state), "the state before the fault loads"
    if fault is fill_the_disk:
        assert "No space left on device" in (root / "output").read_text().splitlines()[-1]
    finish(start, root)
    assert_same(left_by(root), quiet)


def test_second_run_on_a_folder_is_refused(
    start: Start, quiet: dict[str, Any], with_store: WithStore, tmp_path: Path
) -> None:
    root = with_store(tmp_path / "root")
    first = start(root)
    assert wait_for_training(root, first, 1)
    second = start(root)
    second.join()
    assert second.exitcode == 2
    assert f"is being written by pid {first.pid} on " in (root / "output").read_text()
    first.join()
    assert first.exitcode == 0
    assert_same(left_by(root), quiet)
