"""The verb ``predict``: texts from arguments, files and standard input; tables, lines and files."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import toy
from tests.support.words import toy_rows
from textdistill.cli import predict as verb
from textdistill.cli.main import main
from textdistill.commands.distill import distill
from textdistill.commands.predict import predict
from textdistill.config import compose

pytestmark = pytest.mark.usefixtures("process_state")
TEXTS = [text for text, _ in toy_rows(2, seed=9)]


@pytest.fixture(scope="module")
def distilled_dir(tiny_bert: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    distill(compose(*toy.overrides(tiny_bert, toy_data, root, f"base.save_dir={root}/run")))
    return root / "run" / "distilled"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_texts_on_the_command_line(distilled_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", str(distilled_dir), *TEXTS, "--seed", "3"])
    rows = [
        {"text": text} | row for text, row in zip(TEXTS, predict(distilled_dir, TEXTS, seed=3).to_rows(), strict=True)
    ]
    assert lines(capsys) == rows


@pytest.mark.parametrize("arguments", [["-"], ["--input", "-"]])
def test_texts_on_standard_input(
    arguments: list[str], distilled_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\r\n".join(TEXTS)))
    main(["predict", str(distilled_dir), *arguments])
    assert [row["prediction"] for row in lines(capsys)] == predict(distilled_dir, TEXTS).labels


def test_file_to_file(distilled_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "body"), *enumerate(TEXTS)])
    Path("ids.csv").write_text("id,code\n1,2\n3,4\n")
    main(["predict", str(distilled_dir), "--input", "in.csv", "--text", "body", "--output", "out.csv"])
    assert capsys.readouterr().out == f"predictions: out.csv ({len(TEXTS)} rows)\n"
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == predict(distilled_dir, TEXTS).labels
    assert "--text must name the column of the texts of ids.csv, because no choice is clear" in refused(
        str(distilled_dir), "--input", "ids.csv", capsys=capsys
    )
    assert "--input must be a file, but there is nothing at no.csv" in refused(
        str(distilled_dir), "--input", "no.csv", capsys=capsys
    )


def test_table_on_a_terminal(
    distilled_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "SHOWN_ROWS", 4)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "100", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    main(["predict", str(distilled_dir), *TEXTS])
    *table, last = capsys.readouterr().out.splitlines()
    assert last == "4 of 6 rows; --output FILE writes all"
    labels = predict(distilled_dir, TEXTS).labels
    for text, label in zip(TEXTS[:4], labels, strict=False):
        assert any(text in line and f" {label} " in line for line in table)
    assert not any(TEXTS[4] in line for line in table)


def test_reader_that_has_enough_is_no_error(distilled_dir: Path, tmp_path: Path) -> None:
    """More lines than a pipe holds."""
    (tmp_path / "in.csv").write_text("text\n" + "cat dog\n" * 2000)
    command = f"{sys.executable} -m textdistill predict {distilled_dir} --input {tmp_path}/in.csv | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == "cat dog"
    assert "rror" not in done.stderr.replace("LOAD REPORT", "")


def test_what_is_refused(distilled_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(distilled_dir)
    assert "give TEXT arguments or --input FILE, not both" in refused(source, capsys=capsys)
    assert "give TEXT arguments or --input FILE, not both" in refused(source, "cat", "--input", "x.csv", capsys=capsys)
    assert "--output must end in one of .csv, .jsonl" in refused(source, "cat", "--output", "out", capsys=capsys)
    assert "--text must be left out without --input" in refused(source, "cat", "--text", "a", capsys=capsys)
    assert "texts must not be empty" in refused(source, "cat", " ", capsys=capsys)
