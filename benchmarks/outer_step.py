"""Time and peak memory of one outer step: ``difference`` against ``reverse``.

    python -m benchmarks.outer_step [--seq-length 512] [--attention cls] [--steps 1] [--repeats 5]

MiniLM-L6, one sample for each of 4 classes, a real batch of 32 texts of 96 tokens, as in AG News. The
estimators are measured alternately, each time in a process of its own, whose idle memory (model loaded,
nothing computed) is subtracted from its peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import transformers

from textdistill.attention import AttentionLabelType
from textdistill.distilled import Card, DistilledDataConfig, DistilledDataset, Init, LabelType, LearnerTrainConfig
from textdistill.hypergradient import Estimator
from textdistill.learner import Learner, ModelConfig
from textdistill.seeding import generator
from textdistill.trainer import TrainConfig, make_optimizer, outer_step

CLASSES = ("World", "Sports", "Business", "Sci/Tech")


def measure(estimator: str, seq_length: int, attention: str, steps: int) -> dict[str, float]:
    """Seconds of the fastest of three outer steps after a first one, and peak memory in MB above idle."""
    transformers.logging.set_verbosity_error()
    learner = Learner(ModelConfig("ag_news", "minilm-l6"), CLASSES)
    config = DistilledDataConfig(
        attention_label_type=AttentionLabelType(attention),
        seq_length=seq_length,
        label_type=LabelType.unrestricted,
        init=Init.noise,
    )
    # Noise needs no training texts.
    train_split = None
    distilled = DistilledDataset.create(
        config, LearnerTrainConfig(train_step=steps), Card("ag_news", CLASSES, {}), learner, train_split, 0
    )
    random = generator(0, "benchmark")
    batch = {
        "input_ids": torch.randint(1000, 30000, (32, 96), generator=random),
        "attention_mask": torch.ones(32, 96, dtype=torch.int64),
        "token_type_ids": torch.zeros(32, 96, dtype=torch.int64),
        "labels": torch.randint(0, len(CLASSES), (32,), generator=random),
    }
    train_config = TrainConfig(estimator=Estimator(estimator))
    optimizer = make_optimizer(distilled, train_config)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    idle = _resident()
    seconds = []
    for seed in range(4):
        started = time.perf_counter()
        outer_step(distilled, learner, [batch], optimizer, scaler, train_config, seed)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": min(seconds[1:]), "megabytes": peak - idle}


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Prints a JSON line a measurement, then the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--attention", choices=list(AttentionLabelType), default="cls")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.seq_length, given.attention, given.steps)))
        return
    command = [sys.executable, "-m", "benchmarks.outer_step", *sys.argv[1:], "--measure"]
    found: dict[str, list[dict[str, float]]] = {"difference": [], "reverse": []}
    for _ in range(given.repeats):
        for estimator, results in found.items():
            done = subprocess.run([*command, estimator], check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout))
            print(json.dumps({"estimator": estimator, **results[-1]}), flush=True)
    for key in ("seconds", "megabytes"):
        ours, theirs = (statistics.median(r[key] for r in results) for results in found.values())
        pairs = zip(found["reverse"], found["difference"], strict=True)
        ratios = sorted(r[key] / d[key] for r, d in pairs)
        print(
            f"{key}: difference {ours:.2f}, reverse {theirs:.2f}, ratio {theirs / ours:.2f}"
            f" (pairs {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
