"""Writes Hydra overrides for the user: the overrides of a set, and the next commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from textdistill.overrides import quoted

# These overrides belong to one run and must not be repeated for another run.
RUN_KEYS = re.compile(r"\+*(base\.(save_dir|save_method_dir|run_name|method)|train\.(save_ckpt_dir|resume))=")


def set_and_overrides(verb: str, arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """Splits the arguments of a verb into the folder of a set and overrides.

    Returns:
        The folder, the overrides that restore the task, model and seed of the set, and the user's overrides.

    Raises:
        ValueError: the first argument is not a folder, or the folder holds no valid set.

    """
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
    # The seed decides the rows of a split that is cut from another split, and the learners of the stated score.
    made_for |= {"data.path": stated("config", "data", "path"), "base.seed": stated("seed")}
    made_for["evaluate.n_eval_model"] = stated("scores", "accuracy", "n")
    return folder, [f"{key}={quoted(value)}" for key, value in made_for.items() if value is not None], overrides


def after_run(run_dir: Path) -> dict[str, list[str]]:
    """Returns commands that are useful after a run, by purpose."""
    import yaml

    from textdistill.runs.folder import RunFolder

    folder = RunFolder(run_dir)
    distilled = str(folder.distilled)
    steps = {
        "what was learned": ["textdistill", "show", distilled],
        "an ordinary model": ["textdistill", "finetune", distilled, "--output", str(run_dir / "model")],
    }
    # A run that Python started has no file of overrides.
    if folder.overrides.exists():
        overrides = yaml.safe_load(folder.overrides.read_text(encoding="utf-8"))
        shared = [override for override in overrides if not RUN_KEYS.match(override)]
        beside = str(run_dir / "baseline_random")
        save_dir = beside if re.fullmatch(r"[\w./-]+", beside) else quoted(beside)
        steps["as many real samples"] = ["textdistill", "baseline", "random", *shared, f"base.save_dir={save_dir}"]
    page = str(run_dir / "report.html")
    return steps | {"all of it on one page": ["textdistill", "report", str(run_dir), "--output", page]}
