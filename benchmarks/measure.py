"""How the benchmarks measure: fresh processes, alternation, ratios, seconds and peak memory.

A measurement is a module-level function that returns a dict. It runs in a process of its own, forked from a server
that has imported the package and done nothing else, so none finds caches, heaps or threads of another. What is
compared is measured alternately, and every figure is a ratio within one round: the machine's noise hits both sides.
"""

from __future__ import annotations

import json
import statistics
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from ctypes import CDLL
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

K = TypeVar("K")
Row = dict[str, Any]
Spread = tuple[float, float]

DATA = Path(__file__).parents[2] / "shared" / "data" / "ag_news"
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["benchmarks.workload"])


def arguments(doc: str, data: bool = False) -> ArgumentParser:
    """A parser of the options that all benchmarks have; with ``data``, of the folder of AG News too."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat of a tiny setting, to see that it works")
    parser.add_argument("--output", type=Path, help="JSON file; rows that it has are kept (default: save/benchmarks/)")
    parser.add_argument("--model", default="minilm-l6", help="name or folder of the encoder (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    if data:
        parser.add_argument("--data", type=Path, default=DATA, help="folder of AG News (default: %(default)s)")
    return parser


def fresh(function: Callable[..., Row], *given: Any) -> Row | None:
    """``function(*given)`` in a process of its own; None where the system ended it, as it does when memory runs out."""
    with ProcessPoolExecutor(1, PROCESSES, _first_to_go) as pool:
        try:
            result = pool.submit(function, *given).result()
        except BrokenProcessPool:
            result = None
    line = {"measured": function.__name__, "given": [str(value) for value in given], "found": result}
    print(json.dumps(line), flush=True)
    return result


def _first_to_go() -> None:
    Path("/proc/self/oom_score_adj").write_text("1000")  # whom Linux ends when memory runs out


def alternate(
    function: Callable[..., Row], variants: Mapping[K, Sequence[Any]], repeats: int
) -> dict[K, list[Row | None]]:
    """``repeats`` rounds of one measurement a variant; a variant that the system ended is not tried again."""
    found: dict[K, list[Row | None]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, given in variants.items():
            found[name].append(None if None in found[name] else fresh(function, *given))
    return found


def median(results: Sequence[Row | None], key: str) -> float | None:
    """Over the rounds; None unless all finished."""
    return statistics.median(r[key] for r in results if r) if None not in results else None


def ratio(top: Sequence[Row | None], bottom: Sequence[Row | None], key: str) -> tuple[float | None, Spread | None]:
    """Median, and least and greatest, of the rounds' ratios; None unless all finished."""
    ratios = [a[key] / b[key] for a, b in zip(top, bottom, strict=True) if a and b]
    return (statistics.median(ratios), (min(ratios), max(ratios))) if len(ratios) == len(top) else (None, None)


def observe(step: Callable[[int], object], count: int) -> tuple[list[float], float]:
    """Seconds of ``step(0)`` to ``step(count - 1)`` after a first ``step(0)``, and the peak memory of all in MB.

    Memory is above that of the process before the first step, whose free heap is handed back to the system.
    """
    CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    idle = memory("VmRSS")
    step(0)
    seconds = []
    for index in range(count):
        started = time.perf_counter()
        step(index)
        seconds.append(time.perf_counter() - started)
    return seconds, memory("VmHWM") - idle


def memory(field: str) -> float:
    """A field of this process's ``/proc/self/status``, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
