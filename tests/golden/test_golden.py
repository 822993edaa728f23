"""Golden runs: every number and tensor of two short runs against committed files.

Each run takes three outer steps, resumes to five, validates and is evaluated. A change of the code that is meant to be
bit-identical leaves these files alone. A change that is meant to alter numbers replaces them, in the same commit, with

    TEXTDISTILL_WRITE_GOLDEN=1 python -m pytest tests/golden

Only public names are used, so that the test survives every move of the code behind them.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import textdistill

FOLDER = Path(__file__).parent
WRITE = "TEXTDISTILL_WRITE_GOLDEN" in os.environ

RUNS = {
    "difference": [
        "distilled_data.label_type=unrestricted",
        "distilled_data.attention_label_type=cls",
    ],
    "forward": [
        "distilled_data.label_type=soft",
        "distilled_data.attention_label_type=all",
        "distilled_data.init=noise",
        "distilled_data.data_per_label=2",
        "learner_train.train_step=2",
        "train.estimator=forward",
        "train.optimizer_type=sgd",
    ],
}
# On other machine types. The difference divides rounding by 2.5e-6, and Adam turns the sign of what is left into a
# whole step, so a few entries move by up to 0.05 there.
TOLERANCE = {"difference": 0.1, "forward": 1e-6}
# Wall-clock time, folders and versions differ between two runs of the same code.
VOLATILE = {"time", "seconds", "step_seconds", "training_seconds", "checkpoint_seconds", "peak_memory_bytes"}
VOLATILE |= {"versions", "model", "made_for", "distilled", "revision"}
# These keys are younger than the files. They may be added, and the numbers in the files stay as they are.
ADDED = {name for key in ("macro_f1", "balanced_accuracy", "mcc") for name in (key, f"{key}_std")}
ADDED |= {f"validation_{name}" for name in ADDED} | {"classes", "precision", "outer_precision"}


def machine() -> str:
    """What decides the rounding of float32 on this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {names[0] if names else 'unknown'}, {capability}, torch {torch.__version__}"


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of JSON by dotted key, without those that differ between two runs."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, child in items:
            if name not in VOLATILE:
                yield from numbers(child, f"{key}.{name}")
    else:
        yield key, value


def run(estimator: str, model: Path, data: Path, root: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Three outer steps, two more after a resume, and an evaluation of the set: all numbers and tensors by name."""
    settings = [
        "data.task_name=toy",
        f"data.path={data}",
        "data.text_columns=[text]",
        "data.label_column=label",
        "data.max_length=32",
        f"model.model_name={model}",
        f"base.save_dir_root={root}",
        f"base.data_dir_root={root}/data",
        "tracking=none",
        "distilled_data.seq_length=8",
        "train.scheduler_type=constant",
        "train.val_steps=2",
        "train.log_interval=1",
        "train.n_eval_model=2",
        "train.bf16=false",
        "evaluate.n_eval_model=2",
        "evaluate.bf16=false",
        *RUNS[estimator],
    ]
    run_dir, evaluated = root / "run", root / "evaluated"
    distill = [*settings, f"base.save_dir={run_dir}"]
    textdistill.distill(textdistill.compose(*distill, "train.max_steps=3"))
    textdistill.distill(textdistill.compose(*distill, "train.max_steps=5", "train.resume=true"))
    textdistill.evaluate(run_dir / "distilled", textdistill.compose(*settings, f"base.save_dir={evaluated}"))

    documents = {
        "results": json.loads((run_dir / "results.json").read_text()),
        "evaluated": json.loads((evaluated / "results.json").read_text()),
        "metrics": [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()],
    }
    files = [
        "distilled/distilled.safetensors",
        "checkpoints/best/distilled.safetensors",
        "checkpoints/checkpoint.safetensors",
    ]
    tensors = {f"{file}:{name}": tensor for file in files for name, tensor in load_file(run_dir / file).items()}
    return dict(numbers(documents)), tensors


@pytest.mark.parametrize("estimator", RUNS)
def test_golden_run(estimator: str, tiny_bert: Path, toy_data: Path, tmp_path: Path) -> None:
    values, tensors = run(estimator, tiny_bert, toy_data, tmp_path)
    values_file, tensors_file = FOLDER / f"{estimator}.json", FOLDER / f"{estimator}.safetensors"
    if WRITE:
        values_file.write_text(json.dumps({"machine": machine(), "values": values}, indent=1) + "\n")
        save_file(tensors, tensors_file)
    golden, golden_tensors = json.loads(values_file.read_text()), load_file(tensors_file)
    # On the machine type that wrote the files nothing may differ by a bit.
    tolerance = 0.0 if golden["machine"] == machine() else TOLERANCE[estimator]

    added = {key for key in values if ADDED & set(key.split("."))}
    assert values.keys() - added == golden["values"].keys() - added
    for key, expected in golden["values"].items():
        value = values[key]
        if isinstance(expected, float):
            assert value == pytest.approx(expected, rel=tolerance, abs=tolerance), key
        else:
            assert value == expected, key
    assert tensors.keys() == golden_tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, golden_tensors[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
