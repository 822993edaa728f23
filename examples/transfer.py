"""Scores a distilled set on encoders it was not made for, of the same width.

    python examples/transfer.py DISTILLED_DIR OTHER_DATA [key=value ...]

They are the encoder of the configuration itself, it after 10, 100 and 300 ordinary steps (AdamW, rate 5e-5) on another
task, MRPC in the folder OTHER_DATA, and its first layers alone. The keys are those of `textdistill evaluate`:
`data.task_name`, `data.path`, `model.model_name`, `evaluate.n_eval_model`.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from textdistill import compose, evaluate
from textdistill.config import RunConfig
from textdistill.data.batches import train_batches
from textdistill.data.task import load_task
from textdistill.data.tokens import tokenize
from textdistill.method.learner import Learner

CHECKPOINTS = (10, 100, 300)


def encoders(model_name: str, other: RunConfig, folder: Path) -> Iterator[tuple[str, str]]:
    """Names and places of the encoders, written below ``folder``."""
    yield "the same", model_name
    task = load_task(other.data, other.base.seed)
    learner = Learner(other.model, task.class_names)
    train = tokenize(task, learner.tokenizer, other.data)["train"]
    model = learner.to_model(learner.fresh_params(0))
    layers = model.config.num_hidden_layers
    for kept in sorted({layers - 1, layers // 2}, reverse=True):
        first = written(truncated(learner, kept), learner, folder / f"first-{kept}")
        yield f"its first {kept} layers of {layers}", first
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    batches = (batch for epoch in range(CHECKPOINTS[-1]) for batch in train_batches(train, 32, 0, epoch))
    for step, batch in enumerate(tqdm(islice(batches, CHECKPOINTS[-1]), leave=False, disable=None), start=1):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in CHECKPOINTS:
            yield f"after {step} steps on {other.data.task_name}", written(model, learner, folder / f"after-{step}")


def truncated(learner: Learner, layers: int) -> PreTrainedModel:
    """The pretrained model without its last layers."""
    model = learner.to_model(learner.fresh_params(0))
    encoder = model.base_model.encoder
    encoder.layer = encoder.layer[:layers]
    model.config.num_hidden_layers = layers
    return model


def written(model: PreTrainedModel, learner: Learner, place: Path) -> str:
    """The encoder, without its head, and its tokenizer."""
    model.base_model.save_pretrained(place)
    learner.tokenizer.save_pretrained(place)
    return str(place)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("distilled_dir")
    parser.add_argument("other_data")
    given, overrides = parser.parse_known_args(argv)
    config = compose(*overrides)
    name = config.model.model_name
    other = compose("data.task_name=mrpc", f"data.path={given.other_data}", f"model.model_name={name}")
    logging.getLogger("textdistill").setLevel(logging.ERROR)
    print("| encoder | accuracy |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        config.base.save_dir = folder
        for described, place in encoders(name, other, Path(folder)):
            config.model.model_name = place
            accuracy = evaluate(given.distilled_dir, config).metrics["accuracy"]
            print(f"| {described} | {accuracy.mean:.4f} ± {accuracy.std or 0:.4f} |", flush=True)


if __name__ == "__main__":
    main()
