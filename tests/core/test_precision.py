"""bfloat16 is chosen by the flags of the device, and the run records the choice."""

from __future__ import annotations

import pytest
import torch

from textdistill.config import compose
from textdistill.core.precision import bf16_is_faster, check_half, resolve_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "faster"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True),
        ({"avx512_bf16": True}, True),
        ({"avx512_bf16": False, "avx2": True}, False),
        ({}, False),
    ],
)
def test_flags_of_the_processor_decide(flags: dict[str, bool], faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert bf16_is_faster(CPU) is faster
    config = compose().resolved(CPU)
    assert config.train.bf16 is config.evaluate.bf16 is faster


def test_torch_without_flags_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not bf16_is_faster(CPU)
    assert not bf16_is_faster(torch.device("mps"))


@pytest.mark.parametrize("bf16", [True, False])
def test_a_choice_of_the_user_stands(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not bf16}, raising=False)
    assert resolve_bf16(bf16, False, CPU) is bf16


def test_float16_leaves_no_room_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert resolve_bf16("auto", True, CPU) is False


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.bf16=maybe"], "train.bf16 must be true, false or auto, got 'maybe'"),
        (["evaluate.bf16=maybe"], "evaluate.bf16 must be true, false or auto, got 'maybe'"),
        (["train.bf16=true", "train.fp16=true"], "train.fp16 and train.bf16 exclude each other"),
    ],
)
def test_other_words_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(*overrides).check()


def test_float16_with_auto_is_valid() -> None:
    check_half("train", True, "auto")
