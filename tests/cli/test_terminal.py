"""What the verbs print on a terminal and elsewhere, the commands they name, and errors with and without tracebacks."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shlex
import termios
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import pytest

from tests.support import toy
from tests.support.forkserver import FRESH
from textdistill.arguments import to_options
from textdistill.cli.main import main
from textdistill.cli.terminal import print_next, print_results, print_set, print_trials, print_verified
from textdistill.commands.evaluate import Spread, Verification, VerifiedMetric
from textdistill.commands.sets import SetSummary
from textdistill.commands.tune import StudyResult, TrialResult
from textdistill.distilled.inspection import LabelPeak, NearToken
from textdistill.distilled.spec import DistilledDataConfig, LearnerTrainConfig, ModelMetadata, SetMetadata
from textdistill.runs.results import ClassScores, MajorityClass, ModelId, RunResult, Score, SplitSize, TrainingSummary
from textdistill.training.config import SelectBy
from textdistill.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("process_state")

# Tables are drawn with these, and nothing else is.
FRAME = set("┏┃━│└─")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output counts as a terminal of 200 columns."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without the codes for colours and bold type."""
    return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)


@pytest.fixture
def settings(tiny_bert: Path, toy_data: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def settings(*more: str) -> list[str]:
        return toy.overrides(tiny_bert, toy_data, tmp_path / "save", f"base.save_dir={tmp_path}/run", *more)

    return settings


def results(**other: Any) -> RunResult:
    result = RunResult(
        task="toy",
        model=ModelId("tiny", None),
        protocol="clean",
        splits={"test": SplitSize("test", 60)},
        seed=42,
        metrics={"loss": Score.of([0.5]), "accuracy": Score(0.875, 0.0625, 2, [0.8125, 0.9375])},
        versions={},
    )
    return replace(result, **other)


def summary(**other: Any) -> SetSummary:
    """A set of one sample."""
    whole = SetSummary(
        metadata=SetMetadata("toy", ("no", "yes"), ModelMetadata("tiny", "abc", 16, 2, 4, ())),
        config=DistilledDataConfig(),
        inner_config=LearnerTrainConfig(),
        shapes={"labels": (1, 2), "lr": (1,)},
        bytes={"labels": 2048, "lr": 4},
        labels=[[0.25, 0.75]],
        lr=[0.1],
        lr_scales=None,
        attention=[[LabelPeak(1, 2, 0, 5, 0.5, 1.0)]],
        tokens=[[[NearToken("[MASK]", 0.5)], [NearToken("cat", 0.25)]]],
    )
    return replace(whole, **other)


# --- Tables and lines


def test_results_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "distilled").mkdir()
    print_results(results(training=TrainingSummary(50, 3661.4, best_step=40)), tmp_path)
    assert printed(capsys).splitlines() == [
        "toy, tiny, protocol clean, 60 rows (test), seed 42",
        "  loss       0.5000 (n=1 learners)",
        "  accuracy   0.8750 ± 0.0625 (n=2 learners)",
        "trained: 50 outer steps in 1:01:01, the best after 40",
        f"results: {tmp_path}/results.json",
        f"distilled set: {tmp_path}/distilled",
    ]


def test_results_in_a_table(terminal: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_results(results(), tmp_path)
    first, *table, last = printed(capsys).splitlines()
    assert first == "toy, tiny, protocol clean, 60 rows (test), seed 42"
    assert last == f"results: {tmp_path}/results.json"
    cells = [[cell.strip() for cell in line.strip("┃│").split("┃" if "┃" in line else "│")] for line in table]
    assert cells[1] == ["metric", "mean", "±", "least", "greatest", "learners"]
    assert cells[3:5] == [
        ["loss", "0.5000", "", "0.5000", "0.5000", "1"],
        ["accuracy", "0.8750", "± 0.0625", "0.8125", "0.9375", "2"],
    ]
    assert set("".join(table)) & FRAME


def test_results_stand_beside_the_majority_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    majority = MajorityClass(0, 0.6, {"loss": 0.7, "accuracy": 0.6, "balanced_accuracy": 0.5})
    metrics = {"accuracy": Score.of([0.9, 0.7]), "balanced_accuracy": Score.of([0.625]), "loss": Score.of([0.5])}
    beside = results(metrics=metrics, classes=ClassScores(["no", "yes"], [[30, 6], [12, 12]], majority))
    print_results(beside, tmp_path)
    assert printed(capsys).splitlines()[1:4] == [
        "  accuracy          0.8000 ± 0.1414 (n=2 learners); majority class 0.6000",
        "  balanced_accuracy 0.6250 (n=1 learners); majority class 0.5000",
        "  loss              0.5000 (n=1 learners); majority class 0.7000",
    ]
    request.getfixturevalue("terminal")
    print_results(beside, tmp_path)
    assert "│ 0.6000 │" in " ".join(printed(capsys).split())


def test_rates_of_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    scales = [{"body": 1.0, "head": 2.0, "x\x1b": 0.5}, {"body": 0.25, "head": 2.0, "x\x1b": 2.5}]
    print_set(summary(lr=[0.1, 0.2], lr_scales=scales))
    expected = "learning rates: 0.1, from 0.05 (x\ufffd) to 0.2 (head), 0.2, from 0.05 (body) to 0.5 (x\ufffd)"
    assert expected in printed(capsys).splitlines()


@pytest.mark.parametrize("lines", [True, False])
def test_a_set_of_many_classes_is_cut_with_a_count(
    lines: bool, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    if not lines:
        request.getfixturevalue("terminal")
    names, model = tuple(f"c{number}" for number in range(150)), ModelMetadata("tiny", "abc", 16, 2, 4, ())
    labels = [[float(row == column) + column / 1000 for column in range(150)] for row in range(150)]
    print_set(summary(metadata=SetMetadata("toy", names, model), labels=labels, attention=None, tokens=None))
    text = printed(capsys)
    assert "c19 1.019, c149 0.149, c148 0.148" in text
    assert "c143 0.143, 142 smaller" in text
    assert "c20 1.020" not in text
    assert text.splitlines()[-1] == "130 more samples are not shown; textdistill.show in Python returns all"


def test_set_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_set(summary())
    assert printed(capsys).splitlines() == [
        "toy, made for tiny (abc)",
        "  labels             (1, 2)                          2.0 KiB",
        "  lr                 (1,)                            0.0 KiB",
        "learning rates: 0.1",
        "",
        "sample 0",
        "  labels: no 0.250, yes 0.750",
        "  attention: layer 1 head 2 row 0 -> key 5 0.500, weight 1",
        "  nearest tokens: [MASK] cat",
    ]


def test_set_in_tables(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    print_set(summary())
    out = printed(capsys)
    assert "┃ tensor ┃ shape  ┃ KiB ┃" in out
    assert "│      0 │ no 0.250, yes 0.750 │ layer 1 head 2 row 0 -> key 5 0.500, weight 1 │ [MASK] cat     │" in out


def test_set_without_attention_or_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    print_set(summary(attention=None, tokens=None))
    assert printed(capsys).endswith("sample 0\n  labels: no 0.250, yes 0.750\n")


@pytest.mark.parametrize("shown", ["lines", "tables"])
def test_names_do_not_reach_the_terminal_as_commands(
    shown: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A card may come from a stranger: no escapes, no new lines, no markup, no change of direction."""
    if shown == "tables":
        request.getfixturevalue("terminal")
    bad = "[red]x\x1b[2J\x07\n\u202e[/red]"
    metadata = SetMetadata(bad, (bad, "yes"), ModelMetadata(bad, None, 16, 2, 4, ()))
    print_set(summary(metadata=metadata, tokens=[[[NearToken(bad, 0.5)]]]))
    print_results(results(task=bad, model=ModelId(bad, None)), tmp_path)
    out = printed(capsys)
    assert not {"\x1b", "\x07", "\u202e"} & set(out)
    assert out.count("[red]x�[2J���[/red]") == 6


def test_trials(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    trials = [
        TrialResult(0, "complete", [], 0.5),
        TrialResult(1, "fail", ["train.epoch=2"], None),
    ]
    study = StudyResult("rates", trials, trials[0], [], results(), Path("run"), SelectBy.loss)
    print_trials(study)
    assert printed(capsys).splitlines() == [
        "trial   0 complete 0.5000   the defaults",
        "trial   1 fail              train.epoch=2",
        "best: trial 0",
    ]
    request.getfixturevalue("terminal")
    print_trials(study)
    out = printed(capsys)
    assert "│     0 │ complete │          0.5000 │ the defaults  │" in out
    assert out.endswith("best: trial 0\n")


def test_verified(capsys: pytest.CaptureFixture[str]) -> None:
    metric = VerifiedMetric(Spread(0.5, 0.125, 2), Spread(0.25, 0.125, 2), within=False)
    print_verified(Verification({"accuracy": metric}, same_data=False, same_model=True, anomalies=[]))
    assert printed(capsys).splitlines() == [
        "note: the data measured with differ from what the card names",
        "  accuracy   stated   0.5000 ± 0.1250 (n=2 learners)",
        "             measured 0.2500 ± 0.1250 (n=2 learners): outside",
        "unusual: nothing",
    ]


def test_commands_are_not_broken_into_lines(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are, however narrow the terminal, they go into a shell."""
    command = ["textdistill", "finetune", f"{'long/' * 40}a folder's", "--output", "x"]
    print_next({"an ordinary model": command})
    first, purpose, line = printed(capsys).splitlines()
    assert (first, purpose) == ("next:", "  an ordinary model:")
    assert shlex.split(line) == command


def run_on(terminal: Any, arguments: list[str]) -> None:
    """What a process does whose streams are a terminal."""
    number = terminal.detach()
    for stream in range(3):
        os.dup2(number, stream)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        os.environ.pop(name, None)
    os.environ["TERM"] = "xterm"
    main(arguments)


def test_a_real_terminal(settings: Callable[..., list[str]], tmp_path: Path) -> None:
    """Tables and progress there; in pipes (test_cli) neither."""
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (50, 100))
    process = FRESH.Process(target=run_on, args=(DupFd(there), ["baseline", "k-centers", *settings()]))
    process.start()
    os.close(there)
    pieces = []
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while piece := os.read(here, 4096):
            pieces.append(piece)
    os.close(here)
    out = b"".join(pieces).decode()
    process.join()
    assert process.exitcode == 0, out
    for progress in ("tokenise: ", "features: ", "real samples, lr 0.01: ", "evaluate k-centers: "):
        assert progress in out
    assert set(out) >= FRAME
    assert f"results: {tmp_path}/run/results.json\r\n" in out


# --- What comes next


def named(out: str) -> list[list[str]]:
    """The commands that an output ends with."""
    *_, after = out.rpartition("next:\n")
    return [shlex.split(line) for line in after.splitlines() if line.startswith("    ")]


def test_commands_that_a_run_names(
    settings: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of them runs as it is printed, and the page shows all of their results."""
    main(["distill", *settings("distilled_data.data_per_label=2", "train.resume=true")])
    next_steps = named(capsys.readouterr().out)
    run = tmp_path / "run"
    given = [override for override in settings("distilled_data.data_per_label=2") if "save_dir=" not in override]
    assert next_steps == [
        ["textdistill", "show", f"{run}/distilled"],
        ["textdistill", "predict", f"{run}/distilled", "A text of your own."],
        ["textdistill", "finetune", f"{run}/distilled", "--output", f"{run}/model"],
        ["textdistill", "baseline", "random", *given, "--output", f"{run}/baseline_random"],
        ["textdistill", "report", str(run), "--output", f"{run}/report.html"],
    ]
    for _, *arguments in next_steps:
        main(arguments)
        out = capsys.readouterr().out
        if arguments[0] == "finetune":
            ((_, *again),) = named(out)
            assert again == ["predict", f"{run}/model", "A text of your own."]
            main(again)
            assert '"prediction": ' in capsys.readouterr().out
        elif arguments[0] == "show":
            assert named(out) == [["textdistill", "finetune", f"{run}/distilled", "--output", "model"]]
    page = (run / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "random, inner loop" in page
    main(["resume", str(run)])
    next_steps[2][-1] = f"{run}/model_2"  # the first one is there
    next_steps[3] = ["textdistill", "baseline", "random", *to_options(given), "--output", f"{run}/baseline_random"]
    assert named(capsys.readouterr().out) == next_steps


def test_commands_after_a_baseline_and_an_evaluation(
    settings: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The experiment's folder where the results are in it, else their own."""
    inside = [override for override in settings() if not override.startswith("base.save_dir=")]
    for arguments, folder in ((settings(), "run"), (inside, "save/toy.tiny-bert")):
        main(["baseline", "random", *arguments])
        (command,) = named(capsys.readouterr().out)
        assert command == ["textdistill", "report", str(tmp_path / folder)]
        main(command[1:])
        assert "| random, inner loop |" in capsys.readouterr().out
    main(["distill", *settings(f"base.save_dir={tmp_path}/other")])
    distilled = f"{tmp_path}/other/distilled"
    main(["evaluate", distilled, *settings()])
    assert named(capsys.readouterr().out) == [["textdistill", "finetune", distilled, "--output", "model"]]


def test_run_that_python_started_names_no_overrides(
    settings: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from textdistill.commands.distill import distill
    from textdistill.config import compose

    distill(compose(*settings()))
    main(["resume", f"{tmp_path}/run"])
    assert [command[1] for command in named(capsys.readouterr().out)] == ["show", "predict", "finetune", "report"]


# --- Errors


def fail(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    return exit_info.value.code, capsys.readouterr().err


@pytest.mark.parametrize("verb", ["distill", "baseline"])
def test_debug_adds_the_traceback(
    verb: str, settings: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*([verb] if verb == "distill" else [verb, "random"]), *settings("train.epoch=0")]
    message = "textdistill: error: train.epoch must be at least 1, got 0"
    for debug in (False, True):
        code, err = fail([*arguments, *(["--debug"] if debug else [])], capsys)
        assert code == 2
        assert err.splitlines()[-1] == message
        assert ("Traceback" in err) == debug
        assert ("ValueError: train.epoch must be at least 1, got 0" in err) == debug


def broken(*_: Any) -> None:
    raise RuntimeError("no\nidea")


@pytest.mark.parametrize("debug", [False, True])
def test_error_that_no_one_foresaw(
    debug: bool,
    settings: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line on the terminal; where it came from is not lost."""
    monkeypatch.setattr(Trainer, "train", broken)
    code, err = fail(["distill", *settings(), *(["--debug"] if debug else [])], capsys)
    assert code == 1
    expected = "textdistill: error: unexpected RuntimeError: no idea (--debug shows where; in a run, run.log too)"
    assert err.splitlines()[-1] == expected
    assert ("Traceback" in err) == debug
    log = (tmp_path / "run" / "run.log").read_text()
    assert "[ERROR] the run ended\nTraceback (most recent call last):" in log
    assert log.rstrip().endswith("RuntimeError: no\nidea")


def test_job_with_an_error_that_no_one_foresaw(
    settings: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ends its own job and no other."""
    train, calls = Trainer.train, []

    def once(*arguments: Any) -> Any:
        calls.append(arguments)
        return broken() if len(calls) == 1 else train(*arguments)

    monkeypatch.setattr(Trainer, "train", once)
    code, err = fail(["distill", *settings("train.max_steps=1", "distilled_data.lr_init=0.1,0.2"), "-m"], capsys)
    assert code == 1
    assert "textdistill: error: job 0 failed: unexpected RuntimeError: no idea" in err
    assert "Traceback" not in err
    assert len(list(tmp_path.glob("save/**/results.json"))) == 1
