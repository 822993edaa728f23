"""Which results share a row, and what each row is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.results import distilled, full, real
from textdistill.reporting.rows import StoredResult, find_results, read_config, report_rows, varying_settings


def written(stored: StoredResult) -> str:
    return json.dumps(stored.result.to_dict())


def test_seeds_share_a_row() -> None:
    (row,) = report_rows([distilled(0.5, 0.7, seed=1), distilled(0.6, 0.8, seed=2)])
    assert row.accuracy.mean == pytest.approx(0.65)
    assert row.accuracy.std == pytest.approx(0.1290994)
    assert (row.seeds, row.accuracy.n) == ([1, 2], 4)
    assert (row.outer_steps, row.minutes) == (10, 1.5)
    assert row.of_full is None
    assert row.over_random is None


def test_settings_do_not() -> None:
    results = [
        distilled(0.5), distilled(0.5, attention="none"), distilled(0.5, per_class=5), distilled(0.5, steps=3),
        real("herding", 0.5), real("herding", 0.5, training="ordinary"), real("k-centers", 0.5), full(),
        distilled(0.5, made_for="small"), distilled(0.5, protocol="paper"), distilled(0.5, task="other"),
    ]  # fmt: skip
    rows = report_rows(results)
    assert len(rows) == len(results)
    assert [row.group.method for row in rows if row.group.scope == ("toy", "clean", "tiny")] == [
        *["distilled"] * 4, "distilled for small", "herding, inner loop", "herding, ordinary", "k-centers, inner loop",
        "full data",
    ]  # fmt: skip


def test_rows_are_compared_with_their_baselines() -> None:
    """Full data for all of its scope; random samples only where they are as many and take as many steps."""
    results = [full(), real("random", 0.5), real("random", 0.6, per_class=5), real("random", 0.7, training="ordinary")]
    results += [distilled(0.8), distilled(0.8, per_class=5), distilled(0.8, steps=3)]
    ones, threes, fives = report_rows(results)[:3]
    assert (ones.group.per_class, ones.group.steps, ones.over_random) == (1, 1, pytest.approx(0.3))
    assert (threes.group.per_class, threes.group.steps, threes.over_random) == (1, 3, None)
    assert (fives.group.per_class, fives.group.steps, fives.over_random) == (5, 1, pytest.approx(0.2))
    assert [row.of_full for row in (ones, threes, fives)] == [pytest.approx(0.8 / 0.9)] * 3
    other_rows = report_rows([full(rows=5), distilled(0.8)])[0]
    assert other_rows.of_full is None


def test_find_results(tmp_path: Path) -> None:
    copy = "sweep/mlartifacts/1/0123/artifacts"
    runs = {"sweep/0": distilled(0.5), "sweep/1": distilled(0.6), "full": full(), copy: distilled(0.5)}
    for name, stored in runs.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(written(stored))
    results = find_results([tmp_path / "sweep", tmp_path / "full" / "results.json", tmp_path / "sweep" / "1"])
    assert [stored.path for stored in results] == [
        tmp_path / name / "results.json" for name in ("sweep/0", "sweep/1", "full")
    ]
    assert [stored.result.metrics["accuracy"].mean for stored in results] == [0.5, 0.6, 0.9]
    assert all(stored.settings == {} for stored in results)


def test_no_results(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"holds no results\.json: name a run folder"):
            find_results([path])


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"task": "toy"}', '{"metrics": {"accuracy": 1}}'])
def test_what_is_not_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json must be what distill, evaluate or baseline wrote"):
        find_results([tmp_path])


@pytest.mark.parametrize("name", ["task", "protocol"])
def test_names_must_be_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(full().result.to_dict() | {name: ["toy"]}))
    with pytest.raises(
        ValueError, match=rf"must be what distill, evaluate or baseline wrote: {name} must be str, got \['toy'\]"
    ):
        find_results([tmp_path])


@pytest.mark.parametrize("value", ["NaN", "1e999"])
def test_means_must_be_finite(value: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(written(full()).replace("[0.9]", f"[{value}]"))
    with pytest.raises(
        ValueError, match=r"must be what distill, evaluate or baseline wrote: mean and values must be finite"
    ):
        find_results([tmp_path])


# --- Settings of a run


CONFIG = """\
base: {seed: 1, save_dir: /a}
data: {path: /b, max_length: 128}
distilled_data: {lr_init: 0.1, data_per_label: 1}
train: {lr_inputs_embeds: null, inner_loop: 1, val_steps: 3, resume: true}
evaluate: {n_eval_model: 5}
tracking: none
"""


def test_settings_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(written(distilled(0.5)))
    (tmp_path / "config.yaml").write_text(CONFIG)
    (stored,) = find_results([tmp_path])
    assert stored.settings == {
        "data.max_length": 128,
        "distilled_data.lr_init": 0.1,
        "distilled_data.data_per_label": 1,
        "train.lr_inputs_embeds": None,
    }
    assert read_config(tmp_path)["tracking"] == "none"


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\t:"])
def test_what_is_not_a_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(written(distilled(0.5)))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml must be the configuration of a run"):
        find_results([tmp_path])


def swept(accuracy: float, seed: int = 1, **settings: Any) -> StoredResult:
    return distilled(accuracy, seed=seed, settings=settings)


def test_runs_of_other_settings_have_rows_of_their_own() -> None:
    """Only seeds of the same settings share a row."""
    results = [
        swept(0.5, rate=0.1, same=1),
        swept(0.6, rate=0.1, same=1, seed=2),
        swept(0.7, rate=None, same=1),
        real("random", 0.3),
        full(),
    ]
    assert varying_settings(results) == ["rate"]
    rows = report_rows(results)
    assert [(row.group.settings, row.seeds, row.accuracy.n) for row in rows] == [
        ("rate=0.1", [1, 2], 2),
        ("rate=null", [1], 1),
        (None, [1], 1),
        (None, [1], 1),
    ]
    assert [row.over_random for row in rows][:2] == [pytest.approx(0.25), pytest.approx(0.4)]


def test_settings_with_a_column_are_not_named_twice() -> None:
    key = "distilled_data.data_per_label"
    results = [distilled(0.5, per_class=n, settings={key: n}) for n in (1, 5)]
    assert varying_settings(results) == [key]
    assert [(row.group.per_class, row.group.settings) for row in report_rows(results)] == [(1, None), (5, None)]
