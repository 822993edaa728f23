"""Tables of results: what is averaged, what stands beside what, and what is left out."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from textdistill.reporting.rows import comma_separated, find_results, latex, markdown, read_config, summarise, varying

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
    copy = "sweep/mlartifacts/1/0123/artifacts"
    runs = {"sweep/0": distilled(0.5), "sweep/1": distilled(0.6), "full": FULL, copy: distilled(0.5)}
    for name, results in runs.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    found = find_results([tmp_path / "sweep", tmp_path / "full" / "results.json", tmp_path / "sweep" / "1"])
    assert list(found) == [tmp_path / name / "results.json" for name in ("sweep/0", "sweep/1", "full")]
    assert [results["metrics"]["accuracy"]["mean"] for results in found.values()] == [0.5, 0.6, 0.9]
    assert all(results["settings"] == {} for results in found.values())


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
    (tmp_path / "results.json").write_text(json.dumps(FULL | {name: ["toy"]}))
    with pytest.raises(ValueError, match=rf"must be what distill, evaluate or baseline wrote, got .*{name} \['toy'\]"):
        find_results([tmp_path])


@pytest.mark.parametrize("value", ["NaN", "1e999"])
def test_means_must_be_finite(value: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(FULL).replace("[0.9]", f"[{value}]"))
    with pytest.raises(ValueError, match=r"must be what distill, evaluate or baseline wrote, got .*a mean of"):
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
    (tmp_path / "results.json").write_text(json.dumps(distilled(0.5)))
    (tmp_path / "config.yaml").write_text(CONFIG)
    (results,) = find_results([tmp_path]).values()
    assert results["settings"] == {
        "data.max_length": 128,
        "distilled_data.lr_init": 0.1,
        "distilled_data.data_per_label": 1,
        "train.lr_inputs_embeds": None,
    }
    assert read_config(tmp_path)["tracking"] == "none"


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\t:"])
def test_what_is_not_a_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(distilled(0.5)))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml must be the configuration of a run"):
        find_results([tmp_path])


def swept(accuracy: float, seed: int = 1, **settings: Any) -> Results:
    return distilled(accuracy, seed=seed, settings=settings)


def test_runs_of_other_settings_have_lines_of_their_own() -> None:
    """Only of the same do seeds share one."""
    found = [
        swept(0.5, rate=0.1, same=1),
        swept(0.6, rate=0.1, same=1, seed=2),
        swept(0.7, rate=None, same=1),
        real("random", 0.3),
        FULL,
    ]
    assert varying(found) == ["rate"]
    assert [(line["settings"], line["seeds"], line["learners"]) for line in summarise(found)] == [
        ("rate=0.1", [1, 2], 2),
        ("rate=null", [1], 1),
        (None, [1], 1),
        (None, [1], 1),
    ]
    assert [line["over_random"] for line in summarise(found)][:2] == [pytest.approx(0.25), pytest.approx(0.4)]


def test_settings_with_a_column_are_not_named_twice() -> None:
    key = "distilled_data.data_per_label"
    found = [distilled(0.5, per_class=n, settings={key: n}) for n in (1, 5)]
    assert varying(found) == [key]
    assert [(line["per_class"], line["settings"]) for line in summarise(found)] == [(1, None), (5, None)]


# --- Other tables


def test_csv_has_every_number_in_full() -> None:
    found = [distilled(0.81, 0.83), real("random", 0.5), FULL | {"task": 'a,"b"\nc'}]
    rows = list(csv.DictReader(io.StringIO(comma_separated(summarise(found)))))
    assert [row["task"] for row in rows] == ['a,"b"\nc', "toy", "toy"]
    assert [row["method"] for row in rows] == ["full data", "distilled", "random, inner loop"]
    assert float(rows[1]["accuracy_std"]) == pytest.approx(0.0141421356)
    assert float(rows[1]["over_random"]) == pytest.approx(0.32)
    assert (rows[1]["seeds"], rows[1]["learners"], rows[1]["minutes"], rows[1]["of_full"]) == ("1", "2", "1.5", "")
    assert (rows[0]["positions"], rows[0]["accuracy_std"]) == ("", "")


def test_latex() -> None:
    found = [distilled(0.81, 0.83), FULL]
    assert (
        latex(summarise([results | {"task": "a_b & {c}"} for results in found]))
        == r"""\begin{table}
\caption{a\_b \& \{c\}, tiny, protocol clean: 100 rows of test.}
\begin{tabular}{lrrllrrrrrr}
\toprule
method & samples per class & steps & labels & attention labels & positions & accuracy & of full data & learners & outer steps & minutes \\
\midrule
distilled & 1 & 1 & soft & cls & 8 & 0.8200 $\pm$ 0.0141 & 91.1\% & 2 & 10 & 1.5 \\
full data &  &  &  &  &  & 0.9000 & 100.0\% & 1 &  &  \\
\bottomrule
\end{tabular}
\end{table}
"""  # noqa: E501
    )


def test_markdown_keeps_text_in_its_cell() -> None:
    table = markdown(summarise([distilled(0.5) | {"task": "<b>|`a`\n# x", "made_for": "[x](y)|"}]))
    heading, *_, row = table.splitlines()
    assert heading == r"### &lt;b>\|\`a\` # x, tiny, protocol clean"
    assert row.startswith(r"| distilled for \[x\](y)\| | 1 | 1 |")
