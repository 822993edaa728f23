"""How well lower precisions of the inner steps agree: the cosine of each part's hypergradient to float32 ``reverse``.

    python -m benchmarks.precision [--model minilm-l6] [--seq-length 64] [--inner-steps 1 3] [--data DIR]

The distilled set is the one that a run on AG News starts with, the real batch its first one; the outer loss is float32.
``eps`` is the length of the difference's step, relative to the norm of the parameters. Where there is no GPU, TF32
is made by rounding the operands of every matrix product to 10 bits of mantissa. ``--model bert-base`` is a BERT-base
of random weights.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

from benchmarks.measure import Row, arguments
from benchmarks.report import record
from benchmarks.workload import CLASS_NAMES, configure, real_set, real_splits
from textdistill.core.precision import Precision
from textdistill.data.batches import train_batches
from textdistill.distilled.dataset import DistilledDataset
from textdistill.method.hypergradient import EPS, Estimator, hypergradient
from textdistill.method.learner import Learner, ModelConfig, Params
from textdistill.method.losses import task_loss
from textdistill.training.config import InnerPrecision

KEY = ("model", "seq_length", "inner_steps", "estimator", "precision", "eps")
BERT_BASE = "bert-base"
PARTS = ("inputs_embeds", "labels", "attention_labels", "lr", "lr_scales")
# Around the default, and for the lower precisions, which need longer steps to see anything.
EPSILONS = {
    InnerPrecision.float32: (EPS / 5, EPS, 5 * EPS),
    InnerPrecision.tf32: (EPS, 20 * EPS, 200 * EPS),
    InnerPrecision.bf16: (200 * EPS, 2000 * EPS),
}


class RoundedProducts(TorchDispatchMode):
    """Matrix products of float32 operands rounded to the 10 bits of TF32."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Rounds the two factors of mm, bmm and addmm."""
        first = {"mm": 0, "bmm": 0, "addmm": 1}.get(function.__name__.partition(".")[0])
        if first is not None:
            args = (*args[:first], *map(rounded, args[first : first + 2]), *args[first + 2 :])
        return function(*args, **(kwargs or {}))


def rounded(tensor: Tensor) -> Tensor:
    """To the nearest of 10 bits of mantissa; other dtypes than float32 stay as they are."""
    if tensor.dtype != torch.float32:
        return tensor
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def rows(given: Namespace, model: str) -> Iterator[Row]:
    """One a number of inner steps, estimator, precision and eps."""
    for inner_steps in given.inner_steps:
        config = configure(
            model,
            f"data.path={given.data}",
            f"distilled_data.seq_length={given.seq_length}",
            f"learner_train.train_step={inner_steps}",
        )
        learner = Learner(config.model, CLASS_NAMES)
        train, seed = real_splits(config, learner)["train"], config.base.seed
        batch = next(train_batches(train, config.data.train_batch_size, seed, 0))
        distilled = real_set(config, learner, train)
        expected = gradients(distilled, learner, batch, Estimator.reverse, InnerPrecision.float32, EPS)
        for estimator in Estimator:
            for precision in InnerPrecision:
                for eps in EPSILONS[precision] if estimator is Estimator.difference else (None,):
                    found = gradients(distilled, learner, batch, estimator, precision, eps or EPS)
                    yield {
                        "model": given.model,
                        "seq_length": given.seq_length,
                        "inner_steps": inner_steps,
                        "estimator": estimator,
                        "precision": precision,
                        "eps": 0.0 if eps is None else eps,
                        **{part: cosine(found[part], expected[part]) for part in PARTS},
                    }


def gradients(
    distilled: DistilledDataset,
    learner: Learner,
    batch: Mapping[str, Tensor],
    estimator: Estimator,
    precision: InnerPrecision,
    eps: float,
    outer_bf16: bool = False,
) -> dict[str, Tensor]:
    """The hypergradient by part."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}

    def outer_loss(params: Params) -> Tensor:
        return task_loss(learner.logits(params, inputs, Precision.of(bf16=outer_bf16)), batch["labels"])

    tf32 = precision is InnerPrecision.tf32
    emulated: AbstractContextManager[Any] = (
        RoundedProducts() if tf32 and learner.device.type == "cpu" else nullcontext()
    )
    batches = distilled.batches(0)
    inner_loss = distilled.inner_loss(learner, estimator.exact, precision.as_precision)
    with emulated:
        result = hypergradient(
            estimator,
            inner_loss,
            outer_loss,
            learner.fresh_params(0),
            batches,
            eps=eps,
            inner_precision=precision.as_precision,
        )
    return distilled.pull_back(batches, result.grads)


def cosine(a: Tensor, b: Tensor) -> float:
    """In float64."""
    return torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()


def bert_base(folder: Path) -> Path:
    """A BERT-base of random weights, with MiniLM's tokenizer, which has the same vocabulary."""
    torch.manual_seed(0)
    tokenizer = Learner(ModelConfig(model_name="minilm-l6"), CLASS_NAMES).tokenizer
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and the table."""
    parser = arguments(__doc__, data=True)
    parser.add_argument("--seq-length", type=int, default=64)
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1, 3])
    given = parser.parse_args(argv)
    if given.quick:
        given.seq_length, given.inner_steps = 8, [1]
    with tempfile.TemporaryDirectory() as folder:
        model = str(bert_base(Path(folder))) if given.model == BERT_BASE else given.model
        given.model = Path(given.model).name
        record("precision", given, KEY, rows(given, model))


if __name__ == "__main__":
    main()
