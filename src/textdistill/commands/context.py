"""Loads the data and the learner of a configuration, and builds the results of every verb."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, replace
from importlib.metadata import version

from textdistill.config import RunConfig
from textdistill.core.processes import Processes
from textdistill.data.description import describe
from textdistill.data.task import TextTask, load_task
from textdistill.data.tokenized import TokenizedSplit
from textdistill.data.tokens import tokenize
from textdistill.distilled.adapt import check_fits
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.spec import SetMetadata, model_metadata
from textdistill.evaluation.scoring import Scores, majority_class, score, trained_on
from textdistill.method.learner import Learner
from textdistill.runs.results import (
    BaselineSettings,
    ClassScores,
    ModelId,
    RunResult,
    SetShape,
    SetSource,
    SplitSize,
    TrainingSummary,
)

logger = logging.getLogger(__name__)


class RunContext:
    """The data and the learner of a configuration, loaded once for a verb.

    Args:
        config: the configuration.
        processes: the processes of the run.
        data: data in memory, as ``read_memory`` takes them; None to read the source of the configuration.

    Attributes:
        config: the configuration, with everything decided that it leaves to the data and the device.
        processes: the processes of the run.
        task: the texts of the splits.
        learner: the learner, on this process's device.
        splits: the tokens of ``train``, ``validation`` and ``test``.

    Raises:
        ValueError: the configuration or the data are invalid.

    """

    def __init__(self, config: RunConfig, processes: Processes, data: object = None) -> None:
        config.check()
        config, self.processes = config.resolved(processes.device), processes
        with processes.main_first():
            self.task: TextTask = load_task(config.data, config.base.seed, data)
        texts, label = list(self.task.text_columns), self.task.label_column
        self.config = replace(config, data=replace(config.data, text_columns=texts, label_column=label))
        self.learner = Learner(config.model, self.task.class_names)
        if config.data.max_length > self.learner.max_positions:
            raise ValueError(
                f"data.max_length must be at most the {self.learner.max_positions} positions of"
                f" model.model_name={self.learner.name}, got {config.data.max_length}; set"
                f" data.max_length={self.learner.max_positions}"
            )
        with processes.main_first():
            self.splits: dict[str, TokenizedSplit] = tokenize(self.task, self.learner.tokenizer, config.data)
        if processes.main:
            for line in describe(self.task, self.splits, config.data.max_length):
                logger.info("%s", line)
        self.learner.to(processes.device)

    @property
    def metadata(self) -> SetMetadata:
        """Returns the metadata of a set that is distilled from these data for this learner."""
        data = {
            "text_columns": list(self.task.text_columns),
            "label_column": self.task.label_column,
            "protocol": str(self.task.protocol),
            "max_length": self.config.data.max_length,
            "fingerprint": self.task.fingerprint,
        }
        return SetMetadata(self.task.name, self.task.class_names, model_metadata(self.learner), data)

    def result(
        self,
        scores: Scores,
        seconds: float,
        *,
        shape: SetShape | None = None,
        training: TrainingSummary | None = None,
        baseline: BaselineSettings | None = None,
        source: SetSource | None = None,
        peak_memory_bytes: int | None = None,
    ) -> RunResult:
        """Builds a result from scores on the test split and the data, model, seed and versions behind them.

        Raises:
            FloatingPointError: a learner diverged, so its loss is not finite.

        """
        loss = scores.metrics["loss"]
        if not math.isfinite(loss.mean):
            raise FloatingPointError(
                f"the losses of the learners on the test split must be finite, got {loss.values}; lower the"
                " learning rates, or set evaluate.fp16=false"
            )
        majority = majority_class(self.splits["train"], self.splits["test"], self.task.metric_names)
        return RunResult(
            task=self.task.name,
            model=ModelId(self.learner.name, self.learner.revision),
            protocol=str(self.task.protocol),
            splits={name: SplitSize(self.task.sources[name], len(split)) for name, split in self.splits.items()},
            seed=self.config.base.seed,
            metrics=scores.metrics,
            versions={name: version(name) for name in ("textdistill", "torch", "transformers", "datasets")},
            classes=ClassScores(list(self.task.class_names), scores.confusion.tolist(), majority),
            precision=self.config.evaluate.precision.name,
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes,
            shape=shape,
            training=training,
            baseline=baseline,
            source=source,
        )

    def write(self, result: RunResult) -> None:
        """Writes ``results.json`` to the run folder in process 0. Other processes write nothing."""
        if self.processes.main:
            result.write(self.config.run_folder.results)

    def check(self, distilled: DistilledDataset) -> None:
        """Raises ValueError unless the set fits the learner and has the classes of the data."""
        check_fits(distilled, self.learner)
        names, expected = distilled.metadata.class_names, self.task.class_names
        # A set in the reference implementation's format does not state its classes.
        if distilled.metadata.task != "unknown" and names != expected:
            at = next((i for i, (a, b) in enumerate(zip(names, expected, strict=False)) if a != b), None)
            first = "" if at is None else f"; class {at} is {names[at]!r} in the set and {expected[at]!r} in the data"
            raise ValueError(
                f"the data must have the {len(names)} classes of the distilled set (task {distilled.metadata.task!r})"
                f" in their order, got {len(expected)} classes{first}; use the data that the set was made from"
            )

    def score(self, distilled: DistilledDataset) -> Scores:
        """Scores a set on the test split."""
        config = self.config
        return score(
            trained_on(distilled, self.learner, config.base.seed, "evaluation"),
            self.learner, self.splits["test"], self.task.metric_names,
            config.evaluate.n_eval_model, config.data.test_batch_size,
            self.processes, config.evaluate.precision,
        )  # fmt: skip


def set_shape(distilled: DistilledDataset) -> SetShape:
    """Returns the settings of a set, as ``results.json`` states them."""
    return SetShape(asdict(distilled.config), asdict(distilled.inner_config), distilled.metadata.model.name)
