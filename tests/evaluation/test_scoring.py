"""Scores: every row once, learners that do not depend on their number, figures checked by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.words import CLASS_NAMES
from textdistill.core.precision import Precision
from textdistill.core.processes import Processes
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import DistilledDataConfig, LearnerTrainConfig, SetMetadata, model_metadata
from textdistill.evaluation import scoring as evaluation
from textdistill.evaluation.config import EvaluateConfig
from textdistill.evaluation.scoring import LearnerFactory, majority_class, metrics, score, trained_on
from textdistill.method.learner import Learner
from textdistill.runs.results import Score


def trained_learners(learner: Learner, split: TokenizedSplit) -> LearnerFactory:
    """Learners of a distilled set whose steps matter and draw their samples at random."""
    config = DistilledDataConfig(data_per_label=2, seq_length=4, lr_init=1.0, fix_order=False)
    metadata = SetMetadata("toy", CLASS_NAMES, model_metadata(learner))
    distilled = initial_set(config, LearnerTrainConfig(train_step=2), metadata, learner, split, seed=0)
    return trained_on(distilled, learner, 0, "evaluation")


@pytest.fixture(scope="module")
def trained(tiny_learner: Learner, toy_split: TokenizedSplit) -> LearnerFactory:
    return trained_learners(tiny_learner, toy_split)


def test_learner_does_not_depend_on_how_many_are_scored(
    trained: LearnerFactory, tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    two, four, again = (score(trained, tiny_learner, toy_split, (), n, 10, Processes()).metrics for n in (2, 4, 4))
    assert four == again
    for name in ("loss", "accuracy"):
        assert four[name].values[:2] == two[name].values
    assert len(set(four["loss"].values)) == 4
    # Nor on the learners before it.
    assert (
        score(lambda _: trained(3), tiny_learner, toy_split, (), 1, 10, Processes()).metrics["loss"].mean
        == four["loss"].values[3]
    )


def test_every_learner_has_a_head_and_an_order_of_its_own(
    tiny_learner: Learner, toy_split: TokenizedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = lambda _, params, batches: params | {"read": batches[0].inputs_embeds}  # noqa: E731
    monkeypatch.setattr("textdistill.distilled.adapt.fine_tune", read)
    trained = trained_learners(tiny_learner, toy_split)
    first, second = trained(0), trained(1)
    different = {name for name in first if not torch.equal(first[name], second[name])}
    assert different == {"classifier.weight", "read"}


def test_learners_have_streams_of_their_own(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    config, metadata = DistilledDataConfig(seq_length=4), SetMetadata("toy", CLASS_NAMES, model_metadata(tiny_learner))
    distilled = initial_set(config, LearnerTrainConfig(), metadata, tiny_learner, toy_split, seed=0)
    heads = [
        trained_on(distilled, tiny_learner, seed, purpose)(0)["classifier.weight"]
        for seed, purpose in ((0, "evaluation"), (1, "evaluation"), (0, "validation"))
    ]
    assert all(not torch.allclose(heads[i], heads[j], rtol=0.1) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_every_row_is_scored_once(
    batch_size: int,
    trained: LearnerFactory,
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against one plain transformers forward pass for each row, without padding."""
    model = tiny_learner.to_model(trained(0))
    with torch.no_grad():
        rows = [model(ids[None]).logits[0] for ids in token_ids(toy_split)]
    expected = torch.stack(rows).float()
    scored: list[torch.Tensor] = []

    def spy(logits: torch.Tensor, *args: Any) -> dict[str, float]:
        scored.append(logits.clone())
        return metrics(logits, *args)

    monkeypatch.setattr(evaluation, "metrics", spy)
    result = score(trained, tiny_learner, toy_split, (), 1, batch_size, Processes()).metrics
    torch.testing.assert_close(scored[0], expected, rtol=1e-5, atol=1e-6)
    hits = [int(row.argmax()) == label for row, label in zip(expected, toy_split.labels, strict=True)]
    assert result["accuracy"].mean == sum(hits) / len(hits)
    losses = [-row.log_softmax(-1)[label].item() for row, label in zip(expected, toy_split.labels, strict=True)]
    assert result["loss"].mean == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def token_ids(split: TokenizedSplit) -> list[torch.Tensor]:
    return list(torch.from_numpy(split.ids).long().split(split.lengths.tolist()))


def test_bfloat16_changes_little(tiny_learner32: Learner, toy_split: TokenizedSplit) -> None:
    trained = trained_learners(tiny_learner32, toy_split)
    full = score(trained, tiny_learner32, toy_split, (), 1, 10, Processes()).metrics["loss"].mean
    half = (
        score(trained, tiny_learner32, toy_split, (), 1, 10, Processes(), Precision.of(bf16=True)).metrics["loss"].mean
    )
    assert half != full
    assert half == pytest.approx(full, rel=0.05)


def logits_for(predicted: list[int]) -> torch.Tensor:
    return torch.eye(2)[predicted]


def test_f1_and_combined_by_hand() -> None:
    # Of class 1: 2 hits, 1 false alarm, 2 misses.
    result = metrics(logits_for([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 1, 0]), ("accuracy", "f1", "combined"))
    f1 = 2 * 2 / (2 * 2 + 1 + 2)
    assert result["accuracy"] == pytest.approx(3 / 6)
    assert result["f1"] == pytest.approx(f1)
    assert result["combined"] == pytest.approx((3 / 6 + f1) / 2)
    every = ["accuracy", "macro_f1", "balanced_accuracy", "mcc", "loss"]
    assert list(metrics(logits_for([1, 0]), np.array([1, 0]), ("accuracy",))) == every


def test_scores_by_class_by_hand() -> None:
    """Of classes 0, 1 and 2 with 4, 2 and 1 rows: hits 3, 1 and 0; class 0 is predicted five times, 1 and 2 once."""
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 2]), [0, 0, 0, 2, 0, 1, 0]
    result = metrics(torch.eye(3)[predicted], labels, ())
    assert result["accuracy"] == pytest.approx(4 / 7)
    assert result["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert result["macro_f1"] == pytest.approx((2 * 3 / (4 + 5) + 2 * 1 / (2 + 1) + 0) / 3)
    # The multiclass coefficient: covariance of truth and prediction over both deviations.
    covariance = 4 * 7 - (4 * 5 + 2 * 1 + 1 * 1)
    deviations = math.sqrt(7**2 - (5**2 + 1 + 1)) * math.sqrt(7**2 - (4**2 + 2**2 + 1))
    assert result["mcc"] == pytest.approx(covariance / deviations)


def test_class_without_a_row_is_in_no_mean() -> None:
    """Whether a learner predicts it or not; a row lost to it counts as one that is wrong."""
    labels = np.array([0, 0, 1, 1])
    for predicted, f1_of_0 in (([0, 0, 1, 1], 1.0), ([0, 2, 1, 1], 2 / 3)):
        result = metrics(torch.eye(3)[predicted], labels, ())
        assert result["macro_f1"] == pytest.approx((f1_of_0 + 1) / 2)
        assert result["balanced_accuracy"] == pytest.approx((sum(label == 0 for label in predicted) / 2 + 1) / 2)


def test_confusion_matrix_counts_every_row_of_every_learner(
    trained: LearnerFactory, tiny_learner: Learner, toy_split: TokenizedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[torch.Tensor] = []

    def spy(logits: torch.Tensor, *args: Any) -> dict[str, float]:
        scored.append(logits.clone())
        return metrics(logits, *args)

    monkeypatch.setattr(evaluation, "metrics", spy)
    confusion = score(trained, tiny_learner, toy_split, (), 2, 10, Processes()).confusion
    expected = np.zeros((3, 3))
    for logits in scored:
        for label, predicted in zip(toy_split.labels, logits.argmax(-1), strict=True):
            expected[label, predicted] += 1
    assert (confusion == expected).all()
    assert confusion.sum() == 2 * len(toy_split)


def test_majority_class_by_hand(toy_split: TokenizedSplit) -> None:
    """Nine rows in ten of the training split are of class 1; of the test rows one in four is."""
    train = dataclasses.replace(toy_split, labels=np.array([1] * 9 + [0]))
    test = dataclasses.replace(toy_split, labels=np.array([0, 0, 0, 1]))
    majority = majority_class(train, test, ("f1",))
    assert (majority.index, majority.share) == (1, pytest.approx(0.9))
    assert majority.metrics["accuracy"] == 0.25
    assert majority.metrics["balanced_accuracy"] == 0.5
    assert majority.metrics["macro_f1"] == pytest.approx((0 + 2 / 5) / 2)
    assert majority.metrics["mcc"] == 0.0
    assert majority.metrics["f1"] == pytest.approx(2 / 5)
    assert majority.metrics["loss"] == pytest.approx(-(3 * math.log(0.1) + math.log(0.9)) / 4)


def test_f1_without_a_positive_prediction_is_zero() -> None:
    assert metrics(logits_for([0, 0]), np.array([1, 0]), ("f1",))["f1"] == 0.0


def test_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, np.log(3.0)], [0.0, 0.0]])
    result = metrics(logits, np.array([1, 0]), ())
    assert result["loss"] == pytest.approx((np.log(4 / 3) + np.log(2)) / 2)
    assert result["accuracy"] == 1.0


def test_deviation_is_that_of_a_sample() -> None:
    found = Score.of([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.std == pytest.approx(((4 + 1 + 9) / 2) ** 0.5)
    assert (found.n, found.values) == (3, [1.0, 2.0, 6.0])
    assert math.isnan(Score.of([1.0, math.nan]).std or 0.0)
    assert dataclasses.asdict(Score.of([0.5])) == {"mean": 0.5, "std": None, "n": 1, "values": [0.5]}


def test_values_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.n_eval_model must be at least 1, got 0"):
        EvaluateConfig(n_eval_model=0).check()
    with pytest.raises(ValueError, match=r"evaluate\.fp16 and evaluate\.bf16 exclude each other"):
        EvaluateConfig(fp16=True, bf16=True).check()
