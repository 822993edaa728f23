"""Forecasts how long a run will still take, from the steps and validations that this process has timed."""

from __future__ import annotations

from collections import deque
from statistics import fmean

from textdistill.training.schedule import Schedule

# The first step prepares caches and takes longer than the others, so it is left out.
WARMUP_STEPS = 1
# A forecast needs this many steps, or as many as take this long.
FIRST_STEPS, FIRST_SECONDS = 5, 20.0
# The forecast follows the load of the machine: older steps are forgotten.
RECENT_STEPS = 50


class Forecast:
    """The time until the end of a run.

    Args:
        schedule: the steps and validations of the run.
        final_validations: the work of the final score, as a multiple of a validation. 0 for no score.

    """

    def __init__(self, schedule: Schedule, final_validations: float) -> None:
        self.schedule, self.final_validations = schedule, final_validations
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self._warmup = WARMUP_STEPS
        # Unknown in a resumed run until its first validation.
        self._validation: float | None = None

    def step_took(self, seconds: float) -> None:
        """Takes the duration of an outer step."""
        if self._warmup > 0:
            self._warmup -= 1
        else:
            self._steps.append(seconds)

    def validation_took(self, seconds: float) -> None:
        """Takes the duration of a validation."""
        self._validation = seconds

    def seconds_left(self, step: int) -> float | None:
        """Returns the seconds from the end of an outer step to the end of the run.

        Validations and the final score count as soon as a validation was timed.

        Args:
            step: the outer step that ended, with its validation.

        Returns:
            The seconds; None before enough steps were timed.

        """
        if len(self._steps) < FIRST_STEPS and sum(self._steps) < FIRST_SECONDS:
            return None
        max_steps, interval = self.schedule.max_steps, self.schedule.val_interval
        validations = -(-max_steps // interval) - step // interval if step < max_steps else 0
        work = validations + self.final_validations
        return (max_steps - step) * fmean(self._steps) + work * (self._validation or 0.0)


def duration(seconds: float) -> str:
    """Returns a duration in words, as ``45 seconds``, ``9 minutes`` or ``2.5 hours``."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
