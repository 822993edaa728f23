"""Sets the precision of matrix products: float32, TF32, float16 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """The precision of the matrix products in a forward pass. Parameters, gradients and updates stay in float32.

    Attributes:
        half: float16 or bfloat16, which autocast uses where it considers them safe; None for float32 throughout.
        tf32: whether float32 products may use TF32, which keeps 10 bits of the mantissa. Devices without TF32 ignore
            this value.

    """

    half: torch.dtype | None = None
    tf32: bool = False

    @classmethod
    def of(cls, *, fp16: bool = False, bf16: bool = False, tf32: bool = False) -> Precision:
        """Returns the precision that a configuration's ``fp16``, ``bf16`` and ``tf32`` ask for."""
        return cls(torch.float16 if fp16 else torch.bfloat16 if bf16 else None, tf32)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns a context of mixed precision on ``device``, which changes nothing if ``half`` is None."""
        return torch.autocast(device.type, self.half or torch.bfloat16, enabled=self.half is not None)


FLOAT32 = Precision()


@contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    """Sets the precision of float32 matrix products in a block: TF32 where the device has it, or full float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
