"""The command line: finds the function of a verb, parses its arguments, and leaves the work to ``commands``.

Imports stand inside the functions, so that ``--help`` answers before torch is loaded.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from textdistill import __version__
from textdistill.cli.errors import fail, guarded
from textdistill.cli.help import HELP, VERB_HELP
from textdistill.cli.overrides import after_run, set_and_overrides
from textdistill.cli.process import quiet_logs


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the ``textdistill`` command. The exit status is 2 for an error that the user can correct."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if arguments == ["--version"]:
        print(f"textdistill {__version__}")
        return
    verb, *rest = arguments
    if verb not in VERB_HELP:
        fail(f"unknown verb {verb!r}; known verbs: {', '.join(VERB_HELP)}")
    if {"-h", "--help"} & set(rest):
        print(VERB_HELP[verb], end="")
        return
    quiet_logs()
    verbs: dict[str, Callable[[list[str]], None]] = {
        "distill": partial(_distill, debug),
        "evaluate": _evaluate,
        "finetune": _finetune,
        "predict": _predict,
        "push": _push,
        "show": _show,
        "baseline": _baseline,
        "resume": _resume,
        "verify": _verify,
        "tune": _tune,
        "report": _report,
        "track": _track,
    }
    guarded(verbs[verb], rest, debug=debug)


def _distill(debug: bool, arguments: list[str]) -> None:
    from textdistill.cli.hydra_app import run_app

    run_app(debug, arguments)


def _evaluate(arguments: list[str]) -> None:
    from textdistill.cli import terminal
    from textdistill.commands.evaluate import evaluate
    from textdistill.config import compose

    folder, made_for, overrides = set_and_overrides("evaluate", arguments)
    config = compose(*made_for, "base.method=evaluate", *overrides)
    steps = {"an ordinary model": ["textdistill", "finetune", folder, "--output", "model"]}
    terminal.print_run(evaluate(folder, config), Path(config.base.save_dir), steps)


def _verify(arguments: list[str]) -> None:
    from textdistill.cli import terminal
    from textdistill.commands.evaluate import verify
    from textdistill.config import compose

    folder, made_for, overrides = set_and_overrides("verify", arguments)
    found = verify(folder, compose(*made_for, *overrides))
    terminal.print_verified(found)
    if not found.verified:
        fail(f"{folder}: the measured score is outside the stated spread")
    print(f"verified: {folder}")


def _baseline(arguments: list[str]) -> None:
    from textdistill.cli import terminal
    from textdistill.commands.evaluate import baseline
    from textdistill.config import compose
    from textdistill.evaluation.baselines import Baseline, Training

    if not arguments or arguments[0] not in list(Baseline):
        raise ValueError(f"baseline needs its kind: textdistill baseline {{{','.join(Baseline)}}} [key=value ...]")
    kind = Baseline(arguments[0])
    parser = argparse.ArgumentParser("textdistill baseline", add_help=False)
    parser.add_argument("--training", type=Training, choices=list(Training), default=Training.inner_loop)
    given, overrides = parser.parse_known_args(arguments[1:])
    config = compose(f"base.method=baseline_{kind}", *overrides)
    results = baseline(kind, config, given.training)
    experiment = Path(config.base.save_dir_root, config.base.experiment_name)
    beside = experiment if Path(config.base.save_dir).is_relative_to(experiment) else Path(config.base.save_dir)
    steps = {"beside other results": ["textdistill", "report", str(beside)]}
    terminal.print_run(results, Path(config.base.save_dir), steps)


def _finetune(arguments: list[str]) -> None:
    from textdistill.cli import terminal
    from textdistill.commands.sets import finetune

    parser = argparse.ArgumentParser("textdistill finetune", add_help=False)
    parser.add_argument("distilled_dir")
    parser.add_argument("--output", required=True)
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--export", choices=["onnx"])
    given = parser.parse_args(arguments)
    done = finetune(given.distilled_dir, given.output, given.model, given.seed, given.export == "onnx")
    print(f"fine-tuned {done.model} in {done.seconds:.2f} s; the model is in {done.output}")
    classify = f'pipeline("text-classification", {json.dumps(done.output)})("A text of your own.")'
    terminal.print_next({"classify": ["python", "-c", f"from transformers import pipeline; print({classify})"]})


def _predict(arguments: list[str]) -> None:
    from textdistill.cli.predict import run_predict

    parser = argparse.ArgumentParser("textdistill predict", add_help=False, allow_abbrev=False)
    parser.add_argument("source")
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--input", dest="input_file")
    parser.add_argument("--text", dest="columns", type=lambda names: names.split(","))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=42)
    run_predict(**vars(parser.parse_intermixed_args(arguments)))


def _push(arguments: list[str]) -> None:
    from textdistill.commands.sets import push

    parser = argparse.ArgumentParser("textdistill push", add_help=False)
    parser.add_argument("distilled_dir")
    parser.add_argument("repo_id")
    parser.add_argument("--private", action="store_true", default=None)
    parser.add_argument("--revision")
    parser.add_argument("--message", dest="commit_message")
    parser.add_argument("--license")
    commit = push(**vars(parser.parse_args(arguments)))
    print(f"pushed: {commit.commit_url}")
    print(f'load it: DistilledDataset.from_pretrained("{commit.repo_url.repo_id}", revision="{commit.oid}")')


def _show(arguments: list[str]) -> None:
    from textdistill.cli import terminal
    from textdistill.commands.sets import show

    folder = _only("show", "DISTILLED_DIR", arguments)
    terminal.print_set(show(folder))
    terminal.print_next({"an ordinary model": ["textdistill", "finetune", folder, "--output", "model"]})


def _resume(arguments: list[str]) -> None:
    from textdistill.cli import terminal
    from textdistill.commands.distill import resume

    run_dir = _only("resume", "RUN_DIR", arguments)
    terminal.print_run(resume(run_dir), Path(run_dir), after_run(Path(run_dir)))


def _tune(arguments: list[str]) -> None:
    from textdistill.cli import terminal

    try:
        from textdistill.commands.tune import tune
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ValueError("tune needs Optuna; install the extra: pip install 'textdistill[tune]'") from error

    parser = argparse.ArgumentParser("textdistill tune", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--study")
    given = parser.parse_intermixed_args(arguments)
    study = tune(given.overrides, given.trials, given.study)
    terminal.print_trials(study)
    terminal.print_run(study.result, study.run_dir, after_run(study.run_dir))
    print(f"textdistill distill {shlex.join(study.overrides)}")


def _track(arguments: list[str]) -> None:
    from textdistill.commands.reports import track

    run_dir = _only("track", "RUN_DIR", arguments)
    print(f"MLflow run {track(run_dir)} is complete")


def _report(arguments: list[str]) -> None:
    from textdistill.commands.reports import report
    from textdistill.core.files import replacing
    from textdistill.reporting.tables import Format

    parser = argparse.ArgumentParser("textdistill report", add_help=False)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--format", choices=[form.name for form in Format])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    if given.format is not None:
        form = Format[given.format]
    elif given.output is None:
        form = Format.markdown
    elif (ending := given.output.suffix.removeprefix(".")) in list(Format):
        form = Format(ending)
    else:
        endings = ", ".join(f".{form}" for form in Format)
        raise ValueError(f"--output must end in one of {endings}, got {given.output}; or give --format")
    text = report(given.results, form)
    if given.output is None:
        print(text, end="")
        return
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(given.output) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"report: {given.output}")


def _only(verb: str, name: str, arguments: list[str]) -> str:
    if len(arguments) != 1:
        raise ValueError(f"{verb} needs one folder and nothing else: textdistill {verb} {name}")
    return arguments[0]
