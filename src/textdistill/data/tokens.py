"""Token ids of a task's texts: made once, chunk by chunk, cached by content, memory-mapped, padded batch by batch.

A cache entry is a folder: a flat file for every part of every split (``train.ids``, ``train.offsets``, ...) and
``index.json`` with the sha256 of each, by which damage is found when the entry is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from textdistill.data.task import DataConfig, TextTask

if TYPE_CHECKING:  # over a second to import, and only a run that reads data needs it
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

INDEX_FILE = "index.json"
PARTS = {"ids": np.int32, "offsets": np.int64, "token_types": np.uint8}
CACHE_VERSION = 2  # raise it whenever tokenize would store something else


@dataclass(frozen=True)
class TokenizedSplit:
    """Token ids of N texts, flat: row i is ``ids[offsets[i] : offsets[i + 1]]``.

    The arrays may be memory-mapped: the pages of the rows that a batch asks for are read then, and dropped again when
    memory is short. In memory are the labels and, once asked for, the lengths: 8 bytes a row each.

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
    """Token ids of every split, from the cache where it has them, memory-mapped either way.

    The name of a cache entry is a hash of all that decides its content (texts, tokenizer, max_length, versions), so
    it is never stale. Slow tokenizers cannot be hashed by content and are not cached. What is not cached is in
    unnamed files, whose space is freed with the arrays, whatever ends the process.

    Args:
        task: the texts.
        tokenizer: the learner's; texts of a pair are joined as it joins pairs.
        config: the data keys.

    Raises:
        ValueError: ``data.max_length`` leaves no room for text or is more than the model takes, or the source of the
            texts changed since the task was loaded.

    """
    least = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2) + len(task.text_columns)
    if not least <= config.max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"data.max_length must be from {least} (special tokens and one of each text) to "
            f"{tokenizer.model_max_length} (the tokenizer's model_max_length), got {config.max_length}"
        )
    parts = [part for part in PARTS if part != "token_types" or "token_type_ids" in tokenizer.model_input_names]
    names = [f"{split}.{part}" for split in task.splits for part in parts]
    entry = None
    if config.preprocessed_datasets_path is not None and tokenizer.is_fast:
        entry = Path(config.preprocessed_datasets_path) / _cache_key(task, tokenizer, config.max_length)
    arrays = _opened(entry, names) if entry is not None and not config.force_preprocess else None
    if arrays is None:
        arrays = _made(task, tokenizer, config.max_length, names, entry)
    return {
        split: TokenizedSplit(
            ids=arrays[f"{split}.ids"],
            offsets=arrays[f"{split}.offsets"],
            token_types=arrays.get(f"{split}.token_types"),
            labels=texts.labels,
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


def _opened(entry: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The arrays of a cache entry; None where there is none, or one that is not as it was written."""
    if not entry.exists():
        return None
    try:
        if json.loads((entry / INDEX_FILE).read_text()) != _digests(entry, names):
            raise ValueError("a checksum differs")
    except (OSError, ValueError) as error:
        logger.warning("the token cache %s is broken (%s) and is rebuilt", entry, error)
        return None
    return _mapped(entry, names)


def _made(
    task: TextTask, tokenizer: PreTrainedTokenizerBase, max_length: int, names: Sequence[str], entry: Path | None
) -> dict[str, np.ndarray]:
    """The arrays, written chunk by chunk, and left as a cache entry if that is given."""
    if entry is not None:
        entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tokens-", dir=entry and entry.parent) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        _write(task, tokenizer, max_length, new, names)
        # Mapped files stay readable when they are renamed or removed.
        arrays = _mapped(new, names)
        if entry is not None:
            (new / INDEX_FILE).write_text(json.dumps(_digests(new, names), indent=1))
            with suppress(FileNotFoundError):
                entry.rename(Path(scratch, "old"))
            with suppress(OSError):  # another job of a sweep may have been quicker, with the same content
                new.rename(entry)
    return arrays


def _write(
    task: TextTask, tokenizer: PreTrainedTokenizerBase, max_length: int, folder: Path, names: Sequence[str]
) -> None:
    with_types = "token_type_ids" in tokenizer.model_input_names
    tokens = dict.fromkeys(task.splits, 0)  # written so far
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in names}

        def append(split: str, part: str, values: Iterable[int]) -> None:
            files[f"{split}.{part}"].write(np.fromiter(values, dtype=PARTS[part]).data)

        for split in task.splits:
            append(split, "offsets", [0])
        rows = sum(map(len, task.splits.values()))
        bar = tqdm(total=rows, desc="tokenise", unit="row", leave=False, dynamic_ncols=True, disable=None)
        stack.enter_context(bar)
        for split, texts in task.chunks():
            encoded = tokenizer(
                *(texts[column].to_pylist() for column in task.text_columns),
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=with_types,
            )
            ends = np.cumsum([tokens[split], *map(len, encoded["input_ids"])])[1:]
            tokens[split] = int(ends[-1])
            append(split, "ids", chain.from_iterable(encoded["input_ids"]))
            append(split, "offsets", ends)
            if with_types:
                append(split, "token_types", chain.from_iterable(encoded["token_type_ids"]))
            bar.update(len(texts))


def _mapped(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = {}
    for name in names:
        file, kind = folder / name, PARTS[name.partition(".")[2]]
        # An empty file cannot be mapped.
        arrays[name] = np.asarray(np.memmap(file, kind, "r")) if file.stat().st_size else np.empty(0, kind)
    return arrays


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
