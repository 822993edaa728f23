"""How near our outer step comes to the machine's matmul rate, and where the rest of its time goes.

    python -m benchmarks.limit [--seq-length 512 64]

The floating-point operations of one step are counted as it runs (matmuls and attention). Every matmul it makes is
made again alone, on operands of the same shapes and strides; their operations over their seconds, each shape as often
as in the step, are the machine's rate. ``achieved_share`` is counted operations / seconds / rate, step and matmuls
timed in turn in one process.

The shares are those of a profiled step's time by kind of operation: ``matmul``; ``attention``; ``norm``, layer norms;
``elementwise``, sums and copies too, on activations; ``parameters``, the same on parameters (updates, shifts,
differences); and ``other``, all else, Python included.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median as middle
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.measure import Row, Spread, alternate, arguments, median
from benchmarks.outer_step import TOKENS
from benchmarks.report import record
from benchmarks.workload import CLASS_NAMES, OurStep, configure, made_up_batch, noise_set
from textdistill.method.learner import Learner

KEY = ("model", "seq_length")
ROUNDS = 5  # in one process
aten = torch.ops.aten
MATMULS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)
# torch has formulas for its fused attention on GPUs only.
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
KINDS = {
    "matmul": {"mm", "addmm", "bmm", "baddbmm"},
    "attention": {op.__name__ for op in CPU_ATTENTION},
    "norm": {"native_layer_norm", "native_layer_norm_backward"},
    "elementwise": {
        "add", "add_", "addcmul", "addcmul_", "copy_", "div", "dot", "exp", "gelu", "gelu_backward", "log", "mul",
        "mul_", "neg", "sqrt", "sub", "sum", "tanh", "tanh_backward", "_log_softmax", "_log_softmax_backward_data",
    },
}  # fmt: skip
Operand = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides
Matmul = tuple[Any, tuple[Operand, ...]]


def count_flops(function: Callable[[], object]) -> dict[Any, int]:
    """Floating-point operations of a call by torch operation, matmuls and attention; a multiply-add is two."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        function()
    return dict(counter.get_flop_counts()["Global"])


class Matmuls(TorchDispatchMode):
    """Counts the matmuls made inside the block, by operation and operands."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[Matmul] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in MATMULS:
            self.found[func, tuple((tuple(a.shape), a.stride()) for a in args)] += 1
        return func(*args, **(kwargs or {}))

    def replay(self) -> Callable[[], float]:
        """A function that makes each of them once and returns the seconds that all would take, as often as found."""
        calls = [(func, [_filled(*operand) for operand in operands], n) for (func, operands), n in self.found.items()]
        return lambda: sum(n * _seconds(lambda: func(*operands)) for func, operands, n in calls)  # noqa: B023


def _filled(shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.randn(extent).as_strided(shape, strides)


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def breakdown(function: Callable[[], object]) -> dict[str, float]:
    """Shares of a call's time by kind of operation, summing to 1."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        total = _seconds(function)
    shares = dict.fromkeys([*KINDS, "parameters"], 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        name = event.key.rpartition("::")[2]
        kind = next((kind for kind, names in KINDS.items() if name in names), None)
        # Activations have three dimensions or more, parameters at most two.
        if name.startswith("_foreach_") or (kind == "elementwise" and max(map(len, event.input_shapes)) <= 2):
            kind = "parameters"
        if kind is not None:
            shares[kind] += event.self_cpu_time_total / 1e6 / total
    return shares | {"other": 1 - sum(shares.values())}


def measured(model: str, seq_length: int, tokens: int) -> Row:
    """One process's counts, medians and shares."""
    config = configure(model, f"distilled_data.seq_length={seq_length}")
    learner = Learner(config.model, CLASS_NAMES)
    ours = OurStep(config, learner, noise_set(config, learner))
    batch = made_up_batch(config, learner, tokens)

    def step() -> None:
        ours(batch, 0)

    flops = count_flops(step)
    with Matmuls() as matmuls:
        step()
    replay = matmuls.replay()
    replay()
    seconds, replayed = zip(*((_seconds(step), replay()) for _ in range(ROUNDS)), strict=True)
    rate = sum(flops.get(op, 0) for op in MATMULS) / middle(replayed)
    return {
        "flops": (total := sum(flops.values())),
        "seconds": middle(seconds),
        "matmul_rate": rate,
        "achieved_share": total / middle(seconds) / rate,
        **breakdown(step),
    }


def rows(given: Namespace) -> Iterator[Row]:
    """One a seq_length."""
    variants = {length: (given.model, length, given.tokens) for length in given.seq_length}
    for length, results in alternate(measured, variants, given.repeats).items():
        shares = [r["achieved_share"] for r in results if r]
        spread: Spread = (min(shares), max(shares))
        medians = {key: median(results, key) for key in results[0] or {}}
        row = {"model": Path(given.model).name, "seq_length": length, **medians}
        yield row | {"achieved_share_spread": spread}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes JSON and the table."""
    parser = arguments(__doc__)
    parser.add_argument("--seq-length", type=int, nargs="+", default=[512, 64])
    given = parser.parse_args(argv)
    given.tokens = TOKENS
    if given.quick:
        given.seq_length, given.tokens, given.repeats = [16], 16, 1
    record("limit", given, KEY, rows(given))


if __name__ == "__main__":
    main()
