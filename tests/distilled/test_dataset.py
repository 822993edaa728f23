"""The distilled set: how steps read it, gradients of its raw tensors, folders, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, ModernBertConfig

from tests.support.models import tiny_bert_config
from tests.support.reference import directional_derivative
from tests.support.toy import OURS, write_reference_folder
from tests.support.words import CLASS_NAMES, VOCABULARY
from textdistill.core.seeding import stream_seed
from textdistill.data.tokens import TokenizedSplit
from textdistill.distilled import hub, storage
from textdistill.distilled.adapt import adapt_to, check_fits
from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.initial import initial_set
from textdistill.distilled.spec import (
    AttentionLabelWeight,
    DistilledDataConfig,
    Init,
    LabelType,
    LearnerTrainConfig,
    ModelMetadata,
    SetMetadata,
    model_metadata,
)
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator, hypergradient
from textdistill.method.inner_loop import fine_tune
from textdistill.method.learner import Learner, ModelConfig, Params
from textdistill.method.losses import task_loss

NONE, CLS, ALL = AttentionLabelType
SMALL = {"seq_length": 7, "lr_init": 0.3}


def create(
    learner: Learner, split: TokenizedSplit, steps: int = 1, batch_size: int = 1, seed: int = 0, **kwargs: Any
) -> DistilledDataset:
    config = DistilledDataConfig(**(SMALL | kwargs))
    metadata = SetMetadata("toy", CLASS_NAMES, model_metadata(learner))
    return initial_set(config, LearnerTrainConfig(steps, batch_size), metadata, learner, split, seed)


# --- the set before training


@pytest.mark.parametrize("label_type", [NONE, CLS, ALL])
def test_create_has_the_shapes_of_the_design(
    tiny_learner: Learner, toy_split: TokenizedSplit, label_type: AttentionLabelType
) -> None:
    distilled = create(tiny_learner, toy_split, steps=2, data_per_label=2, attention_label_type=label_type)
    shapes = {name: tuple(tensor.shape) for name, tensor in distilled.raw.items()}
    expected = {"inputs_embeds": (6, 7, 16), "labels": (6, 3), "lr": (2,)}
    expected["lr_scales"] = (2, len(tiny_learner.fresh_params(0)))
    if label_type is not NONE:
        expected["attention_labels"] = (6, 2, 4, label_type.rows(7), 7)
    assert shapes == expected
    assert len(distilled) == 6
    assert torch.equal(distilled.labels.argmax(-1), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert distilled.metadata.model == model_metadata(tiny_learner)
    assert {tensor.dtype for tensor in distilled.raw.values()} == {torch.float64}


@pytest.mark.parametrize("init", list(Init))
def test_create_depends_on_the_seed_only(tiny_learner: Learner, toy_split: TokenizedSplit, init: Init) -> None:
    torch.manual_seed(0)
    first = create(tiny_learner, toy_split, init=init, attention_label_type=CLS)
    torch.manual_seed(1)
    again, other = (create(tiny_learner, toy_split, init=init, attention_label_type=CLS, seed=seed) for seed in (0, 1))
    assert all(torch.equal(first.raw[name], again.raw[name]) for name in first.raw)
    for name in ("inputs_embeds", "attention_labels"):
        assert not torch.equal(first.raw[name], other.raw[name])


@pytest.mark.parametrize("length", [3, 30])
def test_real_init_is_a_text_of_the_class_tiled(
    tiny_learner32: Learner, toy_split: TokenizedSplit, length: int
) -> None:
    distilled = create(tiny_learner32, toy_split, seq_length=length, data_per_label=2, init=Init.real)

    def tiled(row: int) -> Tensor:
        ids = torch.from_numpy(toy_split.ids[toy_split.offsets[row] : toy_split.offsets[row + 1]]).long()
        return tiny_learner32.embed(torch.stack([ids[i % len(ids)] for i in range(length)]))

    found = []
    for sample, embeds in enumerate(distilled.raw["inputs_embeds"]):
        rows = [row for row in range(len(toy_split)) if toy_split.labels[row] == sample % 3]
        found.append({row for row in rows if torch.equal(tiled(row), embeds)})
        assert found[-1], f"sample {sample} is no text of its class"
    if length == 30:
        assert all(found[i].isdisjoint(found[i + 3]) for i in range(3)), "a text was drawn twice"


def test_noise_init_is_standard_normal(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    embeds = create(tiny_learner, toy_split, seq_length=60, init=Init.noise).raw["inputs_embeds"].detach()
    assert float(embeds.mean()) == pytest.approx(0, abs=0.05)
    assert float(embeds.std()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("init", list(Init))
def test_attention_labels_start_as_noise(tiny_learner: Learner, toy_split: TokenizedSplit, init: Init) -> None:
    distilled = create(tiny_learner, toy_split, seq_length=60, init=init, attention_label_type=ALL)
    logits = distilled.raw["attention_labels"].detach()
    centred = logits - logits.mean(-1, keepdim=True)
    assert float(centred.std()) == pytest.approx(1, rel=0.05)
    weights = distilled.attention_weights
    assert weights is not None
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("lr_init", [1e-6, 0.01, 1.0, 1000.0])
def test_lr_starts_at_lr_init(tiny_learner: Learner, toy_split: TokenizedSplit, lr_init: float) -> None:
    assert create(tiny_learner, toy_split, lr_init=lr_init).lr.item() == pytest.approx(lr_init, rel=1e-5)


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


def a_set(
    seed: int,
    label_type: LabelType = LabelType.soft,
    attention: AttentionLabelType = CLS,
    per_label: int = 2,
    length: int = 3,
    steps: int = 2,
    for_step: bool = True,
    scale: float = 1.0,
) -> DistilledDataset:
    """Random raw tensors; 2 classes, width 4, 2 layers, 3 heads, 3 parameters."""
    generator = torch.Generator().manual_seed(seed)
    count, rows = 2 * per_label, attention.rows(length)
    shapes = {"inputs_embeds": (count, length, 4), "labels": (count, 2), "lr": (steps,) if for_step else ()}
    shapes["lr_scales"] = (*shapes["lr"], 3)
    if rows:
        shapes["attention_labels"] = (count, 2, 3, rows, length)
    raw = {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = DistilledDataConfig(
        data_per_label=per_label,
        attention_label_type=attention,
        seq_length=length,
        label_type=label_type,
        lr_for_step=for_step,
    )
    model = ModelMetadata(
        "some/model", None, embedding_size=4, num_layers=2, num_heads=3, parameters=("body.a", "body.b", "head")
    )
    metadata = SetMetadata("toy", ("no", "yes"), model, {"path": "x"}, {"seed": seed})
    return DistilledDataset(raw, config, LearnerTrainConfig(steps, 1), metadata)


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


# --- folders


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(list(LabelType)),
    st.sampled_from([NONE, CLS, ALL]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
def test_what_is_saved_is_what_is_loaded(
    seed: int,
    label_type: LabelType,
    attention: AttentionLabelType,
    per_label: int,
    length: int,
    steps: int,
    for_step: bool,
) -> None:
    distilled = a_set(seed, label_type, attention, per_label, length, steps, for_step)
    with tempfile.TemporaryDirectory() as folder:
        distilled.save_pretrained(Path(folder, "set"), outer_steps=3)
        loaded = DistilledDataset.from_pretrained(Path(folder, "set"))
    assert loaded.raw.keys() == distilled.raw.keys()
    for name, tensor in distilled.raw.items():
        assert torch.equal(loaded.raw[name], tensor)
        assert loaded.raw[name].requires_grad == tensor.requires_grad
    assert loaded.config == distilled.config
    assert loaded.inner_config == distilled.inner_config
    assert loaded.metadata == SetMetadata(
        "toy",
        ("no", "yes"),
        distilled.metadata.model,
        {"path": "x"},
        {"seed": seed, "outer_steps": 3},
    )


def test_the_card_names_task_model_and_shapes(tmp_path: Path) -> None:
    a_set(0).save_pretrained(tmp_path / "set")
    readme = (tmp_path / "set" / "README.md").read_text()
    assert "# toy, distilled for some/model" in readme
    assert 'from_pretrained("PATH")' in readme
    assert "`attention_labels`: (4, 2, 3, 1, 3)" in readme


# Keys of config.json and values of another type or out of range.
WRONG: list[tuple[str, Any, str]] = [
    ("task", 5, "task must be a string, got 5"),
    ("class_names", "ab", "class_names must be a list, got 'ab'"),
    ("class_names", ["no", 1], "class_names[1] must be a string, got 1"),
    ("class_names", ["no", "no"], "class_names must be one or more distinct strings, got ('no', 'no')"),
    ("class_names", [], "class_names must be one or more distinct strings, got ()"),
    ("class_names", ["x" * 10**6, None], "class_names[1] must be a string, got None"),
    ("class_names", ["x" * 10**5] * 2, "class_names must be one or more distinct strings, got ('xxx"),
    ("class_names", ["a", "b", "c"], "tensors of a distilled set must have shapes"),
    ("model", [], "model must be an object, got []"),
    ("model.name", None, "model.name must be a string, got None"),
    ("model.revision", 1, "model.revision must be a string, got 1"),
    ("model.embedding_size", "4", "model.embedding_size must be a whole number from 1 to 2^63 - 1, got '4'"),
    ("model.num_layers", 0, "model.num_layers must be a whole number"),
    ("model.num_heads", True, "model.num_heads must be a whole number"),
    ("model.num_heads", 2**62, "tensors of a distilled set must have shapes"),
    ("model.parameters", "weight", "model.parameters must be a list, got 'weight'"),
    ("model.parameters", ["weight"], "tensors of a distilled set must have shapes"),
    ("model.extra", 1, "model must have the keys"),
    ("extra", 1, "the file must have the keys"),
    ("data", None, "data must be an object, got None"),
    ("provenance", [], "provenance must be an object, got []"),
    ("distilled_data", None, "distilled_data must be an object, got None"),
    ("distilled_data.label_type", "hards", "distilled_data.label_type must be one of hard, soft, unrestricted"),
    ("distilled_data.attention_label_type", None, "must be one of none, cls, all, got None"),
    ("distilled_data.data_per_label", 10**300, "distilled_data.data_per_label must be a whole number"),
    ("distilled_data.data_per_label", 2**62, "tensors of a distilled set must have shapes"),
    ("distilled_data.seq_length", 2**62, "tensors of a distilled set must have shapes"),
    ("distilled_data.lr_init", "0.1", "distilled_data.lr_init must be a number, got '0.1'"),
    ("distilled_data.lr_init", -1, "distilled_data.lr_init must be above 0 and finite, got -1.0"),
    ("distilled_data.fix_order", 1, "distilled_data.fix_order must be true or false, got 1"),
    ("distilled_data.__class__", {}, "distilled_data must have the keys"),
    ("learner_train.train_step", 0, "learner_train.train_step must be a whole number"),
    ("learner_train.batch_size_per_label", 3, "learner_train.batch_size_per_label must be from 1 to"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_a_card_of_wrong_values_is_refused_by_key(tmp_path: Path, key: str, value: Any, message: str) -> None:
    a_set(0).save_pretrained(tmp_path / "set")
    path = tmp_path / "set" / "config.json"
    card = json.loads(path.read_text())
    *groups, last = key.split(".")
    group = card
    for name in groups:
        group = group[name]
    group[last] = value
    del card["config_sha256"]
    path.write_bytes(storage.sealed(card))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        DistilledDataset.from_pretrained(tmp_path / "set")
    assert str(path) in str(error.value)
    assert "restore the folder from its source" in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    "key",
    [
        *("task", "class_names", "model", "data", "provenance", "distilled_data", "learner_train", "model.name"),
        *("model.revision", "distilled_data.lr_init", "learner_train.train_step"),
    ],
)
def test_a_card_without_a_key_is_refused(tmp_path: Path, key: str) -> None:
    a_set(0).save_pretrained(tmp_path / "set")
    path = tmp_path / "set" / "config.json"
    card = json.loads(path.read_text())
    *groups, last = key.split(".")
    del (card[groups[0]] if groups else card)[last]
    del card["config_sha256"]
    path.write_bytes(storage.sealed(card))
    with pytest.raises(ValueError, match=re.escape(f"missing ['{last}']")) as error:
        DistilledDataset.from_pretrained(tmp_path / "set")
    assert str(path) in str(error.value)


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    a_set(0).to(dtype=torch.float64).save_pretrained(tmp_path / "set")
    tensors, config = storage.load_folder(tmp_path / "set")
    tensors["lr"][0] = 1e300
    storage.save_folder(tmp_path / "set", tensors, config, "")
    with pytest.raises(ValueError, match=r"distilled.safetensors: tensor 'lr' must hold finite values"):
        DistilledDataset.from_pretrained(tmp_path / "set")


@pytest.mark.parametrize("label_type", list(LabelType))
@pytest.mark.parametrize("attention", [NONE, CLS, ALL])
@pytest.mark.parametrize("for_step", [True, False])
def test_the_references_format_is_read(
    tmp_path: Path, label_type: LabelType, attention: AttentionLabelType, for_step: bool
) -> None:
    distilled = a_set(0, label_type, attention, for_step=for_step)
    write_reference_folder(tmp_path, distilled)
    loaded = DistilledDataset.from_pretrained(tmp_path)
    assert loaded.raw.keys() == distilled.raw.keys() - {"lr_scales"}
    assert all(torch.equal(tensor, distilled.raw[name]) for name, tensor in loaded.raw.items())
    assert loaded.inner_config == distilled.inner_config
    theirs = {key: value for key, value in asdict(distilled.config).items() if key not in OURS}
    ours = {"init": Init.noise, "attention_label_weight": AttentionLabelWeight.equal, "lr_for_parameter": False}
    assert asdict(loaded.config) == theirs | ours
    assert loaded.metadata.model.embedding_size == 4
    assert len(loaded.metadata.class_names) == 2


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "hidden_size", 5, "must have shapes"),
        (None, "num_heads", 2, "must have shapes"),
        (None, "num_labels", 2**60, "must have shapes"),
        (None, "num_labels", "2", "num_labels must be a whole number"),
        (None, "num_labels", 0, "num_labels must be a whole number"),
        (None, "num_heads", 2.0, "num_heads must be a whole number"),
        (None, "config", None, "config must be an object"),
        (None, "train_config", [], "train_config must be an object"),
        ("config", "seq_length", 4, "must have shapes"),
        ("config", "data_per_label", 1, "must have shapes"),
        ("config", "attention_label_type", "all", "must have shapes"),
        ("config", "attention_label_type", "none", "must have shapes"),
        ("config", "lr_for_step", False, "must have shapes"),
        ("config", "lr_for_step", "no", "config.lr_for_step must be true or false"),
        ("config", "unknown", 1, "config must have the keys"),
        ("train_config", "train_step", 3, "must have shapes"),
    ],
)
def test_a_reference_card_that_contradicts_its_tensors_is_refused(
    tmp_path: Path, section: str | None, key: str, value: Any, message: str
) -> None:
    write_reference_folder(tmp_path, a_set(0))
    path = tmp_path / "config.json"
    card = json.loads(path.read_text())
    (card[section] if section else card)[key] = value
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        DistilledDataset.from_pretrained(tmp_path)
    assert str(path) in str(error.value)


def test_shared_names_no_place_and_changes_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    distilled = a_set(0)
    distilled.config.pretrained_data_path = "/home/me/earlier"
    distilled.metadata = SetMetadata(
        "/home/me/tasks/mine",
        ("/r/news", "~"),
        replace(distilled.metadata.model, name="/home/me/models/tiny"),
        {"text_columns": ["text"]},
        {"seed": 1, "config": {"data": {"path": "data", "max_length": 32}}},
    )
    shared = distilled.without_local_paths()
    assert shared.metadata == SetMetadata(
        "mine",
        ("/r/news", "~"),
        replace(distilled.metadata.model, name="tiny"),
        {"text_columns": ["text"]},
        {"seed": 1, "config": {"data": {"max_length": 32}}},
    )
    assert shared.config.pretrained_data_path is None
    assert all(torch.equal(shared.raw[name], tensor) for name, tensor in distilled.raw.items())
    assert "name the model tiny: /home/me/models/tiny is a folder of this machine" in caplog.text
    assert distilled.metadata.task == "/home/me/tasks/mine"


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_the_precision_of_the_file_is_known(tmp_path: Path, dtype: torch.dtype | None) -> None:
    a_set(0).save_pretrained(tmp_path / "set", dtype)
    assert DistilledDataset.from_pretrained(tmp_path / "set").stored_dtype == (dtype or torch.float32)
    assert a_set(0).stored_dtype is None


# --- in other hands


@pytest.mark.parametrize("label_type", list(LabelType))
@pytest.mark.parametrize("attention", [NONE, CLS, ALL])
@pytest.mark.parametrize("fix_order", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_dataset_is_what_the_steps_read(
    label_type: LabelType, attention: AttentionLabelType, fix_order: bool, dtype: torch.dtype
) -> None:
    distilled = a_set(0, label_type, attention, per_label=2, steps=3).to(dtype=dtype)
    distilled.config.fix_order = fix_order
    dataset = distilled.as_dataset(order_seed=5)
    names = ["step", "lr", "inputs_embeds", "labels"] + ([] if attention is NONE else ["attention_labels"])
    assert dataset.column_names == names
    assert dataset["step"][:].tolist() == [0, 0, 1, 1, 2, 2]
    for step, batch in enumerate(distilled.batches(5)):
        rows = dataset[2 * step : 2 * step + 2]
        assert rows["lr"].tolist() == [batch.lr.float().tolist()] * 2
        for name, tensor in batch.learned.items():
            assert rows[name].dtype == torch.float32
            assert torch.equal(rows[name], tensor.float())


def test_as_dataset_survives_the_disk(tmp_path: Path) -> None:
    dataset = a_set(0, attention=ALL).as_dataset()
    dataset.to_parquet(tmp_path / "set.parquet")
    again = Dataset.from_parquet(str(tmp_path / "set.parquet"), cache_dir=str(tmp_path)).with_format("torch")
    assert again.features == dataset.features
    for name in dataset.column_names:
        assert torch.equal(again[:][name], dataset[:][name])


# --- fine-tuning a model


def test_finetune_is_the_learner_that_evaluation_scores(tiny_learner32: Learner, toy_split: TokenizedSplit) -> None:
    distilled = create(tiny_learner32, toy_split, steps=2, attention_label_type=CLS)
    params = fine_tune(
        distilled.inner_loss(tiny_learner32),
        tiny_learner32.fresh_params(stream_seed(7, "head", "evaluation", 2)),
        distilled.batches(stream_seed(7, "inner", "evaluation", 2)),
    )
    # By name: the card remembers which model the set was made for.
    for model in (distilled.finetune(seed=7, index=2), distilled.finetune(tiny_learner32, seed=7, index=2)):
        weights = dict(model.named_parameters())
        assert all(torch.equal(weights[name], tensor) for name, tensor in params.items())
        assert model.config.id2label == dict(enumerate(CLASS_NAMES))
    other = distilled.finetune(tiny_learner32, seed=7, index=1)
    assert not torch.equal(dict(other.named_parameters())["classifier.weight"], params["classifier.weight"])


# --- what is refused


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data_per_label": 0}, "distilled_data.data_per_label must be at least 1, got 0"),
        ({"seq_length": 0}, "distilled_data.seq_length must be at least 1, got 0"),
        ({"seq_length": 65}, "distilled_data.seq_length must be at most the 64 positions of"),
        ({"lr_init": 0.0}, "distilled_data.lr_init must be above 0 and finite, got 0.0"),
        ({"lr_init": -0.1}, "distilled_data.lr_init must be above 0 and finite, got -0.1"),
        ({"lr_init": float("nan")}, "distilled_data.lr_init must be above 0 and finite, got nan"),
        (
            {"attention_label_type": CLS, "attention_loss_lambda": 0.0},
            "distilled_data.attention_loss_lambda must be above 0 and finite with attention labels (cls), got 0.0",
        ),
        ({"steps": 0}, "learner_train.train_step must be at least 1, got 0"),
        (
            {"data_per_label": 3, "batch_size": 2},
            "distilled_data.data_per_label=3 must be divisible by learner_train.batch_size_per_label=2",
        ),
        (
            {"data_per_label": 2, "batch_size": 3},
            "learner_train.batch_size_per_label must be from 1 to distilled_data.data_per_label=2, got 3",
        ),
        ({"batch_size": 0}, "learner_train.batch_size_per_label must be from 1 to"),
        ({"data_per_label": 11, "init": Init.real}, "class 0 has 10 rows, fewer than the 11"),
    ],
)
def test_settings_out_of_range_are_refused(
    tiny_learner: Learner, toy_split: TokenizedSplit, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        create(tiny_learner, toy_split, **kwargs)


def test_lambda_zero_and_odd_batches_are_fine_where_they_have_a_meaning(
    tiny_learner: Learner, toy_split: TokenizedSplit
) -> None:
    create(tiny_learner, toy_split, attention_loss_lambda=0.0)
    create(tiny_learner, toy_split, data_per_label=3, batch_size=2, fix_order=False)


def test_tensors_of_other_shapes_are_refused() -> None:
    distilled = a_set(0)
    raw = {**distilled.raw, "lr": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"must have shapes .*'lr': \(2,\).*, got .*'lr': \(3,\)"):
        DistilledDataset(raw, distilled.config, distilled.inner_config, distilled.metadata)


OTHER_MODELS: dict[str, tuple[dict[str, int], tuple[str, ...], str]] = {
    "width": ({"hidden_size": 24}, CLASS_NAMES, "with embedding_size 16, but model.model_name={name} has 24"),
    "depth": ({"num_hidden_layers": 1}, CLASS_NAMES, "with num_layers 2, but model.model_name={name} has 1"),
    "heads": ({"num_attention_heads": 2}, CLASS_NAMES, "with num_heads 4, but model.model_name={name} has 2"),
    "classes": ({}, ("a", "b"), "the distilled set has 3 classes ['a', 'b', 'c'], but the data have 2"),
    "positions": (
        {"max_position_embeddings": 6},
        CLASS_NAMES,
        "the distilled set has 7 positions, but model.model_name={name} takes at most 6",
    ),
}


@pytest.mark.parametrize("what", list(OTHER_MODELS))
def test_a_learner_of_another_shape_is_refused(
    tiny_learner32: Learner,
    toy_split: TokenizedSplit,
    save_model: Callable[..., Path],
    tmp_path: Path,
    what: str,
) -> None:
    changes, class_names, message = OTHER_MODELS[what]
    name = str(save_model(BertConfig(**(tiny_bert_config().to_dict() | changes)), tmp_path / what))
    other = Learner(ModelConfig(model_name=name), class_names)
    distilled = create(tiny_learner32, toy_split, attention_label_type=CLS)
    with pytest.raises(ValueError, match=re.escape(message.format(name=name))):
        check_fits(distilled, other)
    if what in ("depth", "heads"):  # these matter to attention labels only
        check_fits(create(tiny_learner32, toy_split, lr_for_parameter=False), other)
        distilled.raw["lr_scales"].data += torch.randn(1, len(tiny_learner32.trainable))
        adapted = adapt_to(distilled, other)
        check_fits(adapted, other)
        assert adapted.config.attention_label_type is AttentionLabelType.none
        assert adapted.config.lr_for_parameter is (what == "heads")
        # Another depth has other parameters.
        left_out = {"attention_labels"} | ({"lr_scales"} if what == "depth" else set())
        assert adapted.raw.keys() == distilled.raw.keys() - left_out
        assert distilled.raw.keys() >= left_out
        torch.testing.assert_close(adapted.lr, distilled.lr)
    else:
        assert adapt_to(distilled, other) is distilled
        with pytest.raises(ValueError, match=re.escape(message.format(name=name))):
            distilled.finetune(other)


def test_attention_labels_need_rows_without_dropout(
    tiny_learner: Learner, toy_split: TokenizedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "rows_are_dropped", True)
    create(tiny_learner, toy_split)
    with pytest.raises(ValueError, match=r"model\.disable_dropout must be true for attention labels"):
        create(tiny_learner, toy_split, attention_label_type=AttentionLabelType.cls)


def test_moving_nowhere_keeps_the_leaves(tiny_learner: Learner, toy_split: TokenizedSplit) -> None:
    distilled = create(tiny_learner, toy_split)
    leaves = dict(distilled.raw)
    distilled.to(tiny_learner.device, tiny_learner.dtype)
    assert all(distilled.raw[name] is leaf for name, leaf in leaves.items())


def test_commit_of_a_hub_set_is_kept(
    tiny_learner: Learner, toy_split: TokenizedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tiny_learner, toy_split).save_pretrained(tmp_path / "snapshots" / "abc")
    assert DistilledDataset.from_pretrained(tmp_path / "snapshots" / "abc").revision is None
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshots" / "abc"))
    assert DistilledDataset.from_pretrained("owner/name", revision="v1").revision == "abc"
