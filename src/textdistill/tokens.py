"""Token ids of a task's texts: made once, cached by content, padded batch by batch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from textdistill.task import DataConfig, TextTask

if TYPE_CHECKING:  # over a second to import, and only a run that reads data needs them
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TOKENIZE_CHUNK = 10_000  # rows a call of the tokenizer
CACHE_VERSION = 1  # raise it whenever tokenize would store something else


@dataclass(frozen=True)
class TokenizedSplit:
    """Token ids of N texts, flat: row i is ``ids[offsets[i] : offsets[i + 1]]``.

    Attributes:
        ids: token ids, int32, (tokens,).
        offsets: int64, (N + 1,).
        token_types: segment of every token, uint8, (tokens,); None where the model takes none.
        labels: class indices, int64, (N,).
        pad_token_id: fills ``input_ids`` behind a text.

    """

    ids: np.ndarray
    offsets: np.ndarray
    token_types: np.ndarray | None
    labels: np.ndarray
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, special tokens included, (N,)."""
        return np.diff(self.offsets)

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """The rows, padded to the longest of them.

        Args:
            rows: B row indices.

        Returns:
            int64 tensors on the CPU: input_ids, attention_mask and, where the model takes it, token_type_ids,
            each (B, L), and labels (B,).

        """
        rows = np.asarray(rows)
        lengths = self.lengths[rows]
        column = np.arange(lengths.max())
        mask = column < lengths[:, None]
        places = (self.offsets[rows][:, None] + column)[mask]

        def padded(flat: np.ndarray, fill: int) -> torch.Tensor:
            values = np.full(mask.shape, fill, dtype=np.int64)
            values[mask] = flat[places]
            return torch.from_numpy(values)

        batch = {
            "input_ids": padded(self.ids, self.pad_token_id),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if self.token_types is not None:
            batch["token_type_ids"] = padded(self.token_types, 0)
        return batch | {"labels": torch.from_numpy(self.labels[rows])}


def tokenize(task: TextTask, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> dict[str, TokenizedSplit]:
    """Token ids of every split, from the cache where it has them.

    The name of a cached file is a hash of all that decides its content (texts, tokenizer, max_length,
    versions), so it is never stale. Slow tokenizers cannot be hashed by content and are not cached.

    Args:
        task: the texts.
        tokenizer: the learner's; texts of a pair are joined as it joins pairs.
        config: the data keys.

    Raises:
        ValueError: ``data.max_length`` leaves no room for text or is more than the model takes.

    """
    least = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2) + len(task.text_columns)
    if not least <= config.max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"data.max_length must be from {least} (special tokens and one of each text) to "
            f"{tokenizer.model_max_length} (the tokenizer's model_max_length), got {config.max_length}"
        )
    file = None
    if config.preprocessed_datasets_path is not None and tokenizer.is_fast:
        key = _cache_key(task, tokenizer, config.max_length)
        file = Path(config.preprocessed_datasets_path) / f"{key}.safetensors"
    arrays = _cached(file) if file is not None and not config.force_preprocess else None
    if arrays is None:
        arrays = {}
        for split, texts in task.splits.items():
            for part, array in _token_arrays(task, texts, tokenizer, config.max_length).items():
                arrays[f"{split}.{part}"] = array
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                save_file(arrays, Path(folder) / file.name)
                os.replace(Path(folder) / file.name, file)
    return {
        split: TokenizedSplit(
            ids=arrays[f"{split}.ids"],
            offsets=arrays[f"{split}.offsets"],
            token_types=arrays.get(f"{split}.token_types"),
            labels=texts.with_format("arrow")[:]["labels"].to_numpy(),
            pad_token_id=tokenizer.pad_token_id,
        )
        for split, texts in task.splits.items()
    }


def _cache_key(task: TextTask, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    import tokenizers

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None  # leftovers of the tokenizer's latest call
    inputs = [tokenizer.model_input_names, tokenizer.truncation_side, max_length]
    versions = [CACHE_VERSION, tokenizers.__version__]
    return hashlib.sha256(json.dumps([task.fingerprint, content, inputs, versions]).encode()).hexdigest()[:32]


def _cached(file: Path) -> dict[str, np.ndarray] | None:
    if not file.exists():
        return None
    try:
        arrays: dict[str, np.ndarray] = load_file(file)
    except SafetensorError as error:
        logger.warning("the token cache %s is broken (%s) and is rebuilt", file, error)
        return None
    return arrays


def _token_arrays(
    task: TextTask, texts: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, np.ndarray]:
    """The arrays of ``TokenizedSplit`` but for the labels."""
    with_types = "token_type_ids" in tokenizer.model_input_names
    ids, token_types, lengths = [], [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(texts), TOKENIZE_CHUNK):
        rows = texts[start : start + TOKENIZE_CHUNK]
        encoded = tokenizer(
            *(rows[column] for column in task.text_columns),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=with_types,
        )
        ids.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), dtype=np.int32))
        lengths.append(np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64))
        if with_types:
            token_types.append(np.fromiter(chain.from_iterable(encoded["token_type_ids"]), dtype=np.uint8))
    arrays: dict[str, np.ndarray] = {
        "ids": np.concatenate(ids),
        "offsets": np.cumsum(np.concatenate(lengths)),
    }
    if with_types:
        arrays["token_types"] = np.concatenate(token_types)
    return arrays
