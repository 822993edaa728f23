"""Runs the Hydra application of ``textdistill distill``: one run, or a sweep of runs."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from textdistill import config
from textdistill.cli.app import Settings
from textdistill.cli.errors import fail, guarded
from textdistill.cli.next_commands import after_run
from textdistill.cli.process import quiet_logs, rank
from textdistill.cli.terminal import print_run
from textdistill.commands.distill import distill
from textdistill.overrides import composition_error
from textdistill.runs.mlflow import Status
from textdistill.runs.mlflow_store import MlflowConfig

# Hydra's flags, and the values that each takes.
_SWITCHES = {"--hydra-help", "--resolve", "--run", "-r", "--multirun", "-m"}
_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_CONFIGS = ("job", "hydra", "all")


class JobFailed(CompactHydraException):
    """A job of a sweep failed; the message is one line."""


def split_flags(words: list[str]) -> tuple[list[str], list[str]]:
    """Splits words into Hydra's flags, with their values, and the others.

    Raises:
        ValueError: a flag has no value, or none that Hydra knows.

    """
    flags: list[str] = []
    others: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name = word.partition("=")[0]
        if name in ("--info", "-i"):
            # Its value may be left out.
            value = word.partition("=")[2]
            if word == name:
                value = remaining.pop(0) if remaining and remaining[0] in _INFO else "all"
            if value not in _INFO:
                raise ValueError(f"the value of {name} must be one of {', '.join(_INFO)}, got {value!r}")
            flags += [name, value]
        elif name in _WITH_VALUE:
            value = word.partition("=")[2] if word != name else remaining.pop(0) if remaining else ""
            if not value or (name in ("--cfg", "-c") and value not in _CONFIGS):
                rule = f"one of {', '.join(_CONFIGS)}" if name in ("--cfg", "-c") else "given"
                raise ValueError(f"the value of {name} must be {rule}, got {value!r}")
            flags += [name, value]
        else:
            (flags if word in _SWITCHES else others).append(word)
    return flags, others


def run_app(debug: bool, flags: list[str], settings: Settings) -> None:
    """Runs ``distill`` once, or once for each job of a sweep.

    Args:
        debug: whether to print the traceback of an error as well.
        flags: Hydra's flags.
        settings: the overrides.

    Raises:
        ValueError: Hydra cannot compose the configuration.

    """
    short = bool(settings.options)
    arguments = [*settings.all, *flags]

    def job(tree: DictConfig) -> float:
        return _job(debug, short, tree)

    for argument in arguments:
        if argument.lstrip("+").startswith("mlflow.tracking_uri="):
            # Hydra would write and print a sweep's overrides before a job checks them.
            MlflowConfig(argument.partition("=")[2]).check()
    with ExitStack() as stack:
        if rank() > 0:
            # Every process would create Hydra's folders and a sweep's MLflow run. Only process 0 must leave them.
            unused = stack.enter_context(tempfile.TemporaryDirectory())
            folders = [f"hydra.run.dir={unused}", f"hydra.sweep.dir={unused}"]
            arguments = [*arguments, *folders, "hydra.job_logging.root.level=WARNING", "tracking=none"]
        sys.argv = ["textdistill distill", *arguments]
        # Hydra then raises its errors, and does not print them on several lines.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        try:
            hydra.main(config_path="pkg://textdistill.conf", config_name="config", version_base="1.3")(job)()
        except JobFailed as error:
            config.Sweep.end(Status.FAILED)
            fail(str(error), 1)
        except (HydraException, OmegaConfBaseException) as error:
            config.Sweep.end(Status.FAILED)
            raise composition_error(error) from error
        except BaseException:
            config.Sweep.end(Status.FAILED)
            raise


def _job(debug: bool, short: bool, tree: DictConfig) -> float:
    """Runs one job and returns its validation cost (``SelectBy.cost``), or NaN for a job that does not train."""
    # A job of a sweep may have a process of its own.
    quiet_logs()
    runtime = HydraConfig.get()
    sweep = runtime.mode is RunMode.MULTIRUN
    if sweep:
        tree.base.save_dir = runtime.runtime.output_dir
        tree.base.sweep = runtime.callbacks["sweep"]["name"]
    run_config = config.to_run_config(tree)
    hydra_files = {
        "config.yaml": OmegaConf.to_yaml(tree),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": runtime})),
        "overrides.yaml": OmegaConf.to_yaml(runtime.overrides.task),
    }

    def job_failed(message: str, status: int) -> NoReturn:
        # The other jobs go on. At the end Hydra raises the first error.
        failed = f"job {runtime.job.num} failed: {' '.join(message.split())}"
        logging.getLogger(__name__).error(failed)
        raise JobFailed(failed)

    # Errors are handled inside the job, because Hydra prints a traceback for an exception that leaves it.
    result = guarded(distill, run_config, hydra_files, debug=debug, failed=job_failed if sweep else fail)
    run_dir = Path(run_config.base.save_dir)
    print_run(result, run_dir, {} if sweep else after_run(run_dir, short))
    # A sweeper must choose by validation, never by the test split.
    assert result.training is not None
    validation = result.training.validation
    select_by = run_config.train.select_by
    return math.nan if validation is None else select_by.cost(validation[select_by])
