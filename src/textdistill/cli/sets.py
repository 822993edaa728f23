"""The verbs that read saved sets and results: finetune, predict, push, show, report and track."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from textdistill.cli.app import DistilledDir, verb
from textdistill.cli.runs import RunDir

# The same names as in reporting.tables.
ReportFormat = Literal["html", "markdown", "csv", "latex"]

_Seed = Annotated[
    int, typer.Option(metavar="N", help="Seed of the head; the model is learner 0 of evaluate with base.seed=N.")
]
_Encoder = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The encoder.", show_default="the one that the set was made for"),
]


@verb
def finetune(
    distilled_dir: DistilledDir,
    output: Annotated[
        str, typer.Option(metavar="DIR", help="New or empty folder for weights, tokenizer and label names.")
    ],
    model: _Encoder = None,
    seed: _Seed = 42,
    export: Annotated[
        Literal["onnx"] | None, typer.Option(help="Also write model.onnx for other runtimes; needs the extra onnx.")
    ] = None,
) -> None:
    """Fine-tune a fresh learner on a distilled set, and write an ordinary Hugging Face model."""
    from textdistill.cli import terminal
    from textdistill.cli.next_commands import after_finetuning
    from textdistill.commands.sets import finetune

    finetuned = finetune(distilled_dir, output, model, seed, export == "onnx")
    print(f"fine-tuned {finetuned.model} in {finetuned.seconds:.2f} s; the model is in {finetuned.output}")
    terminal.print_next(after_finetuning(finetuned.output))


@verb
def predict(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SET_OR_MODEL", help="Folder or hub id of a distilled set, or folder of a fine-tuned model."
        ),
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="The texts; for a set of pairs the two texts of a pair in turn. - reads lines from standard input.",
            show_default=False,
        ),
    ] = None,
    input_file: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="A file with the texts instead, of any kind that data.path takes; - reads standard input.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN[,COLUMN]",
            help="The column of the file, or the two columns of pairs.",
            show_default="those of the set",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .csv or .jsonl file with the columns of the input and the predictions, in the order of the input.",
            show_default=False,
        ),
    ] = None,
    model: _Encoder = None,
    seed: _Seed = 42,
) -> None:
    """Label texts, with a probability for every class.

    From a distilled set, a fresh learner is fine-tuned first, which takes about a second. Prints a table on a terminal,
    and one JSON object a text elsewhere.
    """
    from textdistill.cli.predict import run_predict

    columns = None if text is None else text.split(",")
    run_predict(source, texts or [], input_file=input_file, columns=columns, output=output, model=model, seed=seed)


@verb
def push(
    distilled_dir: DistilledDir,
    repo_id: Annotated[
        str,
        typer.Argument(metavar="REPO_ID", help="owner/name, or name for your own; it is created if it does not exist."),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository; an existing public one is refused.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="A branch, created if it does not exist.", show_default="main"),
    ] = None,
    message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Message of the commit.", show_default=False)
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="License by its identifier on the hub: mit, cc-by-4.0, ...", show_default=False
        ),
    ] = None,
) -> None:
    """Put a distilled set on the Hugging Face hub.

    The set and a README go into a dataset repository as one commit. Local paths are left out of the README. Pushing
    needs a token with write access: hf auth login, or HF_TOKEN.
    """
    from textdistill.commands.sets import push

    commit = push(
        distilled_dir, repo_id, private=private or None, revision=revision, commit_message=message, license=license
    )
    print(f"pushed: {commit.commit_url}")
    print(f'load it: DistilledDataset.from_pretrained("{commit.repo_url.repo_id}", revision="{commit.oid}")')


@verb
def show(distilled_dir: DistilledDir) -> None:
    """Print what a distilled set holds.

    These are shapes, sizes, labels, learning rates, the strongest attention labels and the nearest vocabulary tokens.
    """
    from textdistill.cli import terminal
    from textdistill.cli.next_commands import after_show
    from textdistill.commands.sets import show

    summary = show(distilled_dir)
    terminal.print_set(summary)
    terminal.print_next(after_show(distilled_dir, summary))


@verb
def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT", help="results.json, a run folder, or a folder of run folders."),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write.", show_default="standard output")
    ] = None,
    format: Annotated[
        ReportFormat | None,
        typer.Option(help="By default the suffix of FILE decides: .html, .md, .csv or .tex.", show_default="markdown"),
    ] = None,
) -> None:
    """Compare the results of runs and baselines, in a page or in tables.

    There is a table for each task, protocol and model. Runs that differ only in seed share a row. Each row is compared
    with full data and random real samples, if their results are given. The HTML page is one file that needs no network.
    It also shows the learning curves and the samples of the run with the best validation.
    """
    from textdistill.commands.reports import report
    from textdistill.core.files import replacing
    from textdistill.reporting.tables import Format

    if format is not None:
        form = Format[format]
    elif output is None:
        form = Format.markdown
    elif (ending := output.suffix.removeprefix(".")) in list(Format):
        form = Format(ending)
    else:
        endings = ", ".join(f".{form}" for form in Format)
        raise ValueError(f"--output must end in one of {endings}, got {output}; or give --format")
    text = report(results, form)
    if output is None:
        print(text, end="")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"report: {output}")


@verb
def track(run_dir: RunDir) -> None:
    """Complete the MLflow run of a run folder from its files, if MLflow failed during the run.

    Creates the MLflow run if there is none.
    """
    from textdistill.commands.reports import track

    print(f"MLflow run {track(run_dir)} is complete")
