"""examples/quickstart.ipynb, run from top to bottom on a set of the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import toy
from textdistill.commands.distill import distill
from textdistill.config import compose

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def test_nothing_of_the_machine_that_wrote_it_is_stored() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert "distilled/ag_news-minilm-l6" in notebook.cells[1].source
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.fixture
def notebook(tiny_bert: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The notebook, where a set with such attention labels is its own."""

    def notebook(attention: str) -> Any:
        settings = toy.overrides(tiny_bert, toy_data, tmp_path, f"base.save_dir={tmp_path}/run")
        distill(compose(*settings, f"distilled_data.attention_label_type={attention}"))
        monkeypatch.setenv("TEXTDISTILL_SET", str(tmp_path / "run" / "distilled"))
        return nbformat.read(NOTEBOOK, as_version=4)

    return notebook


def check(text: dict[str, str]) -> None:
    """What the cells print."""
    assert "3 samples for toy: a, b, c" in text["load"]
    assert "1 step(s) in " in text["step"]
    assert len(text["classify"].splitlines()) == 4
    assert [line.split()[0] for line in text["nearest"].splitlines()] == ["a", "b", "c"]
    assert "(n=5) on 12 sentences held out" in text["distil"]
    assert text["own"].startswith("2 samples, ")


def test_in_a_kernel(notebook: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run = notebook("cls")
    NotebookClient(run, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    cells = {cell.id: cell for cell in run.cells if cell.cell_type == "code"}
    check(
        {
            name: "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
            for name, cell in cells.items()
        }
    )
    pictures = [output for output in cells["attention"].outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1


@pytest.mark.usefixtures("process_state")
def test_on_a_set_without_attention_labels(
    notebook: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a kernel, which takes longer to start than the cells to run."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run, text, namespace = notebook("none"), {}, {"__name__": "__main__"}
    capsys.readouterr()
    for cell in run.cells:
        if cell.cell_type == "code":
            exec(cell.source, namespace)
            text[cell.id] = capsys.readouterr().out
    check(text)
    assert text["attention"] == "This set has no attention labels.\n"
