"""Token ids of the texts of a task: tokenised once, cached by content, memory-mapped, and padded batch by batch.

A cache entry is a folder. It holds a flat file for each array of each split, such as ``train.ids``, and
``index.json`` with the SHA-256 of each file. Damage is found when the entry is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from textdistill.data.task import DataConfig, TextTask
from textdistill.data.tokenized import TokenizedSplit

if TYPE_CHECKING:  # transformers takes over a second to import, and only runs that read data need it
    from transformers import BatchEncoding, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

INDEX_FILE = "index.json"
ARRAY_TYPES = {"ids": np.int32, "offsets": np.int64, "token_types": np.uint8, "cut": np.uint8}
CACHE_VERSION = 3  # part of the cache key; raise it whenever tokenize would write other arrays


def tokenize(task: TextTask, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> dict[str, TokenizedSplit]:
    """Returns the token ids of every split, memory-mapped, from the cache if it holds them.

    The name of a cache entry is a hash of everything that decides its content: texts, tokenizer, ``max_length`` and
    versions. An entry is therefore never stale. The content of a slow tokenizer cannot be hashed, so its tokens are
    not cached. Tokens outside the cache are in deleted files, whose space is freed when the process ends.

    Args:
        task: the texts.
        tokenizer: the tokenizer of the learner; it also joins the two texts of a pair.
        config: the configuration of the data.

    Raises:
        ValueError: ``data.max_length`` leaves no room for text or exceeds what the model takes, or the source has
            changed since the task was loaded.

    """
    minimum = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2) + len(task.text_columns)
    if not minimum <= config.max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"data.max_length must be from {minimum} (special tokens and one of each text) to "
            f"{tokenizer.model_max_length} (the tokenizer's model_max_length), got {config.max_length}"
        )
    kinds = [kind for kind in ARRAY_TYPES if kind != "token_types" or "token_type_ids" in tokenizer.model_input_names]
    names = [f"{split}.{kind}" for split in task.splits for kind in kinds]
    entry = None
    if config.preprocessed_datasets_path is not None and tokenizer.is_fast:
        entry = Path(config.preprocessed_datasets_path) / _cache_key(task, tokenizer, config.max_length)
    arrays = _open_entry(entry, names) if entry is not None and not config.force_preprocess else None
    if arrays is None:
        arrays = _make_arrays(task, tokenizer, config.max_length, names, entry)
    return {
        split: TokenizedSplit(
            ids=arrays[f"{split}.ids"],
            offsets=arrays[f"{split}.offsets"],
            token_types=arrays.get(f"{split}.token_types"),
            labels=texts.labels,
            pad_token_id=tokenizer.pad_token_id,
            cut=arrays[f"{split}.cut"],
        )
        for split, texts in task.splits.items()
    }


def _cache_key(task: TextTask, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    import tokenizers

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # The state of a tokenizer includes the truncation and padding of its latest call, which tokenize overrides.
    content["truncation"] = content["padding"] = None
    inputs = [tokenizer.model_input_names, tokenizer.truncation_side, max_length]
    versions = [CACHE_VERSION, tokenizers.__version__]
    return hashlib.sha256(json.dumps([task.fingerprint, content, inputs, versions]).encode()).hexdigest()[:32]


def _open_entry(entry: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Returns the arrays of a cache entry; None if it is missing or damaged."""
    if not entry.exists():
        return None
    try:
        if json.loads((entry / INDEX_FILE).read_text()) != _digests(entry, names):
            raise ValueError("a checksum differs")
    except (OSError, ValueError) as error:
        logger.warning("the token cache %s is broken (%s) and is rebuilt", entry, error)
        return None
    return _map_arrays(entry, names)


def _make_arrays(
    task: TextTask, tokenizer: PreTrainedTokenizerBase, max_length: int, names: Sequence[str], entry: Path | None
) -> dict[str, np.ndarray]:
    """Tokenises into new files, which become the cache entry unless ``entry`` is None."""
    if entry is not None:
        entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tokens-", dir=entry and entry.parent) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        _write_arrays(task, tokenizer, max_length, new, names)
        # Mapped files stay readable after they are renamed or removed.
        arrays = _map_arrays(new, names)
        if entry is not None:
            (new / INDEX_FILE).write_text(json.dumps(_digests(new, names), indent=1))
            with suppress(FileNotFoundError):
                entry.rename(Path(scratch, "old"))
            # Another job of a sweep may have written the entry meanwhile. Its content is the same.
            with suppress(OSError):
                new.rename(entry)
    return arrays


def _write_arrays(
    task: TextTask, tokenizer: PreTrainedTokenizerBase, max_length: int, folder: Path, names: Sequence[str]
) -> None:
    with_types = "token_type_ids" in tokenizer.model_input_names
    written_tokens = dict.fromkeys(task.splits, 0)
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in names}

        def append(split: str, kind: str, values: Iterable[int]) -> None:
            files[f"{split}.{kind}"].write(np.fromiter(values, dtype=ARRAY_TYPES[kind]).data)

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
            ends = np.cumsum([written_tokens[split], *map(len, encoded["input_ids"])])[1:]
            written_tokens[split] = int(ends[-1])
            append(split, "ids", chain.from_iterable(encoded["input_ids"]))
            append(split, "offsets", ends)
            append(split, "cut", _cut(encoded, max_length))
            if with_types:
                append(split, "token_types", chain.from_iterable(encoded["token_type_ids"]))
            bar.update(len(texts))


def _cut(encoded: BatchEncoding, max_length: int) -> Iterator[bool]:
    """Whether each text was cut. Slow tokenizers do not say so: a text of ``max_length`` tokens counts as cut."""
    for index, ids in enumerate(encoded["input_ids"]):
        yield len(ids) == max_length and (not encoded.encodings or bool(encoded.encodings[index].overflowing))


def _map_arrays(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = {}
    for name in names:
        file, dtype = folder / name, ARRAY_TYPES[name.partition(".")[2]]
        # An empty file cannot be mapped.
        arrays[name] = np.asarray(np.memmap(file, dtype, "r")) if file.stat().st_size else np.empty(0, dtype)
    return arrays


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
