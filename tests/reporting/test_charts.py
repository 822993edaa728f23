"""Line charts: what lies where, and what they say in words."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textdistill.reporting.charts import BOTTOM, DOTS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, _ticks, line_chart

finite = st.floats(-1e6, 1e6)


@given(finite, finite)
def test_ticks_are_few_even_and_cover_the_values(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = _ticks(low, high)
    steps = [after - before for before, after in pairwise(ticks)]
    assert 2 <= len(ticks) <= 7
    assert all(step > 0 for step in steps)
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-5)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


def test_ticks_are_round() -> None:
    assert _ticks(0.0, 2000.0) == [0, 500, 1000, 1500, 2000]
    assert _ticks(0.31, 0.9) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert _ticks(0.5, 0.5)[0] <= 0.5 < _ticks(0.5, 0.5)[-1]
    assert _ticks(0.0, 0.0) == _ticks(0.0, 5e-324) == [0.0, 0.25]


def test_line_chart() -> None:
    chart = line_chart("Loss", [Series("a", [(0, 1.0), (100, 0.0)], [0.1, None]), Series("b", [(50, 0.5)])], mark=50)
    assert chart is not None
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    assert [text for _, text in chart.x_ticks] == ["0", "25", "50", "75", "100"]
    assert (chart.x_ticks[0][0], chart.x_ticks[-1][0]) == (left, right)
    # The band of 1 ± 0.1 fits in.
    assert [text for _, text in chart.y_ticks] == ["0", "0.5", "1", "1.5"]
    assert (chart.y_ticks[0][0], chart.y_ticks[-1][0]) == (bottom, top)
    a, b = chart.lines
    assert a.path == f"{left:.1f},{bottom - (bottom - top) / 1.5:.1f} {right:.1f},{bottom:.1f}"
    assert len(a.band.split()) == 2
    assert [text for *_, text in a.dots] == ["a at step 0: 1", "a at step 100: 0"]
    assert (b.band, len(b.dots)) == ("", 1)
    assert chart.mark == (left + right) / 2
    assert chart.text == "Loss: a from 1 at step 0 to 0 at step 100; b 0.5 at step 50; chosen at step 50"


def test_nothing_to_draw() -> None:
    assert line_chart("Loss", [Series("a", [])]) is None
    assert line_chart("Loss", []) is None
    chart = line_chart("Loss", [Series("a", []), Series("b", [(0, 1.0)])])
    assert chart is not None
    assert [line.name for line in chart.lines] == ["b"]
    assert chart.mark is None


def test_many_points_have_no_dots() -> None:
    chart = line_chart("Loss", [Series("a", [(i, 0.0) for i in range(DOTS + 1)])])
    assert chart is not None
    assert chart.lines[0].dots == []
