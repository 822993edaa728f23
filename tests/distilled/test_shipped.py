"""The distilled sets that come with the project: whole, small, without a trace of a machine, of use on their model."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from transformers import pipeline

from textdistill.cli.main import main
from textdistill.distilled.dataset import DistilledDataset

FOLDER = Path(__file__).parents[2] / "examples" / "distilled"
SETS = sorted(path.name for path in FOLDER.iterdir())
# By set, what to classify, a text or a pair, and as what.
SENTENCES: dict[str, dict[str | tuple[str, str], str]] = {
    "ag_news-minilm-l6": {
        "Rebels and government forces agreed on a truce after two weeks of fighting near the border.": "World",
        "The striker scored twice in the second half and the home side won the cup.": "Sports",
        "The central bank left interest rates as they were, and shares of retailers fell.": "Business",
        "Researchers released software that finds security holes in web browsers.": "Sci/Tech",
    },
    "sst2-minilm-l6": {
        "A gripping, beautifully acted film that stays with you.": "positive",
        "A dull and lifeless mess that wastes its talented cast.": "negative",
    },
    "qnli-minilm-l6": {
        ("Who wrote the opera Aida?", "Aida is an opera in four acts written by Giuseppe Verdi."): "entailment",
        ("Who wrote the opera Aida?", "The stadium holds about 40,000 spectators."): "not_entailment",
    },
    "mrpc-minilm-l6": {
        (
            "The company said profits rose 12 percent in the third quarter.",
            "Profits rose by 12 percent in the third quarter, the company said.",
        ): "equivalent",
        (
            "The company said profits rose 12 percent in the third quarter.",
            "Police arrested two men after a robbery on Tuesday night.",
        ): "not_equivalent",
    },
}


@pytest.mark.parametrize("name", SETS)
def test_a_shipped_set_is_small_and_names_no_place(name: str) -> None:
    folder = FOLDER / name
    distilled = DistilledDataset.from_pretrained(folder)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000
    assert distilled.config.seq_length <= 128
    assert distilled.metadata.model.name == "minilm-l6"
    assert distilled.metadata.provenance["scores"]["accuracy"]["n"] >= 10
    for file in ("config.json", "README.md"):
        assert not re.search(r"(?<![\w.])(/(home|root|tmp|work|mnt|Users)/|[A-Z]:\\\\)", (folder / file).read_text())


@pytest.mark.parametrize("name", SETS)
def test_a_shipped_set_classifies_sentences_after_one_step(name: str, tmp_path: Path) -> None:
    main(["finetune", str(FOLDER / name), "--output", str(tmp_path / "model")])
    classify = pipeline("text-classification", str(tmp_path / "model"))
    for given, label in SENTENCES[name].items():
        text, pair = given if isinstance(given, tuple) else (given, None)
        assert classify([{"text": text, "text_pair": pair}])[0]["label"] == label


def test_every_shipped_set_has_sentences() -> None:
    assert set(SENTENCES) == set(SETS)


def test_the_notebook_runs_on_the_set_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(FOLDER.parent / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER.parent)}}).execute()
    classified = next(cell for cell in notebook.cells if cell.id == "classify")
    assert "Sports" in "".join(output.get("text", "") for output in classified.outputs)
