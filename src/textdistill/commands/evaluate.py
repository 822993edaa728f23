"""``evaluate``, ``baseline`` and ``verify``: scores of saved sets and of baselines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from textdistill.commands.context import Results, RunContext, set_shape, write_results
from textdistill.config import RunConfig
from textdistill.core.precision import Precision
from textdistill.core.processes import Processes
from textdistill.distilled.adapt import adapt_to
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.inspection import find_anomalies
from textdistill.evaluation.baselines import Baseline, Training, coresets, full_data, inner_loop, ordinary
from textdistill.evaluation.scoring import score


def evaluate(distilled_dir: str | Path, config: RunConfig) -> Results:
    """Scores a saved set on the reported split of ``config.data`` and writes ``results.json`` to the run folder.

    With another encoder than the set was made for, attention labels are left out where layers or heads differ.

    Examples:
        >>> from textdistill import compose
        >>> data = ["data.task_name=mine", "data.path=reviews.csv"]
        >>> data += ["data.text_columns=[text]", "data.label_column=label"]
        >>> evaluate("DISTILLED_DIR", compose(*data, "evaluate.n_eval_model=2"))["metrics"]["accuracy"]["n"]
        2

    Raises:
        ValueError: the set does not fit the data or the model.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    context = RunContext(config)
    distilled = adapt_to(distilled, context.learner)
    context.check(distilled)
    distilled.to(context.learner.device)
    started = time.monotonic()
    results = context.results(context.score(distilled)) | set_shape(distilled)
    source = {"distilled": str(distilled_dir), "distilled_revision": distilled.revision}
    results |= source | {"seconds": time.monotonic() - started}
    write_results(config.run_folder.results, results)
    return results


def baseline(kind: str, config: RunConfig, training: Training = Training.inner_loop) -> Results:
    """Scores a baseline on the reported split and writes ``results.json`` to the run folder.

    Examples:
        >>> from textdistill import compose
        >>> data = ["data.task_name=mine", "data.path=reviews.csv"]
        >>> data += ["data.text_columns=[text]", "data.label_column=label"]
        >>> results = baseline("random", compose(*data, "distilled_data.data_per_label=2"))
        >>> results["data_per_label"]
        2

    Args:
        kind: ``full``, ``random``, ``k-centers`` or ``herding``; a coreset has as many samples as the distilled set
            of ``config`` would have.
        config: see there.
        training: of learners on a coreset, ``inner_loop`` or ``ordinary``.

    """
    if kind not in list(Baseline):
        raise ValueError(f"unknown baseline {kind!r}; known baselines: {', '.join(Baseline)}")
    kind = Baseline(kind)
    context, processes = RunContext(config), Processes()
    data, seed, train = config.data, config.base.seed, context.splits["train"]
    precision = Precision.of(bf16=config.train.bf16)
    started = time.monotonic()
    count = config.evaluate.n_eval_model
    extra: dict[str, Any] = {"baseline": kind}
    if kind is Baseline.full:
        count = 1
        trained = full_data(
            context.learner, context.splits, data.train_batch_size, data.valid_batch_size, seed, processes, precision
        )
    else:
        shape, inner = config.distilled_data, config.learner_train
        rows = coresets(kind, context.learner, train, shape.data_per_label, data.valid_batch_size, seed)
        extra |= {"training": training, "data_per_label": shape.data_per_label}
        if training is Training.ordinary:
            trained = ordinary(context.learner, train, rows, seed, precision)
        else:
            trained, extra["lr"] = inner_loop(
                context.learner, context.splits, rows, inner, data.valid_batch_size, seed, processes
            )
            extra["train_step"] = inner.train_step
    scores = score(
        trained, context.learner, context.splits["test"], context.task.metric_names, count, data.test_batch_size,
        processes, config.evaluate.precision, description=f"evaluate {kind}",
    )  # fmt: skip
    results = context.results(scores) | extra | {"seconds": time.monotonic() - started}
    write_results(config.run_folder.results, results)
    return results


def verify(distilled_dir: str | Path, config: RunConfig) -> dict[str, Any]:
    """Checks a saved set's files, measures again the score that its card states, and looks for what is unusual.

    Args:
        distilled_dir: folder or hub id of the set.
        config: the data and model to measure with.

    Returns:
        ``metrics``: for each, ``stated`` and ``measured`` (mean, std, n) and ``within``, whether the measured mean is
        no further from the stated one than the stated standard deviation; ``verified``, whether all are; ``same_data``
        and ``same_model``, whether data and model are those that the card names; ``unusual``, see ``inspection``.

    Raises:
        ValueError: a file is damaged or was changed; the set does not fit; or its card states no score.

    """
    distilled = DistilledDataset.from_pretrained(distilled_dir)
    stated = distilled.metadata.provenance.get("scores")
    if not isinstance(stated, dict):
        raise ValueError(f"{distilled_dir}: the card must state a score to be verified, as that of a finished run does")
    context = RunContext(config)
    context.check(distilled)
    distilled.to(context.learner.device)
    found = {}
    for name, measured in context.score(distilled).items():
        try:
            mean, std, n = (stated[name][key] for key in ("mean", "std", "n"))
            # Without a spread only the same score will do, but for rounding.
            within = abs(measured.mean - mean) <= (std or 0.0) + 1e-6
        except (KeyError, TypeError) as error:
            raise ValueError(f"{distilled_dir}: the card must state mean, std and n of {name} ({error!r})") from error
        values = {"mean": measured.mean, "std": measured.std, "n": measured.n}
        found[name] = {"stated": {"mean": mean, "std": std, "n": n}, "measured": values, "within": within}
    return {
        "metrics": found,
        "verified": all(metric["within"] for metric in found.values()),
        "same_data": distilled.metadata.data.get("fingerprint") == context.task.fingerprint,
        "same_model": distilled.metadata.model.revision == context.learner.revision,
        "unusual": find_anomalies(distilled),
    }
