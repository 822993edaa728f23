"""The token ids of a split, and batches of them as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class TokenizedSplit:
    """Token ids of N texts in one flat array: row i is ``ids[offsets[i] : offsets[i + 1]]``.

    The arrays may be memory-mapped: a batch reads the pages of its rows, and the system may drop them again. The
    labels stay in memory, and so do the lengths once they are used: 8 bytes a row each.

    Attributes:
        ids: token ids, int32, (tokens,).
        offsets: int64, (N + 1,).
        token_types: the segment of each token, uint8, (tokens,); None if the model takes no segments.
        labels: class indices, int64, (N,).
        pad_token_id: the token that fills ``input_ids`` after a text.
        cut: whether each text lost tokens to ``data.max_length``, (N,); None if that is unknown.

    """

    ids: np.ndarray
    offsets: np.ndarray
    token_types: np.ndarray | None
    labels: np.ndarray
    pad_token_id: int
    cut: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row, special tokens included, (N,)."""
        return np.diff(self.offsets)

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """Returns rows as tensors, padded to the longest of them.

        Args:
            rows: B row indices.

        Returns:
            int64 tensors on the CPU: ``input_ids`` and ``attention_mask``, (B, L); ``token_type_ids``, (B, L), if the
            model takes segments; and ``labels``, (B,).

        """
        rows = np.asarray(rows)
        lengths = self.lengths[rows]
        positions = np.arange(lengths.max())
        mask = positions < lengths[:, None]
        flat_indices = (self.offsets[rows][:, None] + positions)[mask]

        def pad(flat: np.ndarray, fill: int) -> torch.Tensor:
            values = np.full(mask.shape, fill, dtype=np.int64)
            values[mask] = flat[flat_indices]
            return torch.from_numpy(values)

        batch = {
            "input_ids": pad(self.ids, self.pad_token_id),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if self.token_types is not None:
            batch["token_type_ids"] = pad(self.token_types, 0)
        return batch | {"labels": torch.from_numpy(self.labels[rows])}
