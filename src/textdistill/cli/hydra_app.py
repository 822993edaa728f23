"""Runs the Hydra application of ``textdistill distill``: one run, or a sweep of runs."""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from textdistill import config
from textdistill.cli.errors import fail, guarded
from textdistill.cli.overrides import after_run
from textdistill.cli.process import quiet_logs, rank
from textdistill.cli.terminal import print_run
from textdistill.commands.distill import distill
from textdistill.runs.mlflow import Status
from textdistill.runs.mlflow_store import MlflowConfig


def run_app(debug: bool, arguments: list[str]) -> None:
    """Runs ``distill`` once, or once for each job of a sweep.

    Args:
        debug: whether to print the traceback of an error as well.
        arguments: the overrides and Hydra's flags.

    """

    def job(tree: DictConfig) -> float:
        return _job(debug, tree)

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
        try:
            hydra.main(config_path="pkg://textdistill.conf", config_name="config", version_base="1.3")(job)()
        except BaseException:
            config.Sweep.end(Status.FAILED)
            raise


def _job(debug: bool, tree: DictConfig) -> float:
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
        # The other jobs go on. At the end Hydra prints the first error of this class without a traceback.
        failed = f"job {runtime.job.num} failed: {' '.join(message.split())}"
        logging.getLogger(__name__).error(failed)
        raise CompactHydraException(f"textdistill: error: {failed}")

    # Errors are handled inside the job, because Hydra prints a traceback for an exception that leaves it.
    result = guarded(distill, run_config, hydra_files, debug=debug, failed=job_failed if sweep else fail)
    run_dir = Path(run_config.base.save_dir)
    print_run(result, run_dir, {} if sweep else after_run(run_dir))
    # A sweeper must choose by validation, never by the test split.
    assert result.training is not None
    validation = result.training.validation
    select_by = run_config.train.select_by
    return math.nan if validation is None else select_by.cost(validation[select_by])
