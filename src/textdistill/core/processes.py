"""The processes of a run: one, or those that ``torchrun`` started, and what they tell each other.

    torchrun --nproc_per_node N -m textdistill distill ...

Every process does the same arithmetic on batches and heads of its own; process 0 alone writes.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")


class Processes:
    """The processes of the run, seen from one of them. All must call the same methods in the same order.

    Attributes:
        rank: number of this process; 0 for the one that writes.
        count: how many there are.
        device: where this one computes.

    Raises:
        ValueError: several were started, but they cannot reach each other.

    """

    def __init__(self) -> None:
        launched = int(os.environ.get("WORLD_SIZE", 1))
        # Without being told so, accelerate starts no group of processes that have no accelerator.
        self._state = PartialState(cpu=launched > 1 and not torch.accelerator.is_available())
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.device: torch.device = self._state.device
        if self.count != launched:
            raise ValueError(
                f"the {launched} processes that were started must form a group, got {self.count} on {self.device};"
                " start them with torchrun --nproc_per_node N -m textdistill, on CPUs or GPUs"
            )

    @property
    def main(self) -> bool:
        """Whether this is process 0, which writes."""
        return self.rank == 0

    @property
    def peak_memory_bytes(self) -> int:
        """The most that this process has held since it started: tensors on the GPU or, without one, all it has."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        # In kilobytes, but for macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over all processes, of tensors of one dtype: one reduction of one flat buffer."""
        if self.count == 1:
            return list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether the flag of any process is set."""
        return any(self.gather([flag]))

    def gather(self, values: list[T]) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        gathered: list[T] = gather_object(values) if self.count > 1 else values
        return gathered

    def broadcast(self, value: T) -> T:
        """The value of process 0."""
        if self.count > 1:
            (value,) = broadcast_object_list([value])
        return value

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that process 0 runs before the others do, so that these find what it has cached."""
        with self._state.main_process_first():
            yield
