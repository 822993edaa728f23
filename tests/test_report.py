"""Tables of results: what is averaged, what stands beside what, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textdistill.report import find_results, markdown, summarise

Results = dict[str, Any]


def scored(*accuracies: float, seed: int = 1, rows: int = 100, **other: Any) -> Results:
    metric = {"mean": sum(accuracies) / len(accuracies), "std": None, "n": len(accuracies), "values": list(accuracies)}
    return {
        "task": "toy",
        "protocol": "clean",
        "model": {"name": "tiny", "revision": None},
        "splits": {"test": {"source": "test", "rows": rows}},
        "seed": seed,
        "metrics": {"accuracy": metric},
        **other,
    }


def distilled(*accuracies: float, attention: str = "cls", per_class: int = 1, steps: int = 1, **other: Any) -> Results:
    shape = {"label_type": "soft", "attention_label_type": attention, "data_per_label": per_class, "seq_length": 8}
    training = {"outer_steps": 10, "training_seconds": 90.0}
    made = {"distilled_data": shape, "learner_train": {"train_step": steps}, "made_for": "tiny"}
    return scored(*accuracies, **made, **training, **other)


def real(kind: str, *accuracies: float, training: str = "inner_loop", per_class: int = 1, **other: Any) -> Results:
    extra = {"train_step": 1} if training == "inner_loop" else {}
    return scored(*accuracies, baseline=kind, training=training, data_per_label=per_class, **extra, **other)


FULL = scored(0.9, baseline="full")


def test_seeds_share_a_line() -> None:
    (line,) = summarise([distilled(0.5, 0.7, seed=1), distilled(0.6, 0.8, seed=2)])
    assert line["metrics"]["accuracy"]["mean"] == pytest.approx(0.65)
    assert line["metrics"]["accuracy"]["std"] == pytest.approx(0.1290994)
    assert (line["seeds"], line["learners"]) == ([1, 2], 4)
    assert (line["outer_steps"], line["minutes"]) == (10, 1.5)
    assert line["of_full"] is None
    assert line["over_random"] is None


def test_settings_do_not() -> None:
    found = [
        distilled(0.5), distilled(0.5, attention="none"), distilled(0.5, per_class=5), distilled(0.5, steps=3),
        real("herding", 0.5), real("herding", 0.5, training="ordinary"), real("k-centers", 0.5), FULL,
        distilled(0.5) | {"made_for": "small"}, distilled(0.5) | {"protocol": "paper"},
        distilled(0.5) | {"task": "other"},
    ]  # fmt: skip
    lines = summarise(found)
    assert len(lines) == len(found)
    assert [line["method"] for line in lines if line["task"] == "toy" and line["protocol"] == "clean"] == [
        *["distilled"] * 4, "distilled for small", "herding, inner loop", "herding, ordinary", "k-centers, inner loop",
        "full data",
    ]  # fmt: skip


def test_what_stands_beside_what() -> None:
    """Full data for all of its task and model; random samples only where they are as many and take as many steps."""
    found = [FULL, real("random", 0.5), real("random", 0.6, per_class=5), real("random", 0.7, training="ordinary")]
    ones, fives, threes = summarise([*found, distilled(0.8), distilled(0.8, per_class=5), distilled(0.8, steps=3)])[:3]
    assert (ones["per_class"], ones["steps"], ones["over_random"]) == (1, 1, pytest.approx(0.3))
    assert (fives["per_class"], fives["steps"], fives["over_random"]) == (1, 3, None)
    assert (threes["per_class"], threes["steps"], threes["over_random"]) == (5, 1, pytest.approx(0.2))
    assert [line["of_full"] for line in (ones, fives, threes)] == [pytest.approx(0.8 / 0.9)] * 3
    other_rows = summarise([FULL | {"splits": {"test": {"source": "test", "rows": 5}}}, distilled(0.8)])[0]
    assert other_rows["of_full"] is None


def test_markdown() -> None:
    found = [distilled(0.81, 0.83), real("random", 0.5, 0.52), FULL, distilled(0.4) | {"task": "other"}]
    assert (
        markdown(summarise(found))
        == """\
### other, tiny, protocol clean

100 rows of test.

| method | samples per class | steps | labels | attention labels | positions | accuracy | learners | outer steps | minutes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| distilled | 1 | 1 | soft | cls | 8 | 0.4000 | 1 | 10 | 1.5 |

### toy, tiny, protocol clean

100 rows of test.

| method | samples per class | steps | labels | attention labels | positions | accuracy | of full data | over random | learners | outer steps | minutes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| distilled | 1 | 1 | soft | cls | 8 | 0.8200 ± 0.0141 | 91.1% | +0.3100 | 2 | 10 | 1.5 |
| random, inner loop | 1 | 1 |  |  |  | 0.5100 ± 0.0141 | 56.7% | +0.0000 | 2 |  |  |
| full data |  |  |  |  |  | 0.9000 | 100.0% |  | 1 |  |  |
"""  # noqa: E501
    )


def test_find_results(tmp_path: Path) -> None:
    for name, results in {"sweep/0": distilled(0.5), "sweep/1": distilled(0.6), "full": FULL}.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    found = find_results([tmp_path / "sweep", tmp_path / "full" / "results.json"])
    assert [results["metrics"]["accuracy"]["mean"] for results in found] == [0.5, 0.6, 0.9]


def test_no_results(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"holds no results\.json: name a run folder"):
            find_results([path])


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"task": "toy"}', '{"metrics": {"accuracy": 1}}'])
def test_what_is_not_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json must be what distill, evaluate or baseline wrote"):
        find_results([tmp_path])
