"""The time that a run will still take."""

from __future__ import annotations

import pytest

from textdistill.training.forecast import Forecast, duration
from textdistill.training.schedule import Schedule


def forecast(max_steps: int, val_interval: int, final_validations: float = 0.0) -> Forecast:
    return Forecast(Schedule(1, 1, 10, max_steps, val_interval, 1), final_validations)


def timed(made: Forecast, *seconds: float) -> Forecast:
    for value in seconds:
        made.step_took(value)
    return made


def validations(step: int, max_steps: int, val_interval: int) -> int:
    """Slow and obvious."""
    return sum(1 for s in range(step + 1, max_steps + 1) if s % val_interval == 0 or s == max_steps)


@pytest.mark.parametrize(("max_steps", "val_interval"), [(20, 5), (20, 6), (20, 30), (7, 1), (20, 20)])
def test_steps_validations_and_the_final_score_count(max_steps: int, val_interval: int) -> None:
    made = timed(forecast(max_steps, val_interval, 2.5), 100.0, *[3.0] * 6)
    for step in range(max_steps + 1):
        assert made.seconds_left(step) == 3.0 * (max_steps - step)
    made.validation_took(10.0)
    for step in range(max_steps + 1):
        expected = 3.0 * (max_steps - step) + 10.0 * (validations(step, max_steps, val_interval) + 2.5)
        assert made.seconds_left(step) == pytest.approx(expected)


def test_first_step_and_too_few_steps_say_nothing() -> None:
    assert timed(forecast(100, 10), 50.0).seconds_left(1) is None
    assert timed(forecast(100, 10), 50.0, 1.0, 1.0).seconds_left(3) is None
    # Slow steps are enough after 20 seconds.
    assert timed(forecast(100, 10), 50.0, 11.0, 11.0).seconds_left(3) == 11.0 * 97
    assert timed(forecast(100, 10), 50.0, *[1.0] * 5).seconds_left(6) == 94.0


def test_forecast_follows_the_recent_steps() -> None:
    assert timed(forecast(1000, 10), *[1.0] * 200, *[2.0] * 50).seconds_left(250) == 1500.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "5 seconds"),
        (43.0, "45 seconds"),
        (89.0, "90 seconds"),
        (91.0, "2 minutes"),
        (540.0, "9 minutes"),
        (5399.0, "90 minutes"),
        (5400.0, "1.5 hours"),
        (90000.0, "25.0 hours"),
    ],
)
def test_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
