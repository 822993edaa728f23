"""examples/attention_lambda.py: a curve of scores for each kind of weights."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PUBLISHED = EXAMPLES.parent / "docs" / "results" / "grid" / "sst2_unrestricted_cls" / "42" / "results.json"


def test_a_curve_of_each_kind_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = json.loads(PUBLISHED.read_text())
    for weight, factor in [("learned", 2.0), ("learned", 0.5), ("equal", 1.0)]:
        results["distilled_data"] |= {"attention_label_weight": weight, "attention_loss_lambda": factor}
        results["metrics"]["accuracy"]["mean"] = factor / 4
        run_dir = tmp_path / f"{weight}_{factor}"
        run_dir.mkdir()
        (run_dir / "results.json").write_text(json.dumps(results))
    figures = []
    monkeypatch.setattr(
        plt, "subplots", lambda subplots=plt.subplots, **given: figures.append(subplots(**given)) or figures[0]
    )
    runpy.run_path(str(EXAMPLES / "attention_lambda.py"))["main"](
        [str(tmp_path), "--output", str(tmp_path / "lambda.png")]
    )
    assert (tmp_path / "lambda.png").read_bytes().startswith(b"\x89PNG")
    curves = {bars.get_label(): bars.lines[0] for bars in figures[0][1].containers}
    assert list(curves) == ["weights of rows: equal", "weights of rows: learned"]
    assert curves["weights of rows: learned"].get_xydata().tolist() == [[0.5, 0.125], [2.0, 0.5]]
