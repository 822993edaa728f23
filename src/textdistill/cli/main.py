"""The command line: parses the verb, answers ``--help`` at once, and leaves the work to ``commands``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from textdistill.runs.results import RunResult

from textdistill import __version__

T = TypeVar("T")

# What a user can put right. OSError: transformers and datasets raise it for a model or dataset that they cannot find.
USER_ERRORS = (ValueError, OSError, FloatingPointError)
# Overrides that belong to one run: a run beside it has its own.
OF_ONE_RUN = re.compile(r"\+*(base\.(save_dir|save_method_dir|run_name|method)|train\.(save_ckpt_dir|resume))=")

HELP = """\
usage: textdistill VERB ...

Distils a text-classification dataset into a few learned samples that fine-tune a transformer in one step.

  distill  [key=value ...] [-m]                distil a dataset and score the result
  evaluate DISTILLED_DIR [key=value ...]       score a distilled set
  finetune DISTILLED_DIR --output DIR          write an ordinary Hugging Face model
  push     DISTILLED_DIR REPO_ID [--private]   put a distilled set on the Hugging Face hub
  show     DISTILLED_DIR                       print what a distilled set holds
  baseline {full,random,k-centers,herding} [key=value ...]    score full data, or as many real samples
  resume   RUN_DIR                             go on with an interrupted run
  verify   DISTILLED_DIR [key=value ...]       check a set's files and measure its stated score again
  tune     [key=value ...] [--trials N]        search for better settings on validation
  report   RESULT... [--output FILE]           a page, or tables, of the results of runs and baselines
  track    RUN_DIR                             complete the MLflow run of a run folder

textdistill VERB --help tells more; --version prints the version. An error is one line; --debug adds where it
came from.
"""

_KEYS = """\
Often used keys (textdistill distill --cfg job prints all, with their values):
  data.task_name=NAME            ag_news sst2 qnli mrpc qqp mnli vader_movie vader_genre, or a hub id
  data.path=PATH                 csv, tsv, json, jsonl or parquet instead of the hub;
                                 with data.text_columns=[a] or [a,b] and data.label_column=c for your own data
  data.streaming=true            read a hub dataset over the network, without storing it
  data.protocol=clean|paper      which rows select and which are reported
  model.model_name=NAME          any encoder, or minilm-l6
  base.save_dir=DIR              the run folder
  base.seed=N
"""

VERB_HELP = {
    "distill": f"""\
usage: textdistill distill [key=value ...] [-m]

Distils a dataset and scores the result; -m sweeps over comma-separated values. A Hydra application: its flags
(--cfg job, --multirun, ...) work.

{_KEYS}
  distilled_data.label_type=hard|soft|unrestricted
  distilled_data.attention_label_type=none|cls|all
  distilled_data.data_per_label=N    samples per class
  learner_train.train_step=T         inner steps
  train.max_steps=N                  outer steps; train.epoch=N, whichever ends first
  train.trajectory=keep|offload|checkpoint    memory of many inner steps
  evaluate.n_eval_model=N            learners in the final score
  tracking=mlflow|none
  experiment=reference               every default of the reference implementation

Several processes: torchrun --nproc_per_node N -m textdistill distill ...
""",
    "evaluate": f"""\
usage: textdistill evaluate DISTILLED_DIR [key=value ...]

Scores a distilled set on the reported split and writes results.json. Task, model and protocol are those that
the set was made for, unless given.

{_KEYS}
  evaluate.n_eval_model=N            learners in the score
""",
    "finetune": """\
usage: textdistill finetune DISTILLED_DIR --output DIR [--model NAME] [--seed N] [--export onnx]

Fine-tunes a fresh learner on a distilled set and writes an ordinary Hugging Face model folder.

  --output DIR   new or empty folder for weights, tokenizer and label names
  --model NAME   encoder (default: the one that the set was made for)
  --seed N       decides the head (default 42); learner 0 of evaluate with base.seed=N is this model
  --export onnx  also write model.onnx, for other runtimes; needs the extra onnx
""",
    "push": """\
usage: textdistill push DISTILLED_DIR REPO_ID [--private] [--revision BRANCH] [--message TEXT] [--license ID]

Puts a distilled set into a dataset repository on the Hugging Face hub, with a README, as one commit; folders and files
of this machine are left out of its card. Needs a token that may write: hf auth login, or HF_TOKEN.

  REPO_ID        owner/name, or name for your own; made unless it exists
  --private      make it private; an existing repository that is public is refused
  --revision B   a branch, made if need be (default: main)
  --message M    of the commit
  --license ID   for the README, as the hub spells it: mit, cc-by-4.0, ...
""",
    "show": """\
usage: textdistill show DISTILLED_DIR

Prints shapes, sizes, labels, learning rates, the strongest attention labels and the nearest vocabulary tokens.
""",
    "baseline": f"""\
usage: textdistill baseline {{full,random,k-centers,herding}} [--training inner_loop|ordinary] [key=value ...]

Scores, on the rows that distill reports, ordinary fine-tuning on all rows (full), or on as many real samples as a
distilled set would have: drawn at random, or chosen by the encoder's features.

  --training inner_loop              gradient steps as on a distilled set, their rate chosen on validation (default)
  --training ordinary                200 steps of AdamW
{_KEYS}
  distilled_data.data_per_label=N    samples per class
  learner_train.train_step=T         inner steps
  evaluate.n_eval_model=N            learners in the score of real samples
""",
    "resume": """\
usage: textdistill resume RUN_DIR

Goes on with the run of a folder from its last checkpoint, with the configuration in its config.yaml; the end is
that of a run that was never interrupted. textdistill distill ... train.resume=true base.save_dir=RUN_DIR does the
same, and starts the run where there is none.
""",
    "verify": f"""\
usage: textdistill verify DISTILLED_DIR [key=value ...]

Checks the files of a distilled set against their checksums, measures again the score that its card states, says
whether it falls within its stated spread, and prints what looks unusual in the tensors. Exits with 2 if it does not.

{_KEYS}
  evaluate.n_eval_model=N            learners in the score
""",
    "tune": f"""\
usage: textdistill tune [key=value ...] [--trials N] [--study NAME]

Searches for settings with a low validation loss, with the defaults as the first trial, and scores the best run on the
reported split. The same command again goes on with the study; a larger N makes it longer. Needs the extra tune.

  key=a,b   key=choice(a,b)                one of several values
  key=range(1,5)   key=range(1,9,2)        numbers of a range, without its end
  'key=interval(0.1,0.5)'                  any number in between
  'key=tag(log,interval(0.001,0.1))'       the same, evenly over its logarithm
  'key=tag(int,interval(1,8))'             whole numbers, both ends included
  --trials N       of the study in all (default 20), those stopped early and those that diverged included
  --study NAME     folder of its runs in base.save_dir_root (default: base.experiment_name)

{_KEYS}""",
    "report": """\
usage: textdistill report RESULT... [--output FILE] [--format html|markdown|csv|latex]

Results of runs and baselines side by side, for each task, protocol and model: every setting with the mean over its
learners and seeds, beside full data and random real samples where their results are given too. The HTML page is one
file that needs no network; it also shows the learning curves of the run with the lowest validation loss, and what it
has learned.

  RESULT           results.json, a run folder, or a folder of run folders
  --output FILE    default: standard output
  --format         default: by the ending of FILE, .html, .md, .csv or .tex; markdown for standard output
""",
    "track": """\
usage: textdistill track RUN_DIR

Completes the MLflow run of a run folder from metrics.jsonl and the other files in it, where MLflow failed while the
run went on; makes the MLflow run where there is none.
""",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the ``textdistill`` command; exits with 2 where the user can put things right."""
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
        _fail(f"unknown verb {verb!r}; known verbs: {', '.join(VERB_HELP)}")
    if {"-h", "--help"} & set(rest):
        print(VERB_HELP[verb], end="")
        return
    _quiet()
    verbs: dict[str, Callable[[list[str]], None]] = {
        "distill": partial(_distill, debug),
        "evaluate": _evaluate,
        "finetune": _finetune,
        "push": _push,
        "show": _show,
        "baseline": _baseline,
        "resume": _resume,
        "verify": _verify,
        "tune": _tune,
        "report": _report,
        "track": _track,
    }
    _guarded(verbs[verb], rest, debug=debug)


def _distill(debug: bool, arguments: list[str]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    from textdistill import config
    from textdistill.commands.distill import distill
    from textdistill.runs.mlflow import Status

    def job(tree: DictConfig) -> float:
        # A sweep's job may have a process of its own.
        _quiet()
        runtime = HydraConfig.get()
        sweep = runtime.mode is RunMode.MULTIRUN
        if sweep:
            tree.base.save_dir = runtime.runtime.output_dir
            tree.base.sweep = runtime.callbacks["sweep"]["name"]
        run_config = config.to_run_config(tree)
        composed = {
            "config.yaml": OmegaConf.to_yaml(tree),
            "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": runtime})),
            "overrides.yaml": OmegaConf.to_yaml(runtime.overrides.task),
        }

        def job_failed(message: str, status: int) -> NoReturn:
            # The other jobs go on; Hydra shows the first such error at the end, without a traceback.
            failed = f"job {runtime.job.num} failed: {' '.join(message.split())}"
            logging.getLogger(__name__).error(failed)
            raise CompactHydraException(f"textdistill: error: {failed}")

        # Inside the job: Hydra would print a traceback for an exception, and lets an exit through.
        fail = job_failed if sweep else _fail
        result = _guarded(distill, run_config, composed, debug=debug, fail=fail)
        run_dir = Path(run_config.base.save_dir)
        _print_results(result, run_dir, {} if sweep else _after_run(run_dir))
        # Without training there is no validation, and a sweeper must not choose by the reported split.
        assert result.training is not None
        validation = result.training.validation
        return math.nan if validation is None else validation["loss"]

    with ExitStack() as stack:
        if _rank() > 0:
            # Hydra makes its folders, and a sweep's MLflow run, in every process; process 0's are the ones that count.
            unused = stack.enter_context(tempfile.TemporaryDirectory())
            folders = [f"hydra.run.dir={unused}", f"hydra.sweep.dir={unused}"]
            arguments = [*arguments, *folders, "hydra.job_logging.root.level=WARNING", "tracking=none"]
        sys.argv = ["textdistill distill", *arguments]
        try:
            hydra.main(config_path="pkg://textdistill.conf", config_name="config", version_base="1.3")(job)()
        except BaseException:
            config.Sweep.end(Status.FAILED)
            raise


def _evaluate(arguments: list[str]) -> None:
    from textdistill.commands.evaluate import evaluate
    from textdistill.config import compose

    folder, made_for, overrides = _set_and_overrides("evaluate", arguments)
    config = compose(*made_for, "base.method=evaluate", *overrides)
    steps = {"an ordinary model": ["textdistill", "finetune", folder, "--output", "model"]}
    _print_results(evaluate(folder, config), Path(config.base.save_dir), steps)


def _verify(arguments: list[str]) -> None:
    from textdistill.cli import terminal
    from textdistill.commands.evaluate import verify
    from textdistill.config import compose

    folder, made_for, overrides = _set_and_overrides("verify", arguments)
    found = verify(folder, compose(*made_for, *overrides))
    terminal.print_verified(found)
    if not found.verified:
        _fail(f"{folder}: the measured score is outside the stated spread")
    print(f"verified: {folder}")


def _set_and_overrides(verb: str, arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """A set's folder, the overrides for what it was made for, and those that were given."""
    from textdistill.distilled.dataset import DistilledDataset

    if not arguments or "=" in arguments[0]:
        raise ValueError(f"{verb} needs the folder of a distilled set: textdistill {verb} DISTILLED_DIR")
    folder, *overrides = arguments
    card = DistilledDataset.from_pretrained(folder).metadata

    def stated(*keys: str) -> Any:
        value: Any = card.provenance
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    made_for = {"model.model_name": card.model.name}
    if card.task != "unknown":
        made_for["data.task_name"] = card.task
    made_for |= {f"data.{key}": value for key, value in card.data.items() if key != "fingerprint"}
    # The seed decides the rows of a split that is carved from others, and the learners of the stated score.
    made_for |= {"data.path": stated("config", "data", "path"), "base.seed": stated("seed")}
    made_for["evaluate.n_eval_model"] = stated("scores", "accuracy", "n")
    return folder, [f"{key}={_quoted(value)}" for key, value in made_for.items() if value is not None], overrides


def _baseline(arguments: list[str]) -> None:
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
    _print_results(results, Path(config.base.save_dir), steps)


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
    from textdistill.commands.distill import resume

    run_dir = _only("resume", "RUN_DIR", arguments)
    _print_results(resume(run_dir), Path(run_dir), _after_run(Path(run_dir)))


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
    found = tune(given.overrides, given.trials, given.study)
    terminal.print_trials(found["trials"], found["best"])
    _print_results(found["results"], Path(found["run_dir"]), _after_run(Path(found["run_dir"])))
    print(f"textdistill distill {shlex.join(found['overrides'])}")


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


def _print_results(result: RunResult, folder: Path, steps: Mapping[str, Sequence[str]]) -> None:
    """Prints a result, and commands to go on with by what they are for; in process 0."""
    from textdistill.cli import terminal

    if _rank() > 0:
        return
    terminal.print_results(result, folder)
    if steps:
        terminal.print_next(steps)


def _after_run(run_dir: Path) -> dict[str, list[str]]:
    """Commands to go on with after a run, by what they are for."""
    import yaml

    distilled = str(run_dir / "distilled")
    steps = {
        "what was learned": ["textdistill", "show", distilled],
        "an ordinary model": ["textdistill", "finetune", distilled, "--output", str(run_dir / "model")],
    }
    composed = run_dir / ".hydra" / "overrides.yaml"
    if composed.exists():  # not where Python started the run
        given = [override for override in yaml.safe_load(composed.read_text()) if not OF_ONE_RUN.match(override)]
        beside = str(run_dir / "baseline_random")
        place = beside if re.fullmatch(r"[\w./-]+", beside) else _quoted(beside)
        steps["as many real samples"] = ["textdistill", "baseline", "random", *given, f"base.save_dir={place}"]
    page = str(run_dir / "report.html")
    return steps | {"all of it on one page": ["textdistill", "report", str(run_dir), "--output", page]}


def _fail(message: str, status: int = 2) -> NoReturn:
    # The messages of libraries run over several lines.
    print(f"textdistill: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _guarded(work: Callable[..., T], *arguments: Any, debug: bool, fail: Callable[[str, int], NoReturn] = _fail) -> T:
    """Runs ``work``; an error ends in ``fail`` with one line, and the status 2 if the user can put it right.

    Args:
        work: what to do.
        *arguments: its arguments.
        debug: print the traceback of an error too.
        fail: takes message and exit status.

    """
    try:
        return work(*arguments)
    except KeyboardInterrupt as error:
        print(f"textdistill: {str(error) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + getattr(error, "signum", signal.SIGINT))
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        if isinstance(error, USER_ERRORS):
            fail(str(error), 2)
        fail(f"unexpected {type(error).__name__}: {error} (--debug shows where; in a run, run.log too)", 1)


def _quoted(value: Any) -> str:
    """A value as Hydra's override grammar takes it."""
    if isinstance(value, str):
        # A backslash is special before a quote only.
        escaped = re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)
        return f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(_quoted(item) for item in value)}]"
    return "null" if value is None else str(value)


def _quiet() -> None:
    """Our log at INFO; of the libraries' logs, what needs attention."""
    import transformers

    level = logging.WARNING if _rank() > 0 else logging.INFO
    logging.basicConfig(level=level, format="[%(asctime)s][%(name)s] %(message)s")
    for name in ("httpx", "httpx2", "datasets", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _rank() -> int:
    """Number of this process among those that torchrun started; known before torch is imported."""
    return int(os.environ.get("RANK", 0))
