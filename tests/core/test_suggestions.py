"""The nearest names are those that a reader would have meant."""

import pytest

from textdistill.core.suggestions import did_you_mean, nearest

VERBS = ["distill", "evaluate", "finetune", "baseline"]


@pytest.mark.parametrize(
    ("name", "known", "end"),
    [
        ("destil", VERBS, "; did you mean 'distill'?"),
        ("Fine-Tune", VERBS, "; did you mean 'finetune'?"),
        ("max-steps", ["max_steps", "val_steps"], "; did you mean 'max_steps' or 'val_steps'?"),
        ("xyz", VERBS, ""),
        ("xyz", [], ""),
    ],
)
def test_nearest(name: str, known: list[str], end: str) -> None:
    assert did_you_mean(nearest(name, known)) == end
