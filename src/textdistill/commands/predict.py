"""Implements ``predict``: the labels of texts and their probabilities, from a distilled set or a fine-tuned model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from textdistill.commands.finished import FinishedRun
from textdistill.core.processes import Processes
from textdistill.data.batches import sorted_batches
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.method.learner import Learner, ModelConfig
from textdistill.method.pretrained import max_positions
from textdistill.runs.folder import RunFolder

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
# The one or two texts of a row.
Texts = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions for N texts, in the order of the texts.

    Attributes:
        class_names: C names, by class index.
        probabilities: float32, (N, C). Each row sums to 1.
        truncated: the number of texts that were cut to the length that the model takes.

    """

    class_names: tuple[str, ...]
    probabilities: np.ndarray
    truncated: int

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def labels(self) -> list[str]:
        """The name of the most probable class of each text."""
        return [self.class_names[index] for index in self.probabilities.argmax(-1)]

    def to_rows(self) -> list[dict[str, str | float]]:
        """Returns a dictionary for each text, from which pandas makes a table.

        ``prediction`` is the label, ``probability`` is its probability, and ``p_NAME`` is that of the class NAME.
        """
        # A float32 has seven decimal digits. The others would tell nothing.
        values = self.probabilities.astype(float).round(7).tolist()
        columns = prediction_columns(self.class_names)
        return [
            dict(zip(columns, [label, max(row), *row], strict=True))
            for label, row in zip(self.labels, values, strict=True)
        ]


def prediction_columns(class_names: Sequence[str]) -> list[str]:
    """Returns the names of the values in a row of ``Predictions.to_rows``."""
    return ["prediction", "probability", *(f"p_{name}" for name in class_names)]


@dataclass(frozen=True, eq=False)
class Classifier:
    """A fine-tuned model and what its texts must be.

    Attributes:
        source: the set or the folder of the model, for errors.
        model: the model, on the device that computes.
        tokenizer: its tokenizer.
        max_length: the number of tokens to which texts are cut.
        text_columns: the columns of the texts that the model was made for; empty where the source does not say.

    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    text_columns: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C names, by class index."""
        names = cast("dict[int, str]", self.model.config.id2label)
        return tuple(names[index] for index in range(len(names)))

    def __call__(
        self, rows: Sequence[Texts], batch_size: int = BATCH_SIZE, bar: tqdm[Any] | None = None
    ) -> Predictions:
        """Predicts the labels of rows of one or two texts.

        Args:
            rows: N rows, all with equally many texts, none of them empty.
            batch_size: the most rows of a forward pass.
            bar: a progress bar that counts the rows.

        """
        split, truncated = self._tokenize(rows)
        logits = torch.empty(len(rows), len(self.class_names))
        with torch.inference_mode():
            for positions, batch in sorted_batches(split, batch_size):
                inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items() if name != "labels"}
                logits[torch.from_numpy(positions)] = self.model(**inputs).logits.float().cpu()
                if bar is not None:
                    bar.update(len(positions))
        return Predictions(self.class_names, logits.softmax(-1).numpy(), truncated)

    def _tokenize(self, rows: Sequence[Texts]) -> tuple[TokenizedSplit, int]:
        """Returns the tokens, as training has them, and the number of rows that were cut."""
        columns = [[text.strip() for text in column] for column in zip(*rows, strict=True)]
        with_types = "token_type_ids" in self.tokenizer.model_input_names
        options = {"return_attention_mask": False, "return_token_type_ids": with_types}
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length, **options)
        lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64)

        def flat(name: str, dtype: type[np.generic]) -> np.ndarray:
            return np.fromiter(chain.from_iterable(encoded[name]), dtype=dtype)

        split = TokenizedSplit(
            ids=flat("input_ids", np.int32),
            offsets=np.cumsum([0, *lengths]),
            token_types=flat("token_type_ids", np.uint8) if with_types else None,
            labels=np.zeros(len(rows), dtype=np.int64),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        # A text that fills the length exactly may be whole. Count its tokens without the limit.
        (full,) = np.nonzero(lengths == self.max_length)
        if not len(full):
            return split, 0
        whole = self.tokenizer(*([column[row] for row in full] for column in columns), verbose=False, **options)
        return split, sum(len(ids) > self.max_length for ids in whole["input_ids"])


def predict(
    source: str | PathLike[str] | DistilledDataset | FinishedRun,
    texts: str | Iterable[str | Sequence[str]],
    *,
    model: str | None = None,
    seed: int = 42,
    batch_size: int = BATCH_SIZE,
) -> Predictions:
    """Predicts the labels of texts, with a probability for every class.

    From a distilled set, a fresh learner is fine-tuned first, which takes about a second. It is learner 0 of
    ``evaluate`` with ``base.seed=seed``, and the model that ``finetune`` writes.

    Examples:
        >>> predictions = predict("DISTILLED_DIR", ["A warm and funny film.", "Dull."])
        >>> predictions.class_names
        ('negative', 'positive')
        >>> predictions.probabilities.shape
        (2, 2)
        >>> sorted(predictions.to_rows()[0])
        ['p_negative', 'p_positive', 'prediction', 'probability']

    Args:
        source: a distilled set, its folder or hub id, the result of ``distill``, or the folder of a fine-tuned model.
        texts: the texts; pairs of texts for a set of pairs. One string is one text.
        model: the encoder to fine-tune on a set; None for the one that the set was made for.
        seed: decides the head of the learner that is fine-tuned on a set.
        batch_size: the most rows of a forward pass.

    Raises:
        ValueError: a text is empty or no text, the set does not fit the model, or the folder holds no classifier.
        FileNotFoundError: there is no such set or model.

    """
    rows = as_rows([texts] if isinstance(texts, str) else texts)
    classifier = load_classifier(source, model, seed)
    check_texts(classifier, len(rows[0]) if rows else 0)
    with progress_bar(len(rows)) as bar:
        predictions = classifier(rows, batch_size, bar)
    warn_truncated(predictions.truncated, len(rows), classifier)
    return predictions


def load_classifier(
    source: str | PathLike[str] | DistilledDataset | FinishedRun, model: str | None = None, seed: int = 42
) -> Classifier:
    """Loads a fine-tuned model, or fine-tunes a learner on a distilled set; see ``predict``."""
    if isinstance(source, FinishedRun):
        source = source.distilled
    if not isinstance(source, DistilledDataset):
        if _is_model_folder(Path(source)):
            if model is not None:
                raise ValueError(f"--model must be left out for {source}, which is a fine-tuned model, got {model}")
            return _load_model(str(source))
        if (set_folder := RunFolder(Path(source)).distilled).is_dir():
            raise ValueError(
                f"{source} must be a distilled set or a fine-tuned model, got a run folder; give {set_folder}"
            )
        name, source = str(source), DistilledDataset.from_pretrained(str(source))
    else:
        name = f"the distilled set of task {source.metadata.task}"
    return _fine_tune(name, source, model, seed)


def as_rows(texts: Iterable[str | Sequence[str]]) -> list[Texts]:
    """Returns each text, or pair of texts, as a tuple.

    Raises:
        ValueError: the texts are no texts or pairs, are a mixture of both, or are empty.

    """
    if isinstance(texts, dict) or hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise ValueError("texts must be a list of texts, got a table; give one of its columns, such as table['text']")
    rows: list[Texts] = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if not rows:
        raise ValueError("texts must be one or more texts, got none; give a text")
    if len(rows[0]) not in (1, 2) or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("texts must be texts, or pairs of texts, and not a mixture; give one or two texts a row")
    for number, row in enumerate(rows, 1):
        if not all(isinstance(text, str) for text in row):
            raise ValueError(f"texts must be strings, got {row!r:.60} in row {number}; convert it")
    empty = [number for number, row in enumerate(rows, 1) if not all(map(str.strip, row))]
    if empty:
        raise ValueError(
            f"texts must not be empty, got {len(empty):,} empty ones, the first in row {empty[0]}; remove these rows"
        )
    return rows


def check_texts(classifier: Classifier, texts: int) -> None:
    """Raises ValueError unless the model was made for ``texts`` texts a row."""
    columns = classifier.text_columns
    if columns and len(columns) != texts:
        expected = "pairs of texts" if len(columns) == 2 else "single texts"
        raise ValueError(
            f"{classifier.source} was made for {expected} ({', '.join(columns)}), got {texts} text(s) a row;"
            f" give {len(columns)}"
        )


def progress_bar(rows: int) -> tqdm[Any]:
    """Returns the progress bar of a prediction."""
    return tqdm(total=rows, desc="predict", unit="row", leave=False, dynamic_ncols=True, disable=None)


def warn_truncated(truncated: int, rows: int, classifier: Classifier) -> None:
    """Warns of texts that were cut."""
    if truncated:
        logger.warning("%d of %d texts were cut to %d tokens", truncated, rows, classifier.max_length)


def _is_model_folder(folder: Path) -> bool:
    """Whether ``folder`` holds a model of transformers."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def _fine_tune(name: str, distilled: DistilledDataset, model: str | None, seed: int) -> Classifier:
    metadata = distilled.metadata
    encoder = model or metadata.model.name
    try:
        learner = Learner(ModelConfig(metadata.task, encoder), metadata.class_names)
    except OSError as error:
        raise FileNotFoundError(
            f"the encoder {encoder} of {name} cannot be loaded ({error}); name a copy of it with --model"
        ) from error
    learner.to(Processes().device)
    tuned = distilled.finetune(learner, seed)
    # A stranger's set may state anything. The reference implementation's sets state neither value.
    length, columns = metadata.data.get("max_length"), metadata.data.get("text_columns")
    max_length = min(length, learner.max_positions) if isinstance(length, int) else learner.max_positions
    text_columns = tuple(map(str, columns)) if isinstance(columns, list) else ()
    return Classifier(name, tuned, learner.tokenizer, max_length, text_columns)


def _load_model(folder: str) -> Classifier:
    """Loads a fine-tuned classifier. Code that lies in its folder is never run."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    single_label = config.problem_type in (None, "single_label_classification") and config.num_labels > 1
    if not single_label:
        raise ValueError(
            f"{folder} must be a classifier with one label a text, got problem_type={config.problem_type} and"
            f" {config.num_labels} label(s); use a model of textdistill finetune"
        )
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
    )
    if loading["missing_keys"]:
        raise ValueError(
            f"{folder} must be a fine-tuned classifier, but has no weights for"
            f" {', '.join(sorted(loading['missing_keys']))}; use a model of textdistill finetune"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    max_length = min(tokenizer.model_max_length, max_positions(model))
    return Classifier(folder, model.eval().to(Processes().device), tokenizer, max_length)
