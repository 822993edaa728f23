"""Sets the precision of matrix products: float32, TF32, float16 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# A key that chooses bfloat16: true, false, or "auto" for bfloat16 where the device multiplies it faster than float32.
AUTO = "auto"
# The instructions of a processor that multiply bfloat16 faster than float32.
CPU_BF16_FLAGS = ("amx_bf16", "avx512_bf16")


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
    def of(cls, *, fp16: bool = False, bf16: bool | str = False, tf32: bool = False) -> Precision:
        """Returns the precision that a configuration's ``fp16``, ``bf16`` and ``tf32`` ask for.

        ``bf16="auto"`` means float32: ``resolve_bf16`` replaces the word before a run starts.
        """
        return cls(torch.float16 if fp16 else torch.bfloat16 if bf16 is True else None, tf32)

    @property
    def name(self) -> str:
        """Returns ``float16``, ``bfloat16``, ``tf32`` or ``float32``."""
        if self.half is not None:
            return str(self.half).removeprefix("torch.")
        return "tf32" if self.tf32 else "float32"

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns a context of mixed precision on ``device``, which changes nothing if ``half`` is None."""
        return torch.autocast(device.type, self.half or torch.bfloat16, enabled=self.half is not None)


FLOAT32 = Precision()


def check_half(group: str, fp16: bool, bf16: bool | str) -> None:
    """Raises ValueError unless ``fp16`` and ``bf16`` of a group of keys are valid together."""
    if bf16 not in (True, False, AUTO):
        raise ValueError(f"{group}.bf16 must be true, false or auto, got {bf16!r}")
    if fp16 and bf16 is True:
        raise ValueError(f"{group}.fp16 and {group}.bf16 exclude each other, got both true; set one to false")


def resolve_bf16(bf16: bool | str, fp16: bool, device: torch.device) -> bool:
    """Returns whether to use bfloat16 on a device.

    Args:
        bf16: true, false or ``auto``.
        fp16: whether float16 is used; ``auto`` then means false.
        device: the device of the products.

    """
    if isinstance(bf16, bool):
        return bf16
    return not fp16 and bf16_is_faster(device)


def bf16_is_faster(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 products, by the flags of the GPU or the processor."""
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    if device.type != "cpu":
        return False
    # torch before 2.11 does not tell the flags of a processor. float32 is right there too, only slower.
    flags: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(flags.get(name) for name in CPU_BF16_FLAGS)


@contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    """Sets the precision of float32 matrix products in a block: TF32 where the device has it, or full float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
