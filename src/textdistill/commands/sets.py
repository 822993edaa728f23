"""``finetune``, ``push`` and ``show``: the verbs that need a saved set and no data."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from textdistill.core.processes import Processes
from textdistill.distilled.adapt import check_fits
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.inspection import LabelPeak, NearToken, nearest_tokens, strongest_labels
from textdistill.distilled.onnx import ONNX_FILE, check_onnx, to_onnx
from textdistill.distilled.spec import DistilledDataConfig, LearnerTrainConfig, SetMetadata
from textdistill.method.learner import Learner, ModelConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetunedModel:
    """A model folder that ``finetune`` wrote.

    Attributes:
        output: the folder.
        model: name of the encoder.
        seconds: wall-clock time of the fine-tuning alone.

    """

    output: str
    model: str
    seconds: float


@dataclass(frozen=True)
class SetSummary:
    """The contents of a distilled set, as ``show`` describes them.

    Attributes:
        metadata: task, classes, encoder and provenance.
        config: settings of the set.
        inner_config: settings of its inner loop.
        shapes: of the raw tensors, by name.
        bytes: size of each raw tensor in memory.
        labels: of the samples, (N, C).
        lr: learning rate of each inner step, (T,).
        lr_scales: for each inner step the factor on ``lr`` by parameter; None if all parameters share ``lr``.
        attention: the strongest rows of attention labels of each sample; None without attention labels.
        tokens: the nearest word embeddings by sample, position and rank; None if the model cannot be loaded. They
            help a reader, but a learned embedding is not a word.

    """

    metadata: SetMetadata
    config: DistilledDataConfig
    inner_config: LearnerTrainConfig
    shapes: dict[str, tuple[int, ...]]
    bytes: dict[str, int]
    labels: list[list[float]]
    lr: list[float]
    lr_scales: list[dict[str, float]] | None
    attention: list[list[LabelPeak]] | None
    tokens: list[list[list[NearToken]]] | None = None


def finetune(
    distilled_dir: str | Path, output: str | Path, model: str | None = None, seed: int = 42, onnx: bool = False
) -> FinetunedModel:
    """Fine-tunes a fresh learner on a saved set and writes an ordinary Hugging Face model folder.

    The model is learner 0 of ``evaluate`` with ``base.seed=seed``.

    Examples:
        >>> finetune("DISTILLED_DIR", "model").output
        'model'

    Args:
        distilled_dir: folder or hub id of the set.
        output: the folder to write: weights, tokenizer, label names.
        model: encoder; None for the one the set was made for.
        seed: decides the head.
        onnx: also write ``model.onnx``; needs the extra ``onnx``.

    Returns:
        The folder, the encoder and the time of the fine-tuning.

    Raises:
        ValueError: ``output`` is not a new or empty folder, or the set does not fit the encoder.

    """
    if onnx:
        check_onnx()
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--output must be a new or empty folder, got {output}; choose another or empty it")
    name = model or distilled.metadata.model.name
    learner = Learner(ModelConfig(distilled.metadata.task, name), distilled.metadata.class_names)
    learner.to(Processes().device)
    started = time.monotonic()
    tuned = distilled.finetune(learner, seed)
    seconds = time.monotonic() - started
    # Truncate texts at the length that distillation and evaluation used.
    learner.tokenizer.model_max_length = distilled.metadata.data.get("max_length", learner.max_positions)
    tuned.save_pretrained(output)
    learner.tokenizer.save_pretrained(output)
    if onnx:
        to_onnx(tuned, learner.tokenizer, output / ONNX_FILE)
    return FinetunedModel(str(output), name, seconds)


def push(distilled_dir: str | Path, repo_id: str, **options: Any) -> CommitInfo:
    """Puts a saved set, in the precision of its file, into a dataset repository on the hub.

    Args:
        distilled_dir: folder or hub id of the set.
        repo_id: ``owner/name``, or ``name`` for one's own.
        **options: arguments of ``DistilledDataset.push_to_hub``.

    Raises:
        ValueError, OSError: as ``DistilledDataset.push_to_hub``.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    return distilled.push_to_hub(repo_id, dtype=distilled.stored_dtype, **options)


def show(distilled_dir: str | Path, nearest: int = 3, positions: int = 8) -> SetSummary:
    """Reads a saved set and describes what it holds.

    Examples:
        >>> summary = show("DISTILLED_DIR")
        >>> summary.metadata.class_names
        ('negative', 'positive')

    Args:
        distilled_dir: folder or hub id of the set.
        nearest: number of attention rows of a sample, and of tokens of a position.
        positions: number of positions of a sample whose tokens are listed.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    metadata, scales = distilled.metadata, distilled.lr_scales
    summary = SetSummary(
        metadata=metadata,
        config=distilled.config,
        inner_config=distilled.inner_config,
        shapes={name: tuple(tensor.shape) for name, tensor in distilled.raw.items()},
        bytes={name: tensor.numel() * tensor.element_size() for name, tensor in distilled.raw.items()},
        labels=distilled.labels.tolist(),
        lr=distilled.lr.tolist(),
        lr_scales=None
        if scales is None
        else [dict(zip(metadata.model.parameters, step, strict=True)) for step in scales.tolist()],
        attention=strongest_labels(distilled, nearest),
    )
    try:
        learner = Learner(ModelConfig(metadata.task, metadata.model.name), metadata.class_names)
    except OSError as error:
        logger.warning("no nearest tokens: %s cannot be loaded (%s)", metadata.model.name, error)
        return summary
    check_fits(distilled, learner)
    return replace(summary, tokens=nearest_tokens(distilled, learner, nearest, positions))
