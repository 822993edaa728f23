"""``finetune``, ``push`` and ``show``: what can be done with a saved set alone."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from textdistill.core.processes import Processes
from textdistill.distilled.adapt import check_fits
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.inspection import nearest_tokens, strongest_labels
from textdistill.distilled.onnx import ONNX_FILE, check_onnx, to_onnx
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
        **options: of ``DistilledDataset.push_to_hub``, as are the errors.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    return distilled.push_to_hub(repo_id, dtype=distilled.stored_dtype, **options)


def show(distilled_dir: str | Path, nearest: int = 3, positions: int = 8) -> dict[str, Any]:
    """What a saved set holds, as data.

    Examples:
        >>> found = show("DISTILLED_DIR")
        >>> found["card"]["class_names"]
        ['negative', 'positive']

    Args:
        distilled_dir: folder or hub id of the set.
        nearest: vocabulary tokens listed for a position.
        positions: positions listed for a sample.

    Returns:
        ``shapes``, ``bytes`` (by tensor), ``card``, ``labels`` (N, C), ``lr`` (T,); ``lr_scales``: for each step what
        its lr is multiplied by, by parameter, or None with one lr for all; ``attention``: for each sample the layers
        and heads whose label is most concentrated; ``tokens``: for each sample and position the nearest word
        embeddings by cosine, an aid to the eye and not a reading, or None where the model cannot be loaded.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    card, peaks = distilled.metadata, strongest_labels(distilled, nearest)
    found: dict[str, Any] = {
        "card": {"task": card.task, "class_names": list(card.class_names), "model": asdict(card.model)},
        "config": asdict(distilled.config) | asdict(distilled.inner_config),
        "shapes": {name: list(tensor.shape) for name, tensor in distilled.raw.items()},
        "bytes": {name: tensor.numel() * tensor.element_size() for name, tensor in distilled.raw.items()},
        "labels": distilled.labels.tolist(),
        "lr": distilled.lr.tolist(),
        "lr_scales": None
        if (scales := distilled.lr_scales) is None
        else [dict(zip(card.model.parameters, step, strict=True)) for step in scales.tolist()],
        "attention": None if peaks is None else [[peak._asdict() for peak in sample] for sample in peaks],
        "tokens": None,
    }
    try:
        learner = Learner(ModelConfig(card.task, card.model.name), card.class_names)
    except OSError as error:
        logger.warning("no nearest tokens: %s cannot be loaded (%s)", card.model.name, error)
        return found
    check_fits(distilled, learner)
    tokens = nearest_tokens(distilled, learner, nearest, positions)
    return found | {"tokens": [[[near._asdict() for near in at] for at in sample] for sample in tokens]}
