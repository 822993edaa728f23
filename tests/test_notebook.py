"""examples/quickstart.ipynb, run from top to bottom on a set of the tiny model."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import toy
from textdistill.commands import distill
from textdistill.config import compose

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def test_nothing_of_the_machine_that_wrote_it_is_stored() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert "distilled/ag_news-minilm-l6" in notebook.cells[1].source
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("attention", ["cls", "none"])
def test_notebook(
    tiny_bert: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    settings = toy.overrides(tiny_bert, toy_data, tmp_path, f"base.save_dir={tmp_path}/run")
    distill(compose(*settings, f"distilled_data.attention_label_type={attention}"))
    monkeypatch.setenv("TEXTDISTILL_SET", str(tmp_path / "run" / "distilled"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    text = {
        name: "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        for name, cell in cells.items()
    }
    assert "3 samples for toy: a, b, c" in text["load"]
    assert "1 step(s) in " in text["step"]
    assert len(text["classify"].splitlines()) == 4
    pictures = [output for output in cells["attention"].outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == (attention == "cls")
    assert ("no attention labels" in text["attention"]) == (attention == "none")
    assert [line.split()[0] for line in text["nearest"].splitlines()] == ["a", "b", "c"]
    assert "(n=5) on 12 sentences held out" in text["distil"]
    assert text["own"].startswith("2 samples, ")
