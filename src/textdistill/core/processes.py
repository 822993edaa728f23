"""Connects the processes of a run, one or several, which torchrun starts.

    torchrun --nproc_per_node N -m textdistill distill ...

Every process does the same arithmetic on its own batches and heads. Only process 0 writes files.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")


class Processes:
    """The group of processes of a run. All processes must call the same methods in the same order.

    Attributes:
        rank: the number of this process, from 0. Process 0 writes files.
        count: the number of processes.
        device: the device that this process computes on.

    Raises:
        ValueError: several processes were started but cannot reach each other.

    """

    def __init__(self) -> None:
        launched = int(os.environ.get("WORLD_SIZE", 1))
        # On a machine without an accelerator, accelerate forms a group of processes only if cpu=True.
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
        """Returns whether this process is process 0, which writes files."""
        return self.rank == 0

    @property
    def peak_memory_bytes(self) -> int:
        """Returns this process's peak memory in bytes: tensors on the GPU or, without a GPU, the whole process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))):
            # On Linux ru_maxrss includes the peak of the process that started this one.
            return int(peak[1]) * 1024
        # macOS reports bytes; other systems report kilobytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums tensors of one dtype over all processes, with one reduction of one flat buffer."""
        if self.count == 1:
            return list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def any(self, flag: bool) -> bool:
        """Returns whether any process sets its flag."""
        return any(self.gather([flag]))

    def gather(self, values: list[T]) -> list[T]:
        """Returns the values of all processes, in the order of their ranks."""
        gathered: list[T] = gather_object(values) if self.count > 1 else values
        return gathered

    def broadcast(self, value: T) -> T:
        """Returns the value of process 0 in every process."""
        if self.count > 1:
            (value,) = broadcast_object_list([value])
        return value

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs a block in process 0 first, so that the other processes find its cached files."""
        with self._state.main_process_first():
            yield
