"""The commands that are useful after a verb, as words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from textdistill.arguments import to_options
from textdistill.distilled.dataset import DistilledDataset
from textdistill.overrides import key_of
from textdistill.runs.folder import RunFolder

if TYPE_CHECKING:
    from textdistill.commands.sets import SetSummary
    from textdistill.config import BaseConfig
    from textdistill.runs.results import RunResult

# These keys belong to one run and must not be repeated for another run.
_RUN_KEYS = re.compile(r"base\.(save_dir|save_method_dir|run_name|method|sweep)|train\.(save_ckpt_dir|resume)")


def after_run(run_dir: Path, short: bool = True) -> dict[str, list[str]]:
    """Returns commands that are useful after a run, by purpose.

    Args:
        run_dir: the run folder.
        short: whether to write DATA and options for the keys that they stand for.

    """
    folder = RunFolder(run_dir)
    distilled = _argument(folder.distilled)
    commands = {
        "what was learned": ["textdistill", "show", distilled],
        "labels of your own texts": ["textdistill", "predict", distilled, "A text of your own."],
        "an ordinary model": ["textdistill", "finetune", distilled, "--output", _new_folder(run_dir / "model")],
    }
    # A run that Python started has no file of overrides.
    if folder.overrides.exists():
        overrides = yaml.safe_load(folder.overrides.read_text(encoding="utf-8"))
        repeated = [override for override in overrides if not _RUN_KEYS.fullmatch(key_of(override))]
        words = to_options(repeated) if short else repeated
        beside = ["--output", _argument(run_dir / "baseline_random")]
        commands["as many real samples"] = ["textdistill", "baseline", "random", *words, *beside]
    page = ["--output", _argument(run_dir / "report.html")]
    return commands | {"all of it on one page": ["textdistill", "report", _argument(run_dir), *page]}


def after_study(overrides: list[str]) -> dict[str, list[str]]:
    """Returns the command that runs the best trial of a study again."""
    return {"the best trial in a run folder of its own": ["textdistill", "distill", *to_options(overrides)]}


def after_evaluation(distilled_dir: str, result: RunResult) -> dict[str, list[str]]:
    """Returns the command that fine-tunes the model that an evaluation scored."""
    named = DistilledDataset.from_pretrained(distilled_dir).metadata.model.name
    model = [] if result.model.name == named else ["--model", result.model.name]
    return {
        "an ordinary model": ["textdistill", "finetune", distilled_dir, "--output", _new_folder(Path("model")), *model]
    }


def after_show(distilled_dir: str, summary: SetSummary) -> dict[str, list[str]]:
    """Returns the command that fine-tunes a model on a set, with an encoder where the set's cannot be loaded."""
    from textdistill.method.learner import ModelConfig

    model = [] if summary.tokens is not None else ["--model", ModelConfig().model_name]
    return {
        "an ordinary model": ["textdistill", "finetune", distilled_dir, "--output", _new_folder(Path("model")), *model]
    }


def after_baseline(base: BaseConfig) -> dict[str, list[str]]:
    """Returns the command that reports a baseline, with the other runs of its experiment if it stands among them."""
    experiment, own = Path(base.save_dir_root, base.experiment_name), Path(base.save_dir)
    folder = experiment if own.is_relative_to(experiment) else own
    return {"beside other results": ["textdistill", "report", _argument(folder)]}


def after_finetuning(model: str) -> dict[str, list[str]]:
    """Returns the command that classifies a text with a fine-tuned model."""
    return {"labels of your own texts": ["textdistill", "predict", model, "A text of your own."]}


def _new_folder(path: Path) -> str:
    """Returns a folder that ``finetune`` accepts: this one, or with a number where it holds files already."""
    number, folder = 1, path
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = path.with_name(f"{path.name}_{number}")
    return _argument(folder)


def _argument(path: Path) -> str:
    """Returns a path that is read neither as an option nor as a home folder."""
    return f"./{path}" if str(path).startswith(("-", "~")) else str(path)
