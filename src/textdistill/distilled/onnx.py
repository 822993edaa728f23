"""Export of a fine-tuned model to ONNX, for runtimes other than PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import Dim
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textdistill.core.files import replacing

ONNX_FILE = "model.onnx"


def check_onnx() -> None:
    """Raises ValueError where the exporter's packages are not installed."""
    if find_spec("onnxscript") is None:
        raise ValueError("exporting to ONNX needs its packages; install the extra: pip install 'textdistill[onnx]'")


def to_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Writes a classifier as one ONNX file that takes any batch size and length.

    The inputs are the tensors that the tokenizer returns, and the output is ``logits``.

    Args:
        model: a classifier in evaluation mode. It is moved to the CPU.
        tokenizer: decides the names of the inputs.
        path: the file. It appears whole or not at all.

    """
    # The exporter takes a size for a constant if it is 1 or equals another size. So batch, length and 1 all differ.
    texts = ["a text", "a longer text than that", "a text"]
    example = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    with _quiet(), replacing(path) as partial:
        torch.onnx.export(
            model.cpu(),
            kwargs=example,
            f=partial,
            input_names=list(example),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(example, sizes),
            external_data=False,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which the exporter logs no folded nodes and no missing torchvision."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
