"""The distilled set: how steps read it, and gradients of its raw tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import ModernBertConfig

from tests.support.reference import directional_derivative
from tests.support.sets import ALL, CLS, NONE, a_set, create
from tests.support.words import CLASS_NAMES, VOCABULARY
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.spec import (
    AttentionLabelWeight,
    LabelType,
)
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator, hypergradient
from textdistill.method.inner_loop import fine_tune
from textdistill.method.learner import Learner, ModelConfig, Params
from textdistill.method.losses import task_loss

# --- learning rates


@pytest.mark.parametrize(
    ("for_step", "decay", "expected"),
    [(True, False, [0.3, 0.3, 0.3]), (False, False, [0.3, 0.3, 0.3]), (False, True, [0.3, 0.2, 0.1])],
)
def test_lr_per_step_shared_and_with_linear_decay(
    tiny_learner: Learner, toy_split: TokenizedSplit, for_step: bool, decay: bool, expected: list[float]
) -> None:
    distilled = create(tiny_learner, toy_split, steps=3, lr_for_step=for_step, lr_linear_decay=decay)
    assert distilled.raw["lr"].shape == distilled.raw["lr_scales"].shape[:-1] == ((3,) if for_step else ())
    torch.testing.assert_close(distilled.lr.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    assert [batch.lr.unique().item() for batch in distilled.batches(0)] == distilled.lr.tolist()


def test_every_step_reads_its_own_lr() -> None:
    distilled = a_set(0, steps=3)
    with torch.no_grad():
        distilled.raw["lr"].copy_(torch.tensor([-2.0, 0.0, 2.0]))
    steps = [math.log1p(math.exp(raw)) for raw in (-2, 0, 2)]
    expected = torch.tensor(steps)[:, None] * distilled.raw["lr_scales"].exp()
    torch.testing.assert_close(torch.stack([batch.lr for batch in distilled.batches(0)]), expected)
    scales = distilled.lr_scales
    assert scales is not None
    torch.testing.assert_close(distilled.lr[:, None] * scales, expected)
    torch.testing.assert_close(scales.log().mean(-1), torch.zeros(3), rtol=0, atol=1e-6)


def test_one_lr_for_all_parameters(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    distilled = create(tiny_learner, toy_split, steps=3, lr_for_parameter=False)
    assert "lr_scales" not in distilled.raw
    assert distilled.lr_scales is None
    assert [batch.lr.item() for batch in distilled.batches(0)] == distilled.lr.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("for_step", "decay"), [(True, False), (False, False), (False, True)])
def test_lr_stays_above_zero_where_softplus_underflows(dtype: torch.dtype, for_step: bool, decay: bool) -> None:
    distilled = a_set(0, steps=3, for_step=for_step).to(dtype=dtype)
    distilled.config.lr_linear_decay = decay
    with torch.no_grad():
        distilled.raw["lr"].fill_(-1e4)
    assert (distilled.lr > 0).all()
    (gradient,) = torch.autograd.grad(distilled.lr.sum(), distilled.raw["lr"])
    assert gradient.isfinite().all()


# --- invariants of the raw tensors


@given(st.integers(0, 1000), st.floats(0.01, 20), st.sampled_from([CLS, ALL]))
def test_raw_tensors_become_probabilities_and_positive_rates(
    seed: int, scale: float, attention: AttentionLabelType
) -> None:
    distilled = a_set(seed, attention=attention, scale=scale)
    attention_labels = distilled.attention_labels
    assert attention_labels is not None
    for probabilities in (distilled.labels, attention_labels):
        sums = probabilities.sum(-1)
        assert (probabilities >= 0).all()
        torch.testing.assert_close(sums, torch.ones_like(sums))
    assert (distilled.lr > 0).all()


@given(st.sampled_from([LabelType.hard, LabelType.unrestricted]))
def test_other_labels_are_used_as_they_are(label_type: LabelType) -> None:
    distilled = a_set(0, label_type=label_type)
    assert torch.equal(distilled.labels, distilled.raw["labels"])
    assert distilled.raw["labels"].requires_grad == (label_type is LabelType.unrestricted)


# --- what steps read


def test_steps_cycle_through_the_samples_in_order() -> None:
    distilled = a_set(0, per_label=2, steps=5)
    embeds = distilled.raw["inputs_embeds"]
    for order_seed in (0, 1):
        batches = distilled.batches(order_seed)
        for batch, rows in zip(batches, [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]], strict=True):
            assert torch.equal(batch.inputs_embeds, embeds[rows])
            assert torch.equal(batch.labels, distilled.labels[rows])
            assert batch.attention_labels is not None
            torch.testing.assert_close(batch.attention_labels, distilled.raw["attention_labels"][rows].exp())


def test_weights_of_attention_labels_are_learned_or_equal() -> None:
    distilled = a_set(0)
    assert distilled.attention_weights is not None
    for weight, expected in (("learned", distilled.attention_weights), ("equal", torch.ones(4, 2, 3, 1))):
        distilled.config.attention_label_weight = AttentionLabelWeight(weight)
        batch = distilled.batches(0)[0]
        assert batch.attention_labels is not None
        torch.testing.assert_close(batch.attention_labels.sum(-1), expected[:2])
    assert distilled.attention_weights is None


def test_without_fixed_order_the_seed_draws_each_steps_samples() -> None:
    distilled = a_set(0, per_label=6, steps=4)
    distilled.config.fix_order = False

    def rows(order_seed: int) -> list[list[int]]:
        embeds = distilled.raw["inputs_embeds"].flatten(1)
        return [
            [int((embeds == sample).all(1).nonzero()) for sample in batch.inputs_embeds.flatten(1)]
            for batch in distilled.batches(order_seed)
        ]

    drawn = rows(0)
    assert drawn == rows(0)
    assert drawn != rows(1)
    assert len({tuple(step) for step in drawn}) > 1
    for step in drawn:
        assert len(step) == len(set(step)) == 2
    for batch, step in zip(distilled.batches(0), drawn, strict=True):
        assert torch.equal(batch.labels, distilled.labels[step])


def test_dropout_masks_differ_between_steps_and_seeds() -> None:
    distilled = a_set(0, steps=3)
    seeds = [batch.dropout_seed for order_seed in (0, 1) for batch in distilled.batches(order_seed)]
    assert len(set(seeds)) == 6


# --- gradients of the raw tensors


def outer_loss_of(learner: Learner) -> Callable[[Params], Tensor]:
    ids = torch.randint(5, len(VOCABULARY), (3, 9), generator=torch.Generator().manual_seed(0))
    return lambda params: task_loss(learner(params, {"input_ids": ids}).logits, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    ("label_type", "attention", "weight", "for_step", "decay", "fix_order"),
    [
        (LabelType.soft, CLS, AttentionLabelWeight.learned, True, False, True),
        (LabelType.unrestricted, ALL, AttentionLabelWeight.equal, False, True, True),
        (LabelType.hard, NONE, AttentionLabelWeight.learned, False, False, False),
        (LabelType.soft, CLS, AttentionLabelWeight.equal, True, False, False),
    ],
)
def test_gradients_of_raw_tensors_are_central_differences(
    tiny_learner: Learner,
    toy_split: TokenizedSplit,
    label_type: LabelType,
    attention: AttentionLabelType,
    weight: AttentionLabelWeight,
    for_step: bool,
    decay: bool,
    fix_order: bool,
) -> None:
    """Two batches, three steps: the first batch is used twice and its two contributions add up."""
    distilled = create(
        tiny_learner,
        toy_split,
        steps=3,
        data_per_label=2,
        label_type=label_type,
        attention_label_type=attention,
        attention_label_weight=weight,
        lr_for_step=for_step,
        lr_linear_decay=decay,
        fix_order=fix_order,
    )
    with torch.no_grad():  # unequal rates
        for name in ("lr", "lr_scales"):
            tensor = distilled.raw[name]
            tensor += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    inner_loss = distilled.inner_loss(tiny_learner, exact=True)
    outer_loss, params = outer_loss_of(tiny_learner), tiny_learner.fresh_params(0)
    batches = distilled.batches(order_seed=3)
    result = hypergradient(Estimator.reverse, inner_loss, outer_loss, params, batches)
    gradients = distilled.pull_back(batches, result.grads)

    learned = {name for name, tensor in distilled.raw.items() if tensor.requires_grad}
    assert gradients.keys() == learned == distilled.raw.keys() - ({"labels"} if label_type == "hard" else set())
    for name in learned:
        tensor = distilled.raw[name]
        generator = torch.Generator().manual_seed(len(name))
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()

        def along(step: float) -> float:
            start = tensor.detach().clone()  # noqa: B023
            with torch.no_grad():
                tensor.copy_(start + step * direction)  # noqa: B023
                moved = distilled.batches(order_seed=3)
                tensor.copy_(start)  # noqa: B023
            return float(outer_loss(fine_tune(inner_loss, params, moved)))

        assert gradients[name].shape == tensor.shape
        slope = float((gradients[name] * direction).sum())
        assert slope == pytest.approx(directional_derivative(along), rel=1e-6, abs=1e-9), name


def test_contributions_of_a_sample_used_in_several_steps_add_up() -> None:
    distilled = a_set(0, label_type=LabelType.unrestricted, attention=NONE, per_label=2, steps=3, for_step=False)
    batches = distilled.batches(0)
    parts = [
        {name: torch.full_like(tensor, 10.0**t) for name, tensor in {**batch.learned, "lr": batch.lr}.items()}
        for t, batch in enumerate(batches)
    ]
    gradients = distilled.pull_back(batches, parts)
    for name in ("inputs_embeds", "labels"):
        assert gradients[name][:2].unique().tolist() == [101.0]
        assert gradients[name][2:].unique().tolist() == [10.0]
    lr, scales = distilled.raw["lr"].detach(), distilled.raw["lr_scales"].detach().exp()
    torch.testing.assert_close(gradients["lr"], 111 * torch.sigmoid(lr) * scales.sum())
    torch.testing.assert_close(gradients["lr_scales"], 111 * torch.nn.functional.softplus(lr) * scales)


def test_labels_of_keys_out_of_reach_stay_zero(
    save_model: Callable[..., Path], toy_split: TokenizedSplit, tmp_path: Path
) -> None:
    """ModernBERT's local layers, here with windows of two keys to each side."""
    config = ModernBertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        local_attention=4,
        layer_types=["full_attention", "sliding_attention"],
        pad_token_id=0,
        cls_token_id=2,
        bos_token_id=2,
        sep_token_id=3,
        eos_token_id=3,
    )
    learner = Learner(ModelConfig(model_name=str(save_model(config, tmp_path / "modernbert"))), CLASS_NAMES)
    distilled = create(learner, toy_split, attention_label_type=ALL)
    window = (torch.arange(7)[:, None] - torch.arange(7)).abs() <= 2
    attention_labels = distilled.attention_labels
    assert attention_labels is not None
    assert (attention_labels[:, 0] > 0).all()
    assert torch.equal(attention_labels[:, 1] > 0, window.expand(3, 4, 7, 7))

    batches = distilled.batches(0)
    result = hypergradient(
        Estimator.difference,
        distilled.inner_loss(learner),
        outer_loss_of(learner),
        learner.fresh_params(0),
        batches,
        eps=3e-5,  # in so few weights the default step rounds away
    )
    gradient = distilled.pull_back(batches, result.grads)["attention_labels"]
    assert gradient.isfinite().all()
    assert not gradient[:, 1, :, ~window].any()
    assert gradient[:, 1].any(-1).all()


def test_tensors_of_other_shapes_are_refused() -> None:
    distilled = a_set(0)
    raw = {**distilled.raw, "lr": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"must have shapes .*'lr': \(2,\).*, got .*'lr': \(3,\)"):
        DistilledDataset(raw, distilled.config, distilled.inner_config, distilled.metadata)


def test_moving_nowhere_keeps_the_leaves(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    distilled = create(tiny_learner, toy_split)
    leaves = dict(distilled.raw)
    distilled.to(tiny_learner.device, tiny_learner.dtype)
    assert all(distilled.raw[name] is leaf for name, leaf in leaves.items())
