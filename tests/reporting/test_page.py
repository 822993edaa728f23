"""The HTML page: what goes into it, and that nothing in it is more than text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import toy
from textdistill.commands.distill import distill
from textdistill.commands.evaluate import baseline
from textdistill.commands.reports import report
from textdistill.config import compose
from textdistill.core.seeding import stream_seed
from textdistill.distilled.adapt import train_learner
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.inspection import own_attention
from textdistill.method.learner import Learner, ModelConfig
from textdistill.method.losses import attention_loss
from textdistill.reporting.page import Cell, PageGroup, _duration, _size, contents, page
from textdistill.reporting.rows import find_results
from textdistill.reporting.run_detail import RunDetail
from textdistill.reporting.sample_view import Limits, SampleView
from textdistill.reporting.tables import Format
from textdistill.runs.results import RunResult

SETTINGS = (
    "distilled_data.label_type=unrestricted",
    "distilled_data.attention_label_type=cls",
    "train.max_steps=4",
    "train.val_steps=2",
    "train.log_interval=1",
    "train.n_eval_model=2",
)


class Parsed(HTMLParser):
    """Counts of tags, names of attributes, the text, and the JSON blocks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.text, self.blocks, self.block = "", [], False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.block = ("type", "application/json") in attrs

    def handle_data(self, data: str) -> None:
        if self.block:
            self.blocks.append(json.loads(data))
        else:
            self.text += data
        self.block = False


@pytest.fixture(scope="module")
def runs(tiny_bert: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and baselines beside it."""
    root = tmp_path_factory.mktemp("page")

    def config(name: str) -> Any:
        return compose(*toy.overrides(tiny_bert, toy_data, root, f"base.save_dir={root}/runs/{name}", *SETTINGS))

    distill(config("distilled"), {"overrides.yaml": "- data.task_name=toy\n- 'data.path=/a b'\n"})
    baseline("random", config("random"))
    baseline("full", config("full"))
    return root / "runs"


@pytest.fixture(scope="module")
def group(runs: Path) -> PageGroup:
    (group,) = contents(find_results([runs]))
    return group


def detail_of(group: PageGroup) -> RunDetail:
    assert group.detail is not None
    return group.detail


def test_runs_and_baselines_are_compared(group: PageGroup) -> None:
    assert [row.group.method for row in group.rows] == [
        *("distilled", "random, inner loop", "full data", "majority class"),
    ]
    assert group.headline is group.rows[0]
    assert group.sweep is None
    table = group.table
    assert table.columns[:3] == ["run", "method", "samples per class"]
    assert {"validation loss", "best step", "minutes", "accuracy"} < set(table.columns)
    assert not {"seed", "F1"} & set(table.columns)
    assert [row["run"].text for row in table.rows] == ["distilled", "full", "random"]
    assert table.rows[1]["minutes"] == Cell(None, "")


def test_detail_of_a_run(group: PageGroup, runs: Path) -> None:
    detail, results = detail_of(group), json.loads((runs / "distilled" / "results.json").read_text())
    distilled = DistilledDataset.from_pretrained(runs / "distilled" / "distilled")
    assert detail.result == RunResult.from_dict(results)
    assert detail.name == "distilled"
    assert detail.labels == distilled.labels.tolist()
    assert detail.samples == ["0: a", "1: b", "2: c"]
    assert detail.bytes == sum(file.stat().st_size for file in (runs / "distilled" / "distilled").iterdir())
    assert detail.command == "textdistill distill data.task_name=toy 'data.path=/a b'"
    assert dict(detail.configuration["data"])["max_length"] == 32
    assert dict(detail.configuration["train"])["max_steps"] == 4
    assert [chart.title for chart in detail.charts] == [
        "Loss",
        "Validation",
        "Learned rate",
        "Seconds an outer step",
    ]
    assert [line.name for line in detail.charts[0].lines] == ["outer loss", "validation loss"]
    assert all(f"chosen at step {results['best_step']}" in chart.text for chart in detail.charts)
    assert list(detail.curves.values) == [0, 1, 2, 3, 4]
    losses = [values[detail.curves.metrics.index("train_loss")] for values in detail.curves.values.values()]
    assert [loss is None for loss in losses] == [True, False, False, False, False]
    assert detail.step_seconds is not None
    assert detail.step_seconds > 0


def test_attention_and_tokens(group: PageGroup, runs: Path, tiny_bert: Path) -> None:
    view = detail_of(group).view
    attention, tokens = view.attention, view.tokens
    assert attention is not None
    assert tokens is not None
    distilled = DistilledDataset.from_pretrained(runs / "distilled" / "distilled")
    learner = Learner(ModelConfig(model_name=str(tiny_bert)), ("a", "b", "c"))
    labels = distilled.attention_labels
    assert labels is not None
    fresh = learner.fresh_params(stream_seed(42, "head", "evaluation", 0))
    trained = train_learner(distilled, learner, 42, "evaluation", 0)
    both = {"before": fresh, "after": trained}
    rows = {name: own_attention(distilled, learner, params, count=3) for name, params in both.items()}
    for name, expected in {"label": labels.detach(), **{name: r.exp() for name, r in rows.items()}}.items():
        levels = torch.frombuffer(bytearray(base64.b64decode(attention.maps[name])), dtype=torch.uint8)
        found = (levels.view(expected.shape) / 255) ** 2
        torch.testing.assert_close(found, expected, atol=4e-3, rtol=0)
    for name, log_rows in rows.items():
        loss = attention_loss(log_rows, labels).item()
        assert attention.mean_divergence[name] == pytest.approx(loss, abs=1e-6)
        assert torch.tensor(attention.divergence[name]).mean().item() == pytest.approx(loss, abs=1e-3)
    row, position, *values, weight = attention.strongest[2][1][3][0]
    own = [labels[2, 1, 3], *(r[2, 1, 3].exp() for r in rows.values())]
    assert (row, position) == (0, int(own[0].argmax()))
    assert values == pytest.approx([tensor[0, position].item() for tensor in own], abs=6e-4)
    assert distilled.attention_weights is not None
    assert attention.weighted
    assert weight == pytest.approx(distilled.attention_weights[2, 1, 3, 0].item(), abs=6e-4)
    assert [len(tokens.nearest), len(tokens.nearest[0]), len(tokens.nearest[0][0])] == [3, 8, 3]
    assert (view.shown, attention.rows) == (["0: a", "1: b", "2: c"], [0])
    assert (attention.layers, attention.heads) == (2, 4)


def test_large_sets_are_cut_down(tiny_bert: Path, toy_data: Path, tmp_path: Path) -> None:
    """First to fewer samples, then to fewer rows of attention."""
    config = compose(*toy.overrides(tiny_bert, toy_data, tmp_path, f"base.save_dir={tmp_path}/run", *SETTINGS))
    config.distilled_data.attention_label_type = type(config.distilled_data.attention_label_type)("all")
    distill(config)

    def view(limits: Limits) -> SampleView:
        (group,) = contents(find_results([tmp_path]), limits)
        return detail_of(group).view

    sample = 3 * 2 * 4 * 8 * 8
    for cells, samples, rows in (
        (3 * sample, 3, range(8)), (2 * sample, 2, range(8)), (sample, 1, range(8)), (sample // 2, 1, range(0, 8, 2)),
    ):  # fmt: skip
        cut = view(Limits(map_cells=cells))
        assert cut.attention is not None
        assert (len(cut.shown), cut.attention.rows) == (samples, list(rows))
        assert sum(len(base64.b64decode(encoded)) for encoded in cut.attention.maps.values()) <= cells
    tokens = view(Limits(tokens=2 * 8 * 3)).tokens
    assert tokens is not None
    assert len(tokens.nearest) == 2


def test_runs_of_a_page_share_its_limits() -> None:
    assert Limits(map_cells=100, tokens=10).share(3) == Limits(map_cells=33, tokens=3)


def test_page_needs_nothing_from_outside(runs: Path) -> None:
    text = report([runs], Format.html)
    parsed = Parsed(text)
    assert len(text) < 500_000
    assert not {"src", "srcset", "action", "poster"} & parsed.attributes
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    for shown in (
        "full data",
        "random, inner loop",
        "Learning curves",
        "Nearest vocabulary tokens",
        "do not translate",
    ):
        assert shown in parsed.text
    assert parsed.tags["main"] == parsed.tags["h1"] == 1


def test_without_the_model(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moved = Path(shutil.copytree(runs, tmp_path / "runs"))
    distilled = DistilledDataset.from_pretrained(moved / "distilled" / "distilled")
    distilled.metadata = replace(
        distilled.metadata, model=replace(distilled.metadata.model, name=str(tmp_path / "none"))
    )
    distilled.save_pretrained(moved / "distilled" / "distilled")
    (group,) = contents(find_results([moved]))
    view = detail_of(group).view
    assert view.attention is not None
    assert (view.learner, view.tokens, list(view.attention.maps)) == (False, None, ["label"])
    assert "cannot be loaded" in caplog.text
    assert "could not be loaded when this page was made" in Parsed(report([moved], Format.html)).text


def test_less_than_a_run_folder(runs: Path, tmp_path: Path) -> None:
    """Results alone, a run without curves and configuration, a set without attention labels."""
    for name in ("distilled", "full"):
        (tmp_path / f"{name}.json").write_text((runs / name / "results.json").read_text())
    files = sorted(tmp_path.glob("*.json"))
    (group,) = contents(find_results(files))
    assert group.headline is not None
    assert (group.detail, group.headline.group.method) == (None, "distilled")
    assert [row["run"].text for row in group.table.rows] == ["distilled.json", "full.json"]
    assert "None of these results lies in a run folder" in " ".join(Parsed(report(files, Format.html)).text.split())
    (group,) = contents(find_results(files[1:]))
    assert group.headline is None
    assert "full data" in report(files[1:], Format.html)

    bare = Path(shutil.copytree(runs / "distilled", tmp_path / "bare"))
    for name in ("metrics.jsonl", "config.yaml", ".hydra/overrides.yaml"):
        (bare / name).unlink()
    results = json.loads((bare / "results.json").read_text())
    del results["peak_memory_bytes"]
    (bare / "results.json").write_text(json.dumps(results))
    distilled = DistilledDataset.from_pretrained(bare / "distilled")
    distilled.config.attention_label_type = type(distilled.config.attention_label_type)("none")
    del distilled.raw["attention_labels"]
    distilled.save_pretrained(bare / "distilled")
    text = Parsed(report([bare], Format.html)).text
    assert "This set has no attention labels." in text
    assert "No command line was recorded" in text
    assert "Learning curves" not in text
    assert "Nearest vocabulary tokens" in text


def test_run_with_the_lowest_validation_loss_is_described(runs: Path, tmp_path: Path) -> None:
    for name, loss, rate, lr in (("x", 0.9, 0.1, 1.0), ("y", 0.2, 0.1, 2.0), ("z", 0.5, 0.3, 1.0)):
        run = Path(shutil.copytree(runs / "distilled", tmp_path / name))
        results = json.loads((run / "results.json").read_text())
        results["validation"]["loss"] = loss
        (run / "results.json").write_text(json.dumps(results))
        config = (run / "config.yaml").read_text()
        config = config.replace("lr_inputs_embeds: null", f"lr_inputs_embeds: {rate}")
        (run / "config.yaml").write_text(config.replace("lr_init: 0.1", f"lr_init: {lr}"))
    (group,) = contents(find_results([tmp_path]))
    assert detail_of(group).name == "y"
    assert group.headline is not None
    assert group.headline.group.settings == "distilled_data.lr_init=2.0, train.lr_inputs_embeds=0.1"
    assert len(group.rows) == 4
    sweep = group.sweep
    assert sweep is not None
    assert sweep.keys == ["distilled_data.lr_init", "train.lr_inputs_embeds"]
    assert sweep.metrics[:2] == ["validation accuracy", "validation macro_f1"]
    losses = [(run.settings["train.lr_inputs_embeds"], run.metrics["validation loss"]) for run in sweep.runs]
    assert losses == [("0.1", 0.9), ("0.1", 0.2), ("0.3", 0.5)]
    rows = {row["run"].text: row for row in group.table.rows}
    assert rows["z"]["train.lr_inputs_embeds"] == Cell(0.3, "0.3")


def test_each_task_has_its_part(runs: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs, tmp_path / "other"))
    for file in other.rglob("results.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"task": "other", "protocol": "paper"}))
    results = find_results([runs, other])
    assert [(group.scope.task, len(group.rows)) for group in contents(results)] == [("other", 4), ("toy", 4)]
    parsed = Parsed(page(results))
    assert parsed.tags["article"] == 2
    assert parsed.tags["h1"] == 1
    assert parsed.text.count("the set was chosen on the test rows") == 1


def test_markup_in_files_stays_text(tiny_bert: Path, toy_data: Path, tmp_path: Path) -> None:
    def config(*more: str) -> Any:
        return toy.hostile_config(tiny_bert, toy_data, tmp_path, *SETTINGS, *more)

    distill(config(), {"overrides.yaml": f"- {json.dumps('x=' + toy.HACK)}\n"})
    text = report([tmp_path / "runs"], Format.html)
    parsed = Parsed(text)
    assert not [name for name in parsed.attributes if name.startswith("on")]
    assert parsed.tags["img"] == parsed.tags["i"] == parsed.tags["b"] == 0
    assert parsed.tags["script"] == 2
    for shown in (toy.HOSTILE_TASK, *toy.HOSTILE_CLASSES.values(), f"x={toy.HACK}"):
        assert shown in parsed.text
    (inside,) = parsed.blocks
    tokens = {token for sample in inside["tokens"]["nearest"] for near in sample for token, _ in near}
    assert any(token.startswith(toy.HACK) for token in tokens)
    assert report([tmp_path / "runs"], Format.markdown).count("<script>") == 0
    rows = list(csv.DictReader(io.StringIO(report([tmp_path / "runs"], Format.csv))))
    assert rows[0]["task"] == toy.HOSTILE_TASK


def test_policy_lets_only_the_pages_script_run(runs: Path) -> None:
    text = report([runs], Format.html)
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (_size, 12, "12 bytes"), (_size, 999.7, "1 kB"), (_size, 464_000, "464 kB"), (_size, 1.5e9, "1.5 GB"),
        (_duration, 0.25, "0.25 s"), (_duration, 119, "119 s"), (_duration, 2156, "35.9 min"),
        (_duration, 9000, "2.5 h"),
    ],
)  # fmt: skip
def test_sizes_and_times(show: Callable[[float], str], value: float, text: str) -> None:
    assert show(value) == text
