"""Computes the coordinates and labels of a line chart. A template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 24, 14, 40
TICKS = 5
# A line with more points than this has no dots.
DOTS = 60
# Values up to this size count as 0, because powers of ten near the least float are not exact.
ZERO = 1e-300


@dataclass(frozen=True)
class Series:
    """A line through points in ascending x. ``spread`` is the half width of a band around each point, or None."""

    name: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float | None] = ()


@dataclass(frozen=True)
class DrawnLine:
    """A series in the coordinates of the drawing."""

    name: str
    path: str
    band: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A line chart in the coordinates of the drawing, ``WIDTH`` by ``HEIGHT``.

    Attributes:
        title: the quantity that the chart shows.
        text: the chart in words, for readers who cannot see it.
        lines: the lines, in the order of the series.
        x_ticks: the coordinate and label of each tick on the horizontal axis.
        y_ticks: the coordinate and label of each tick on the vertical axis.
        mark: the horizontal coordinate of the marked step; None without a mark.

    """

    title: str
    text: str
    lines: list[DrawnLine]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    mark: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(title: str, series: Sequence[Series], mark: float | None = None) -> Chart | None:
    """Draws the series that have points over outer steps from 0. Returns None if no series has points.

    Args:
        title: the quantity that the chart shows.
        series: the series, whose values share one unit.
        mark: the outer step to mark; None for no mark.

    """
    series = [line for line in series if line.points]
    if not series:
        return None
    bounds = [y + sign * (half or 0.0) for line in series for _, y, half in _with_spread(line) for sign in (-1, 1)]
    x_ticks = _ticks(0.0, max(line.points[-1][0] for line in series))
    y_ticks = _ticks(min(bounds), max(bounds))

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * value / x_ticks[-1], 1)

    def y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)

    def drawn(line: Series) -> DrawnLine:
        rows = _with_spread(line)
        widths = [(at, value, half) for at, value, half in rows if half is not None]
        outline = [(at, value + half) for at, value, half in widths]
        outline += [(at, value - half) for at, value, half in reversed(widths)]
        dots = [(x(at), y(value), f"{line.name} at step {at:g}: {value:.4g}") for at, value, _ in rows]
        return DrawnLine(
            line.name,
            " ".join(f"{x(at)},{y(value)}" for at, value in line.points),
            " ".join(f"{x(at)},{y(value)}" for at, value in outline),
            dots if len(dots) <= DOTS else [],
        )

    text = "; ".join(map(_in_words, series))
    return Chart(
        title,
        f"{title}: {text}" + ("" if mark is None else f"; chosen at step {mark:g}"),
        [drawn(line) for line in series],
        [(x(tick), f"{tick:,g}") for tick in x_ticks],
        [(y(tick), f"{tick:.6g}") for tick in y_ticks],
        None if mark is None else x(mark),
    )


def _with_spread(line: Series) -> list[tuple[float, float, float | None]]:
    spread = line.spread or [None] * len(line.points)
    return [(x, y, half) for (x, y), half in zip(line.points, spread, strict=True)]


def _in_words(line: Series) -> str:
    (start, first), (end, last) = line.points[0], line.points[-1]
    if len(line.points) == 1:
        return f"{line.name} {first:.4g} at step {start:g}"
    return f"{line.name} from {first:.4g} at step {start:g} to {last:.4g} at step {end:g}"


def _ticks(low: float, high: float) -> list[float]:
    """Returns two or more evenly spaced round numbers. They start at or below ``low`` and end at or above ``high``."""
    scale, span = max(abs(low), abs(high)), high - low
    # Values that differ only by rounding have no round numbers between them.
    if span <= max(1e-9 * scale, ZERO):
        span = scale if scale > ZERO else 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / (TICKS - 1)))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10, 20) if m * magnitude * (TICKS - 1) >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
