"""A fine-tuned model as an ONNX graph, for runtimes other than PyTorch."""

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
    """Writes a classifier as one ONNX file, from what the tokenizer gives to ``logits``, for any batch and length.

    Args:
        model: in evaluation mode; moved to the CPU.
        tokenizer: decides the names of the inputs.
        path: the file.

    """
    # No size of the example is 1, and none is that of another: the exporter would take it for a constant.
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
    """A block in which the exporter does not tell of every node that it folds, nor that torchvision is missing."""
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
