"""Printing for the verbs: tables on a terminal, plain lines elsewhere, and commands to run next.

A name may come from a stranger's set, so control characters are replaced before they reach the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from textdistill.cli.process import rank
from textdistill.overrides import shell_line
from textdistill.runs.folder import RunFolder
from textdistill.runs.results import RunResult, Score

if TYPE_CHECKING:
    from textdistill.commands.evaluate import Spread, Verification
    from textdistill.commands.sets import SetSummary
    from textdistill.commands.tune import StudyResult

# The most samples that are printed of a set, and the most labels that are printed of a sample.
SAMPLES, LABELS = 20, 8


def print_results(result: RunResult, folder: Path) -> None:
    """Prints the scores of a run or baseline beside the majority class, how long it trained, and where its files are.

    Args:
        result: of the run or baseline.
        folder: its run folder; a distilled set in it is named too.

    """
    test, run_folder = result.splits["test"], RunFolder(folder)
    about = f"{result.task}, {result.model.name}, protocol {result.protocol}"
    print(_plain(f"{about}, {test.rows} rows ({test.source}), seed {result.seed}"))
    majority = {} if result.classes is None else result.classes.majority.metrics
    if on_terminal():
        headings = ["mean", "±", "least", "greatest", "learners", *(["majority class"] if majority else [])]
        cells = [
            [name, f"{s.mean:.4f}", _deviation(s.std), f"{min(s.values):.4f}", f"{max(s.values):.4f}", str(s.n)]
            + ([f"{majority[name]:.4f}"] if majority else [])
            for name, s in result.metrics.items()
        ]
        _print_table(["metric", *map(_number, headings)], cells)
    else:
        width = _width(result.metrics)
        for name, score in result.metrics.items():
            print(f"  {name:{width}} {_spread(score)}" + (f"; majority class {majority[name]:.4f}" if majority else ""))
    if result.training is not None and result.training.best_step is not None:
        took = timedelta(seconds=round(result.training.training_seconds))
        steps = result.training.outer_steps
        print(f"trained: {steps} outer steps in {took}, the best after {result.training.best_step}")
    print(f"results: {run_folder.results}")
    if run_folder.distilled.exists():
        print(f"distilled set: {run_folder.distilled}")


def print_run(result: RunResult, folder: Path, steps: Mapping[str, Sequence[str]]) -> None:
    """Prints a result and useful next commands, by purpose; only process 0 prints."""
    if rank() > 0:
        return
    print_results(result, folder)
    if steps:
        print_next(steps)


def print_set(summary: SetSummary) -> None:
    """Prints the contents of a distilled set."""
    model = summary.metadata.model
    print(_plain(f"{summary.metadata.task}, made for {model.name} ({model.revision})"))
    tensors = [(name, str(shape), f"{summary.bytes[name] / 1024:.1f}") for name, shape in summary.shapes.items()]
    scales: Sequence[dict[str, float] | None] = summary.lr_scales or [None] * len(summary.lr)
    rates = "learning rates: " + ", ".join(map(_rate, summary.lr, scales))
    samples = [_sample(summary, index) for index in range(min(SAMPLES, len(summary.labels)))]
    rest = len(summary.labels) - len(samples)
    more = f"{rest} more samples are not shown; textdistill.show in Python returns all"
    if on_terminal():
        _print_table(["tensor", "shape", _number("KiB")], tensors)
        print(rates)
        cells = ([str(index), *map("\n".join, sample.values())] for index, sample in enumerate(samples))
        _print_table([_number("sample"), *samples[0]], cells)
        if rest:
            print(more)
        return
    for name, shape, size in tensors:
        print(f"  {name:18} {shape:24} {size:>10} KiB")
    print(rates)
    for index, sample in enumerate(samples):
        print(f"\nsample {index}")
        for heading, lines in sample.items():
            for line in lines:
                print(f"  {heading}: {line}")
    if rest:
        print(f"\n{more}")


def print_verified(verification: Verification) -> None:
    """Prints stated and measured scores of a set, and what looks unusual in it."""
    for thing, same in (("data", verification.same_data), ("model", verification.same_model)):
        if not same:
            print(f"note: the {thing} measured with differ from what the card names")
    width = _width(verification.metrics)
    for name, metric in verification.metrics.items():
        print(f"  {name:{width}} stated   {_spread(metric.stated)}")
        print(f"  {'':{width}} measured {_spread(metric.measured)}: {'within' if metric.within else 'outside'}")
    for line in verification.anomalies or ["nothing"]:
        print(f"unusual: {line}")


def print_trials(study: StudyResult) -> None:
    """Prints the trials of a study and names the best one."""
    cells = [
        (
            str(trial.number),
            trial.state,
            "" if trial.validation is None else f"{trial.validation:.4f}",
            " ".join(trial.overrides) or "the defaults",
        )
        for trial in study.trials
    ]
    if on_terminal():
        _print_table([_number("trial"), "state", _number(f"validation {study.select_by}"), "settings"], cells)
    else:
        for number, state, validation, settings in cells:
            print(f"trial {number:>3} {state:8} {validation:8} {settings}")
    print(f"best: trial {study.best.number}")


def print_predictions(rows: Sequence[Mapping[str, object]], text_columns: Sequence[str]) -> None:
    """Prints texts with their predictions as a table.

    Args:
        rows: as ``predict_rows`` yields them, at least one.
        text_columns: the columns that hold the texts.

    """
    cells = [
        [
            *(_plain(str(row[column])) for column in text_columns),
            _plain(str(row["prediction"])),
            f"{row['probability']:.3f}",
        ]
        for row in rows
    ]
    _print_table([*map(_plain, text_columns), "prediction", _number("probability")], cells)


def print_next(steps: Mapping[str, Sequence[str]]) -> None:
    """Prints commands to run next, each on a line of its own that can be pasted into sh, bash or zsh.

    Args:
        steps: the words of each command, by its purpose.

    """
    print("next:")
    for purpose, command in steps.items():
        # zsh passes a comment at the end of a line to the command as arguments.
        print(f"  {purpose}:\n    {shell_line(command)}")


def _rate(lr: float, scales: Mapping[str, float] | None) -> str:
    """Formats the learning rate of an inner step, with the range over parameters if they have rates of their own."""
    if scales is None:
        return f"{lr:.4g}"
    names = sorted(scales, key=lambda name: scales[name])
    least, greatest = (f"{lr * scales[name]:.4g} ({_plain(name)})" for name in (names[0], names[-1]))
    return f"{lr:.4g}, from {least} to {greatest}"


def _sample(summary: SetSummary, index: int) -> dict[str, list[str]]:
    """Returns lines about a sample, by heading."""
    labels = list(zip(summary.metadata.class_names, summary.labels[index], strict=True))
    rest = len(labels) - LABELS
    if rest > 0:
        labels = sorted(labels, key=lambda label: -label[1])[:LABELS]
    line = ", ".join(f"{_plain(name)} {value:.3f}" for name, value in labels)
    sample = {"labels": [f"{line}, {rest} smaller" if rest > 0 else line]}
    if summary.attention:
        line = "layer {layer} head {head} row {row} -> key {key} {probability:.3f}, weight {weight:.3g}"
        sample["attention"] = [line.format(**peak._asdict()) for peak in summary.attention[index]]
    if summary.tokens:
        sample["nearest tokens"] = [" ".join(_plain(near[0].token) for near in summary.tokens[index])]
    return sample


def _width(names: Iterable[str]) -> int:
    """Returns the width of a column of metrics."""
    return max([10, *map(len, names)])


def _spread(score: Score | Spread) -> str:
    return " ".join(filter(None, (f"{score.mean:.4f}", _deviation(score.std), f"(n={score.n} learners)")))


def _deviation(std: float | None) -> str:
    return "" if std is None else f"± {std:.4f}"


def on_terminal() -> bool:
    """Whether standard output is a terminal that shows tables; FORCE_COLOR=1 says that it is."""
    console = Console()
    return console.is_terminal and not console.is_dumb_terminal


def _number(heading: str) -> Column:
    return Column(heading, justify="right")


def _print_table(columns: Sequence[str | Column], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*columns)
    for row in rows:
        # rich would read a token such as [MASK] as markup; Text is printed as it is.
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console().print(table)


def _plain(name: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
