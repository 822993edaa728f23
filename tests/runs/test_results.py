"""results.json: what is written is read again, and what no verb writes is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textdistill.runs.results import RunResult

SCORE = {"mean": 0.5, "std": 0.1, "n": 2, "values": [0.4, 0.6]}
BASELINE = {
    "task": "toy",
    "model": {"name": "tiny", "revision": None},
    "protocol": "clean",
    "splits": {"test": {"source": "test", "rows": 100}},
    "seed": 1,
    "metrics": {"accuracy": SCORE},
    "versions": {"results": 1, "torch": "2.9"},
    "baseline": "random",
    "training": "inner_loop",
    "data_per_label": 1,
}
CLASSES = {
    "names": ["no [\n 1,\n 2 ]", "yes"],
    "confusion": [[100, 20], [30, 50]],
    "majority": {"index": 0, "share": 0.6, "metrics": {"accuracy": 0.6}},
}
SHAPE = {"label_type": "soft", "attention_label_type": "cls", "data_per_label": 1, "seq_length": 8}
DISTILLED = {key: BASELINE[key] for key in ("task", "model", "protocol", "splits", "seed", "metrics", "versions")} | {
    "distilled_data": SHAPE,
    "learner_train": {"train_step": 1},
    "made_for": "tiny",
    "outer_steps": 10,
    "training_seconds": 90,
    "best_step": 5,
    "validation": {"loss": 0.5},
}


@pytest.mark.parametrize("values", [BASELINE, DISTILLED, DISTILLED | {"classes": CLASSES}])
def test_what_is_written_is_read_again(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(values))
    result = RunResult.read(tmp_path / "a.json")
    assert result.to_dict() == values
    result.write(tmp_path / "b" / "results.json")
    assert RunResult.read(tmp_path / "b" / "results.json") == result


def test_row_of_the_confusion_matrix_is_one_line(tmp_path: Path) -> None:
    confusion = [[row * column for column in range(150)] for row in range(150)]
    classes = CLASSES | {"names": [str(index) for index in range(150)], "confusion": confusion}
    RunResult.from_dict(BASELINE | {"classes": classes}).write(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text)["classes"]["confusion"] == confusion
    assert f"\n      [{', '.join(map(str, confusion[1]))}],\n" in text
    assert len(text.splitlines()) < 400


def test_version_is_optional() -> None:
    assert RunResult.from_dict(BASELINE | {"versions": {"torch": "2.9"}}) == RunResult.from_dict(BASELINE)


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (BASELINE, {"task": None}, "task must be str, got None"),
        (BASELINE, {"seed": "1"}, "seed must be int, got '1'"),
        (BASELINE, {"seconds": "1"}, "seconds must be float or NoneType or int, got '1'"),
        (BASELINE, {"model": {"name": "tiny"}}, "ModelId must state revision"),
        (BASELINE, {"metrics": {}}, "metrics must state accuracy"),
        (BASELINE, {"metrics": {"accuracy": 1}}, "Score must be an object, got 1"),
        (BASELINE, {"metrics": {"accuracy": SCORE | {"n": 3}}}, "values must be n=3 numbers, got 2"),
        (BASELINE, {"metrics": {"accuracy": SCORE | {"values": [0.4, "a"]}}}, "values must be float or int, got 'a'"),
        (BASELINE, {"metrics": {"accuracy": SCORE | {"mean": float("nan")}}}, "must be finite numbers, got nan"),
        (BASELINE, {"metrics": {"accuracy": SCORE | {"values": [0.4, float("inf")]}}}, "finite numbers, got inf"),
        (BASELINE, {"splits": {}}, "splits must state test"),
        (BASELINE, {"training": None}, "training and data_per_label must be stated for baseline='random'"),
        (BASELINE, {"versions": {"results": 2}}, "versions.results must be 1, got 2; upgrade textdistill"),
        (BASELINE, {"made_for": "tiny", **DISTILLED}, "made_for or baseline must be stated, and not both"),
        (DISTILLED, {"learner_train": {}}, "train_step must be int, got None"),
        (DISTILLED, {"distilled_data": SHAPE | {"seq_length": None}}, "seq_length must be int, got None"),
        (BASELINE, {"classes": []}, "classes must be an object, got []"),
        (BASELINE, {"classes": CLASSES | {"majority": None}}, "MajorityClass must be an object, got None"),
        (BASELINE, {"classes": CLASSES | {"names": ["no", 1]}}, "names must be strings, got ['no', 1]"),
        (BASELINE, {"classes": CLASSES | {"names": ["no"]}}, "confusion must be 1 rows of 1 counts, got [[100, 20]"),
        (BASELINE, {"classes": CLASSES | {"confusion": [[1, 2], [3]]}}, "confusion must be 2 rows of 2 counts"),
        (BASELINE, {"classes": CLASSES | {"confusion": [[1, 2], [3, -1]]}}, "confusion must be 2 rows of 2 counts"),
        (BASELINE, {"classes": CLASSES | {"confusion": [[1, 2], [3, True]]}}, "confusion must be 2 rows of 2 counts"),
        (
            BASELINE,
            {"classes": CLASSES | {"majority": CLASSES["majority"] | {"index": 2}}},
            "index must be from 0 to 1, got 2",
        ),
        (DISTILLED, {"validation": 1}, "validation must be Mapping or NoneType, got 1"),
    ],
)
def test_what_no_verb_writes_is_refused(
    values: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(values | changes))
    with pytest.raises(ValueError, match=r"results\.json must be what distill, evaluate or baseline wrote: ") as error:
        RunResult.read(path)
    assert message in str(error.value)
