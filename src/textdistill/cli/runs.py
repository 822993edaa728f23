"""The verbs that read data: ``distill``, ``evaluate``, ``baseline``, ``verify``, ``tune`` and ``resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from textdistill.cli import app as application
from textdistill.cli.app import DistilledDir, Label, Model, Output, Settings, Steps, Text, Words, verb
from textdistill.cli.errors import fail

# The same names as in evaluation.baselines, whose import loads torch.
Kind = Literal["full", "random", "k-centers", "herding"]
Training = Literal["inner_loop", "ordinary"]

RunDir = Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run folder.")]
_RunsFolder = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The folder of all run folders (base.save_dir_root).", show_default=False),
]


@verb
def distill(
    context: typer.Context,
    words: Words = None,
    text: Text = None,
    label: Label = None,
    model: Model = None,
    steps: Steps = None,
    output: Output = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Sweep: one run for each of the values separated by commas.")
    ] = False,
) -> None:
    r"""Distil a dataset and score the result.

    Columns that are not named are chosen by name and type. With -m, --output is the folder of all run folders. The
    flags of Hydra work too: --cfg job prints all keys with their values, and --info explains the composition.

    \b
    Frequent keys:
      data.protocol=clean|paper                  the rows that choose the checkpoint
      data.streaming=true                        read a hub dataset without storing it
      distilled_data.data_per_label=N            samples per class
      distilled_data.label_type=hard|soft|unrestricted
      distilled_data.attention_label_type=none|cls|all
      learner_train.train_step=T                 inner steps
      train.trajectory=keep|offload|checkpoint   where inner steps keep their gradients
      evaluate.n_eval_model=N                    learners in the final score
      tracking=mlflow|none
      base.seed=N
      experiment=reference                       every default of the reference implementation

    \b
    Examples:
      textdistill distill reviews.csv
      textdistill distill reviews.csv --text title,body --label stars --steps 500
      textdistill distill sst2 --model minilm-l6 distilled_data.lr_init=0.01,0.1 -m
      torchrun --nproc_per_node 2 -m textdistill distill reviews.csv
    """
    from textdistill.cli.hydra_app import run_app, split_flags

    flags, rest = split_flags(words or [])
    if unknown := [word for word in rest if word.startswith("-")]:
        options = [option for parameter in context.command.params for option in parameter.opts]
        raise ValueError(application.unknown_option("distill", unknown[0], options))
    settings = Settings.of(rest, text, label, model, steps, output, many_runs=multirun)
    run_app(application.debug, [*flags, *(["--multirun"] if multirun else [])], settings)


@verb
def evaluate(
    distilled_dir: DistilledDir,
    words: Words = None,
    text: Text = None,
    label: Label = None,
    model: Model = None,
    steps: Steps = None,
    output: Output = None,
) -> None:
    r"""Score a distilled set on the test split, and write results.json.

    Data, model, protocol and seed default to those that the set was made for.

    \b
    Frequent keys:
      evaluate.n_eval_model=N    learners in the score
    """
    from textdistill.cli import terminal
    from textdistill.cli.next_commands import after_evaluation
    from textdistill.commands.evaluate import evaluate
    from textdistill.config import compose

    settings = Settings.of(words, text, label, model, steps, output)
    config = compose(*_made_for(distilled_dir, settings), "base.method=evaluate", *settings.all)
    result = evaluate(distilled_dir, config)
    terminal.print_run(result, Path(config.base.save_dir), after_evaluation(distilled_dir, result))


@verb
def verify(
    distilled_dir: DistilledDir,
    words: Words = None,
    text: Text = None,
    label: Label = None,
    model: Model = None,
) -> None:
    r"""Check the files of a distilled set, and measure the score that its card states again.

    Prints anomalies of the tensors. The exit status is 2 if the measured score is outside the stated spread.

    \b
    Frequent keys:
      evaluate.n_eval_model=N    learners in the score
    """
    from textdistill.cli import terminal
    from textdistill.commands.evaluate import verify
    from textdistill.config import compose

    settings = Settings.of(words, text, label, model)
    verification = verify(distilled_dir, compose(*_made_for(distilled_dir, settings), *settings.all))
    terminal.print_verified(verification)
    if not verification.verified:
        fail(f"{distilled_dir}: the measured score is outside the stated spread")
    print(f"verified: {distilled_dir}")


@verb
def baseline(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="full, random, k-centers or herding.")],
    words: Words = None,
    text: Text = None,
    label: Label = None,
    model: Model = None,
    steps: Steps = None,
    output: Output = None,
    training: Annotated[
        Training,
        typer.Option(
            help="inner_loop: gradient steps as on a distilled set, where validation chooses the rate."
            " ordinary: 200 steps of AdamW."
        ),
    ] = "inner_loop",
) -> None:
    r"""Train on real samples for comparison, and score the result on the test split.

    The samples are all data (full), or as many as a distilled set has. These are drawn at random, or chosen by the
    features of the encoder (k-centers, herding).

    \b
    Frequent keys:
      distilled_data.data_per_label=N    samples per class
      learner_train.train_step=T         inner steps
      evaluate.n_eval_model=N            learners in the score of real samples
    """
    from textdistill.cli import terminal
    from textdistill.cli.next_commands import after_baseline
    from textdistill.commands.evaluate import baseline
    from textdistill.config import compose
    from textdistill.evaluation import baselines

    settings = Settings.of(words, text, label, model, steps, output)
    config = compose(f"base.method=baseline_{kind}", *settings.all)
    result = baseline(kind, config, baselines.Training(training))
    terminal.print_run(result, Path(config.base.save_dir), after_baseline(config.base))


@verb
def resume(run_dir: RunDir) -> None:
    """Go on with an interrupted run from its last checkpoint.

    The configuration is that of its config.yaml, and the result equals that of an uninterrupted run. The command
    textdistill distill ... train.resume=true base.save_dir=RUN_DIR does the same. It starts a new run if the folder
    holds none.
    """
    from textdistill.cli import terminal
    from textdistill.cli.next_commands import after_run
    from textdistill.commands.distill import resume

    terminal.print_run(resume(run_dir), Path(run_dir), after_run(Path(run_dir)))


@verb
def tune(
    words: Words = None,
    text: Text = None,
    label: Label = None,
    model: Model = None,
    steps: Steps = None,
    output: _RunsFolder = None,
    trials: Annotated[
        int, typer.Option(metavar="N", help="Trials of the study; stopped and diverged trials count.")
    ] = 20,
    study: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The folder of its runs in base.save_dir_root.", show_default="the experiment"
        ),
    ] = None,
) -> None:
    r"""Search for settings with the best validation, and score the best run on the test split.

    The first trial has the defaults. Repeat the command to go on with the study; a larger N adds trials. The extra
    tune must be installed.

    \b
    Keys with several values are searched:
      key=a,b   key=choice(a,b)              one of several values
      key=range(1,5)   key=range(1,9,2)      the numbers of a range; the end is excluded
      'key=interval(0.1,0.5)'                a number of an interval
      'key=tag(log,interval(0.001,0.1))'     a number of an interval, uniform in its logarithm
      'key=tag(int,interval(1,8))'           an integer of an interval; both ends are included
    """
    from textdistill.cli import terminal
    from textdistill.cli.next_commands import after_run, after_study

    try:
        from textdistill.commands.tune import tune
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ValueError("tune needs Optuna; install the extra: pip install 'textdistill[tune]'") from error

    settings = Settings.of(words, text, label, model, steps, output, many_runs=True)
    result = tune(settings.all, trials, study)
    terminal.print_trials(result)
    steps_after = after_run(result.run_dir) | after_study(result.overrides)
    terminal.print_run(result.result, result.run_dir, steps_after)


def _made_for(distilled_dir: str, settings: Settings) -> list[str]:
    """Returns the overrides that restore the conditions of a set, where ``settings`` leave them open.

    Raises:
        ValueError: the folder holds no valid set.

    """
    from textdistill.commands.evaluate import set_overrides
    from textdistill.distilled.dataset import DistilledDataset
    from textdistill.overrides import key_of

    given = {key_of(override) for override in settings.all}
    # A task on the hub stands in place of the file that the set was made from.
    replaced = {"data.path"} if settings.data else set()
    restored = set_overrides(DistilledDataset.from_pretrained(distilled_dir))
    return [override for override in restored if key_of(override) not in given | replaced]
