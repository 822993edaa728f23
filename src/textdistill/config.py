"""The configuration of a run: one dataclass for each group of keys, registered with Hydra and checked."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from textdistill.core.precision import AUTO, resolve_bf16
from textdistill.data.task import DataConfig
from textdistill.distilled.spec import DistilledDataConfig, LabelType, LearnerTrainConfig
from textdistill.evaluation.config import EvaluateConfig
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator, Trajectory
from textdistill.method.learner import ModelConfig
from textdistill.overrides import check_overrides, composition_error
from textdistill.runs.folder import RunFolder
from textdistill.runs.metrics import flatten
from textdistill.runs.mlflow import Status, SweepRun
from textdistill.runs.mlflow_store import Destination, MlflowConfig, MlflowRecord
from textdistill.runs.tracker import Tracking
from textdistill.training.config import InnerPrecision, TrainConfig

logger = logging.getLogger(__name__)


# These keys may change when a run resumes: paths, intervals and tracking. Data and model are compared by content.
# RunConfig.fixed also lets train.max_steps and train.epoch change if the schedule does not depend on the last step.
CHANGEABLE = re.compile(
    r"base\.(?!seed$).*|mlflow\..*|tracking"
    r"|data\.(path|datasets_path|preprocessed_datasets_path|num_proc|streaming|force_preprocess)"
    r"|train\.(resume|save_ckpt_dir|trajectory|checkpoint_interval|log_interval|val_interval|val_steps)"
)

# The configurations of earlier runs lack these keys. Their defaults are what those runs did.
LATER_KEYS = {
    "data.config_name",
    "data.delimiter",
    "data.encoding",
    "data.header",
    "mlflow.experiment_name",
    "mlflow.tracking_uri",
}


@dataclass
class BaseConfig:
    """The names and folders of ``base.*``. ``save_dir`` is the run folder. ``sweep`` is the run's sweep, if any."""

    experiment_name: str = ""
    method: str = ""
    run_name: str = ""
    save_dir_root: str = ""
    save_method_dir: str = ""
    save_dir: str = ""
    data_dir_root: str = ""
    sweep: str = ""
    seed: int = 42


@dataclass
class RunConfig:
    """All settings of a run. The reference implementation has the same groups."""

    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    distilled_data: DistilledDataConfig = field(default_factory=DistilledDataConfig)
    learner_train: LearnerTrainConfig = field(default_factory=LearnerTrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)
    tracking: Tracking = Tracking.mlflow

    @property
    def run_folder(self) -> RunFolder:
        """Returns the run's folder, ``base.save_dir`` with ``train.save_ckpt_dir``."""
        return RunFolder(self.base.save_dir, self.train.save_ckpt_dir)

    def destination(self, recorded: MlflowRecord | None = None) -> Destination:
        """Returns the place where MLflow records the run.

        Args:
            recorded: the record of the run, if an earlier process began it.

        """
        return Destination.of(self.mlflow, Path(self.base.save_dir_root), self.base.experiment_name, recorded)

    def check(self) -> None:
        """Raises ValueError for contradictions. Warns of settings without effect."""
        self.distilled_data.check()
        self.learner_train.check(self.distilled_data)
        self.train.check()
        self.evaluate.check()
        self.mlflow.check()
        for group in (self.model, self.evaluate):
            if group.task_name != self.data.task_name:
                name = "model" if group is self.model else "evaluate"
                raise ValueError(
                    f"{name}.task_name must be data.task_name={self.data.task_name}, got {group.task_name};"
                    " leave it out, it follows data.task_name"
                )
        if self.train.inner_loop != self.learner_train.train_step:
            raise ValueError(
                f"train.inner_loop must be learner_train.train_step={self.learner_train.train_step}, got"
                f" {self.train.inner_loop}; set learner_train.train_step alone, train.inner_loop follows it"
            )
        if self.train.inner_precision is InnerPrecision.bf16 and self.learner_train.train_step > 1:
            raise ValueError(
                "train.inner_precision=bf16 needs learner_train.train_step=1, got"
                f" {self.learner_train.train_step}: over several steps its errors add up (docs/performance.md);"
                " set train.inner_precision=tf32 or float32"
            )
        for setting, reason in self._without_effect():
            logger.warning("%s has no effect: %s", setting, reason)

    def resolved(self, device: torch.device) -> RunConfig:
        """Returns the configuration with ``bf16=auto`` of both groups decided for a device.

        The run records the decision, so that it goes on with the same numbers elsewhere.
        """
        train = replace(self.train, bf16=resolve_bf16(self.train.bf16, self.train.fp16, device))
        evaluate = replace(self.evaluate, bf16=resolve_bf16(self.evaluate.bf16, self.evaluate.fp16, device))
        if AUTO in (self.train.bf16, self.evaluate.bf16):
            choices = f"train.bf16={str(train.bf16).lower()} evaluate.bf16={str(evaluate.bf16).lower()}"
            logger.info("products by the flags of the %s: %s", device.type, choices)
        return replace(self, train=train, evaluate=evaluate)

    def fixed(self) -> dict[str, Any]:
        """Returns the settings that must not change when a run resumes from a checkpoint, by dotted key."""
        endless = self.train.scheduler_type == "constant" or (
            self.train.scheduler_type in ("constant_with_warmup", "inverse_sqrt") and self.train.warmup_ratio == 0
        )
        free = {"train.max_steps", "train.epoch"} if endless else set()
        if self.train.max_steps is not None:
            free.add("train.epoch")  # It has no effect.
        return {key: value for key, value in flatten(asdict(self)) if key not in free and not CHANGEABLE.fullmatch(key)}

    def _without_effect(self) -> list[tuple[str, str]]:
        distilled, train = self.distilled_data, self.train
        ineffective = []
        if distilled.lr_linear_decay and distilled.lr_for_step:
            ineffective.append(("distilled_data.lr_linear_decay=true", "distilled_data.lr_for_step=true"))
        # An inherited rate needs no warning.
        follows = (None, train.lr_inputs_embeds)
        if distilled.attention_label_type is AttentionLabelType.none and train.lr_attention_labels not in follows:
            ineffective.append(("train.lr_attention_labels", "distilled_data.attention_label_type=none"))
        if not distilled.lr_for_parameter and train.lr_lr_scales is not None:
            ineffective.append(("train.lr_lr_scales", "distilled_data.lr_for_parameter=false"))
        if not train.optimizer_type.is_adam and train.adam_beta2 != TrainConfig.adam_beta2:
            ineffective.append((f"train.adam_beta2={train.adam_beta2}", f"train.optimizer_type={train.optimizer_type}"))
        if train.estimator is Estimator.reverse and train.trajectory is not Trajectory.keep:
            ineffective.append((f"train.trajectory={train.trajectory}", "train.estimator=reverse"))
        if distilled.label_type is LabelType.hard and train.lr_labels not in follows:
            ineffective.append(("train.lr_labels", "distilled_data.label_type=hard"))
        used = self.learner_train.train_step * self.learner_train.batch_size_per_label
        if distilled.fix_order and used < distilled.data_per_label:
            steps, batch = self.learner_train.train_step, self.learner_train.batch_size_per_label
            ineffective.append(
                (
                    f"distilled_data.data_per_label={distilled.data_per_label} beyond {used}",
                    f"learner_train.train_step={steps} times learner_train.batch_size_per_label={batch}",
                )
            )
        return ineffective


class Sweep(Callback):
    """Creates the MLflow run of a sweep before the first job, in Hydra's hooks.

    Args:
        name: the sweep's name, which the jobs find in Hydra's configuration.

    """

    # Hydra pickles the instance for the jobs, so the class holds the run. Hydra runs one sweep at a time.
    _run: ClassVar[SweepRun | None] = None

    def __init__(self, name: str) -> None:
        self._name = name

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Creates the MLflow run and its store if the sweep tracks with MLflow."""
        if config.tracking == Tracking.mlflow:
            keys = MlflowConfig(config.mlflow.tracking_uri, config.mlflow.experiment_name)
            root, experiment = Path(config.base.save_dir_root), config.base.experiment_name
            overrides = config.hydra.overrides.task
            Sweep._run = SweepRun(lambda: Destination.of(keys, root, experiment), self._name, overrides)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Ends the run as finished. Hydra calls this hook only if no job failed."""
        Sweep.end(Status.FINISHED)

    @classmethod
    def end(cls, status: Status) -> None:
        """Ends the sweep's run in this process. Does nothing without a run that is still open."""
        run, cls._run = cls._run, None
        if run is not None:
            run.close(status)


def compose(*overrides: str) -> RunConfig:
    """Returns the configuration that ``textdistill distill`` would run with these overrides.

    Examples:
        >>> config = compose("data.task_name=sst2", "train.max_steps=200")
        >>> config.train.max_steps, config.evaluate.task_name
        (200, 'sst2')

    Args:
        *overrides: the overrides, as on the command line: ``"data.task_name=sst2"``, ``"experiment=reference"``.

    Raises:
        ValueError: an override names no key, or a value does not fit.

    """
    check_overrides(overrides, known_keys())
    try:
        with initialize_config_module("textdistill.conf", version_base="1.3"):
            return to_run_config(hydra_compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise composition_error(error) from error


@cache
def known_keys() -> frozenset[str]:
    """Returns every key of the configuration, with dots."""
    tree = cast("Mapping[str, object]", OmegaConf.to_container(OmegaConf.structured(RunConfig)))
    return frozenset(key for key, _ in flatten(tree))


def load_run_config(run_dir: Path) -> RunConfig:
    """Reads the configuration of a run folder from ``config.yaml``.

    ``base.save_dir`` becomes the run folder, which may have moved since the run.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the file is not a configuration.

    """
    path = RunFolder(run_dir).config
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} must be a run folder with a config.yaml; check the path")
    try:
        tree = OmegaConf.merge(OmegaConf.structured(RunConfig), stored := OmegaConf.load(path))
        config = to_run_config(cast(DictConfig, tree))
        present, whole = (
            dict(flatten(cast(dict[str, object], OmegaConf.to_container(tree))))
            for tree in (stored, OmegaConf.structured(config))
        )
        if present != {key: value for key, value in whole.items() if key in present or key not in LATER_KEYS}:
            raise ValueError("keys are missing")
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ValueError(f"{path} must be the configuration of a run: {error}; restore it from a copy") from error
    checkpoints = Path(config.train.save_ckpt_dir)
    if checkpoints.is_relative_to(config.base.save_dir):
        config.train.save_ckpt_dir = str(run_dir / checkpoints.relative_to(config.base.save_dir))
    config.base.save_dir = str(run_dir)
    return config


def save_run_config(config: RunConfig, path: Path) -> None:
    """Writes a configuration as a ``config.yaml`` that ``load_run_config`` reads."""
    OmegaConf.save(OmegaConf.structured(config), path)


def to_run_config(config: DictConfig) -> RunConfig:
    """Converts Hydra's tree to typed objects and resolves interpolations."""
    run_config = OmegaConf.to_object(config)
    assert isinstance(run_config, RunConfig)
    return run_config


ConfigStore.instance().store(name="run_config", node=RunConfig)
# A model or task may be a path or a hub id. Folders are named after the last part of the path or id.
OmegaConf.register_new_resolver("basename", lambda name: Path(str(name)).name, replace=True)
