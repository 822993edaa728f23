"""The learner: pure in its parameters, fresh heads by seed, and the same promises for every model family."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from tests.support.models import tiny_bert_config, tiny_config
from tests.support.words import CLASS_NAMES, VOCABULARY
from textdistill.distilled.initial import MASKED_LOGIT
from textdistill.method.attention import AttentionLabelType
from textdistill.method.hypergradient import Estimator, Hypergradient, hypergradient
from textdistill.method.inner_loop import InnerBatch, fine_tune, make_inner_loss
from textdistill.method.learner import Learner, ModelConfig, Params
from textdistill.method.losses import task_loss

NONE, CLS, ALL = AttentionLabelType
POSITIONS = 40


def fingerprint(learner: Learner) -> str:
    digest = hashlib.sha256()
    for name, tensor in learner.model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embeds(learner: Learner, length: int = 7, samples: int = 3) -> dict[str, Tensor]:
    return {"inputs_embeds": randn(0, samples, length, learner.embedding_size).to(learner.dtype)}


def tokens() -> dict[str, Tensor]:
    """Three texts of 9, 6 and 3 tokens, padded."""
    ids = torch.randint(5, len(VOCABULARY), (3, 9), generator=torch.Generator().manual_seed(0))
    attention_mask = (torch.arange(9) < torch.tensor([[9], [6], [3]])).long()
    return {"input_ids": ids * attention_mask, "attention_mask": attention_mask}


def a_batch(learner: Learner, label_type: AttentionLabelType, step: int = 0) -> InnerBatch:
    """Three samples of 7 positions with attention labels that are 0 where a layer cannot reach."""
    key_mask = learner.key_mask(7, label_type)
    raw = randn(step + 1, 3, learner.num_layers, learner.num_heads, *key_mask.shape[1:])
    labels = raw.masked_fill(~key_mask[:, None], MASKED_LOGIT).softmax(-1)
    return InnerBatch(
        randn(step + 2, 3, 7, learner.embedding_size),
        randn(step + 3, 3, learner.num_labels),
        None if label_type is NONE else labels,
        torch.tensor(0.1 / (step + 1), dtype=torch.float64),
    )


# --- one family: parameters and heads


def test_params_are_what_embeddings_reach_without_the_word_embeddings(tiny_learner: Learner) -> None:
    params = tiny_learner.fresh_params(0)
    names = {name for name, _ in tiny_learner.model.named_parameters()}
    assert names - params.keys() == {"bert.embeddings.word_embeddings.weight"}
    assert tiny_learner.head == {"classifier.weight", "classifier.bias"}


def test_a_head_depends_on_its_seed_only(tiny_learner: Learner) -> None:
    torch.manual_seed(0)
    first = tiny_learner.fresh_params(5)
    torch.manual_seed(1)
    again, other = tiny_learner.fresh_params(5), tiny_learner.fresh_params(6)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert torch.equal(first["classifier.bias"], torch.zeros(3, dtype=torch.float64))


def test_drawing_a_head_leaves_the_global_state_alone(tiny_learner: Learner) -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    tiny_learner.fresh_params(5)
    assert torch.equal(torch.randn(3), expected)


def test_the_body_is_the_checkpoint_bit_for_bit_after_a_training(tiny_bert: Path) -> None:
    learner = Learner(ModelConfig(model_name=str(tiny_bert)), CLASS_NAMES)
    before = fingerprint(learner)
    checkpoint = AutoModelForSequenceClassification.from_pretrained(tiny_bert).state_dict()
    batches = [InnerBatch(x.float(), torch.eye(3), None, torch.tensor(0.5)) for x in randn(0, 2, 3, 7, 16).unbind()]
    trained = fine_tune(make_inner_loss(learner, NONE, 0.0), learner.fresh_params(0), batches)
    assert not torch.equal(trained["bert.pooler.dense.weight"], learner.fresh_params(0)["bert.pooler.dense.weight"])
    # fresh_params returns clones: writing to them must not reach the pretrained weights.
    for tensor in learner.fresh_params(1).values():
        tensor.fill_(7.0)
    assert fingerprint(learner) == before
    for name, tensor in learner.fresh_params(2).items():
        assert name in learner.head or torch.equal(tensor, checkpoint[name])


def test_a_pooler_missing_from_the_checkpoint_belongs_to_the_head(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_model(tiny_bert_config(), tmp_path / "no-pooler", add_pooling_layer=False)
    learner = Learner(ModelConfig(model_name=str(folder)), CLASS_NAMES)
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert learner.head == {"classifier.weight", "classifier.bias"} | pooler
    weights = torch.stack([learner.fresh_params(seed)["bert.pooler.dense.weight"] for seed in range(20)])
    assert float(weights.std()) == pytest.approx(learner.model.config.initializer_range, rel=0.05)
    assert len({float(weight[0, 0]) for weight in weights}) == 20


def test_use_pretrained_model_false_redraws_everything(tiny_bert: Path) -> None:
    config = ModelConfig(model_name=str(tiny_bert), use_pretrained_model=False)
    learner = Learner(config, CLASS_NAMES)
    pretrained = dict(learner.model.named_parameters())
    first, again, other = (learner.fresh_params(seed) for seed in (5, 5, 6))
    assert first.keys() == pretrained.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert not torch.equal(tensor, pretrained[name]) or name.startswith("classifier.")
        drawn = "LayerNorm" not in name and not name.endswith("bias")
        assert torch.equal(tensor, other[name]) != drawn
    words = "bert.embeddings.word_embeddings.weight"
    assert float(first[words].std()) == pytest.approx(learner.model.config.initializer_range, rel=0.1)
    # They are used: the same tokens mean something else to another learner.
    same = {name: other[name] if name == words else tensor for name, tensor in first.items()}
    assert not torch.allclose(learner(first, tokens()).logits, learner(same, tokens()).logits)


def test_a_model_is_independent_of_the_learner_and_of_the_params(tiny_learner: Learner) -> None:
    before = fingerprint(tiny_learner)
    params = tiny_learner.fresh_params(0)
    model = tiny_learner.to_model(params)
    expected = tiny_learner(params, tokens()).logits
    for tensor in params.values():
        tensor.zero_()
    torch.testing.assert_close(model(**tokens()).logits, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert fingerprint(tiny_learner) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.id2label == dict(enumerate(CLASS_NAMES))


def test_a_saved_model_loads_as_an_ordinary_one(tiny_learner32: Learner, tmp_path: Path) -> None:
    params = tiny_learner32.fresh_params(0)
    tiny_learner32.to_model(params).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    expected = tiny_learner32(params, tokens()).logits
    torch.testing.assert_close(model(**tokens()).logits, expected, rtol=0, atol=2e-5)
    assert model.config._attn_implementation == "sdpa"


def test_embed_looks_up_the_pretrained_word_embeddings(tiny_learner: Learner) -> None:
    ids = tokens()["input_ids"]
    table = tiny_learner.model.get_input_embeddings().weight
    assert torch.equal(tiny_learner.embed(ids), table[ids])
    params = tiny_learner.fresh_params(0)
    by_ids = tiny_learner(params, {"input_ids": ids}).logits
    by_embeds = tiny_learner(params, {"inputs_embeds": tiny_learner.embed(ids)}).logits
    torch.testing.assert_close(by_embeds, by_ids, rtol=0, atol=1e-14)


# --- dropout


def test_dropout_is_off_by_default(tiny_learner: Learner) -> None:
    params = tiny_learner.fresh_params(0)
    plain = tiny_learner(params, embeds(tiny_learner)).logits
    assert torch.equal(tiny_learner(params, embeds(tiny_learner), dropout_seed=3).logits, plain)


def test_dropout_masks_are_a_function_of_their_seed(dropout_learner: Learner) -> None:
    params = dropout_learner.fresh_params(0)

    def logits(seed: int | None) -> Tensor:
        return dropout_learner(params, embeds(dropout_learner), dropout_seed=seed).logits

    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    first = logits(3)
    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(logits(3), first)
    assert not torch.allclose(logits(4), first)
    assert torch.equal(logits(None), logits(None))
    assert not torch.allclose(logits(None), first)


# --- every family

COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**COMMON),
    "roberta": RobertaConfig(**COMMON),
    "distilbert": DistilBertConfig(
        vocab_size=len(VOCABULARY),
        dim=16,
        n_layers=2,
        n_heads=4,
        hidden_dim=32,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
    ),
    "electra": ElectraConfig(**COMMON, embedding_size=8),
    "albert": AlbertConfig(**COMMON, embedding_size=8),
    # Three layers whose windows of two keys to each side do not reach across 7 positions, after a global one.
    "modernbert": ModernBertConfig(
        **(COMMON | {"num_hidden_layers": 4, "num_attention_heads": 2}),
        local_attention=4,
        layer_types=["full_attention"] + 3 * ["sliding_attention"],
        pad_token_id=0,
        cls_token_id=2,
        bos_token_id=2,
        sep_token_id=3,
        eos_token_id=3,
    ),
    "mpnet": MPNetConfig(**COMMON),
    "deberta-v2": DebertaV2Config(
        **COMMON, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, norm_rel_ebd="layer_norm"
    ),
    "xlm-roberta": XLMRobertaConfig(**COMMON),
    # Grouped keys.
    "eurobert": tiny_config("eurobert"),
    # Decoders: learned positions, numbered from 2, and rotary positions with grouped keys.
    "gpt2": tiny_config("gpt2"),
    "opt": tiny_config("opt"),
    "qwen3": tiny_config("qwen3"),
    # Scores with a soft cap, which the kernel does not know.
    "gemma2": tiny_config("gemma2"),
}
OWN_ATTENTION = {"mpnet", "deberta-v2", "gemma2"}
DECODERS = {"gpt2", "opt", "qwen3", "gemma2"}
ROTARY = {"modernbert", "eurobert", "qwen3", "gemma2"}
# RoBERTa and its kin number positions from padding_idx + 1 = 2.
MAX_POSITIONS = {name: POSITIONS for name in CONFIGS} | dict.fromkeys(
    ["roberta", "xlm-roberta", "mpnet"], POSITIONS - 2
)


@pytest.fixture(scope="module", params=list(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, save_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(CONFIGS[family], tmp_path_factory.mktemp("models") / family)


@pytest.fixture(scope="module")
def learner(folder: Path) -> Learner:
    return Learner(ModelConfig(model_name=str(folder)), CLASS_NAMES).to(dtype=torch.float64)


def test_sizes_are_the_models(family: str, learner: Learner) -> None:
    config = CONFIGS[family]
    assert learner.embedding_size == getattr(config, "embedding_size", config.hidden_size)
    assert (learner.num_layers, learner.num_heads) == (config.num_hidden_layers, config.num_attention_heads)
    assert learner.num_labels == 3


def test_only_attention_code_of_its_own_falls_back_to_eager(
    family: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="textdistill"):
        Learner(ModelConfig(model_name=str(folder)), CLASS_NAMES)
    warned = [record.message for record in caplog.records if "falling back to eager attention" in record.message]
    assert len(warned) == (family in OWN_ATTENTION)


def test_every_position_can_be_used_and_no_more(family: str, learner: Learner) -> None:
    assert learner.max_positions == MAX_POSITIONS[family]
    params, longest = learner.fresh_params(0), learner.max_positions
    ids = torch.full((1, longest), 7)
    for inputs in (embeds(learner, longest), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}):
        assert learner(params, inputs).logits.isfinite().all()
    if family not in ROTARY:  # their positions have no end
        with pytest.raises((IndexError, RuntimeError)):
            learner(params, embeds(learner, longest + 1))


@pytest.mark.parametrize("label_type", [CLS, ALL])
def test_fused_and_exact_agree_on_logits_and_rows(learner: Learner, label_type: AttentionLabelType) -> None:
    params = learner.fresh_params(0)
    for inputs, length in ((embeds(learner), 7), (tokens(), 9)):
        plain = learner(params, inputs)
        fused, exact = (learner(params, inputs, label_type=label_type, exact=exact) for exact in (False, True))
        assert plain.log_rows is None
        assert fused.log_rows is not None
        assert exact.log_rows is not None
        shape = (3, learner.num_layers, learner.num_heads, label_type.rows(length), length)
        assert fused.log_rows.shape == shape
        # Where a padded query sees no key at all, nothing of it reaches the logits.
        used = inputs.get("attention_mask", torch.ones(3, length)).bool()
        if label_type is ALL:
            fused, exact = (out._replace(log_rows=out.log_rows.permute(0, 3, 1, 2, 4)[used]) for out in (fused, exact))
        torch.testing.assert_close(fused.log_rows.exp(), exact.log_rows.exp(), rtol=0, atol=1e-12)
        sums = exact.log_rows.exp().sum(-1)
        # Gemma 2 takes its softmax in float32.
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)
        for out in (fused, exact):
            torch.testing.assert_close(out.logits, plain.logits, rtol=0, atol=1e-12)


def test_fused_and_exact_agree_in_float32(folder: Path) -> None:
    learner = Learner(ModelConfig(model_name=str(folder)), CLASS_NAMES)
    params = learner.fresh_params(0)
    fused, exact = (learner(params, embeds(learner), label_type=CLS, exact=exact) for exact in (False, True))
    torch.testing.assert_close(fused.logits, exact.logits, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(fused.log_rows.exp(), exact.log_rows.exp(), rtol=0, atol=2e-5)


def transformers_own(folder: Path, params: Mapping[str, Tensor], attention: str | None) -> PreTrainedModel:
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, attn_implementation=attention)
    model.double().load_state_dict(params, strict=False)
    return model.eval()


def test_logits_and_rows_are_those_of_transformers_own_classifier(folder: Path, learner: Learner) -> None:
    params = {name: p + 0.1 * randn(i, *p.shape) for i, (name, p) in enumerate(learner.fresh_params(0).items())}
    model, eager = transformers_own(folder, params, None), transformers_own(folder, params, "eager")
    for inputs in (embeds(learner), tokens()):
        logits = learner(params, inputs).logits
        torch.testing.assert_close(logits, model(**inputs).logits, rtol=0, atol=1e-12)
        torch.testing.assert_close(logits, learner.to_model(params)(**inputs).logits, rtol=0, atol=1e-12)
    rows = learner(params, embeds(learner), label_type=ALL).log_rows.exp()
    attentions = eager(**embeds(learner), output_attentions=True).attentions
    # ModernBERT's eager attention takes its softmax in float32.
    torch.testing.assert_close(rows, torch.stack(attentions, dim=1), rtol=0, atol=1e-6)


def test_heads_are_drawn_as_transformers_draws_them(folder: Path, learner: Learner) -> None:
    def spread(draws: list[Mapping[str, Tensor]]) -> dict[str, float]:
        return {name: float(torch.stack([draw[name].detach() for draw in draws]).std()) for name in learner.head}

    config = learner.model.config
    ours = spread([learner.fresh_params(seed) for seed in range(20)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = [AutoModelForSequenceClassification.from_config(config) for _ in range(20)]
    theirs = spread([dict(model.named_parameters()) for model in models])
    assert ours == pytest.approx(theirs, rel=0.15)
    assert any(ours.values())


def outer_loss(learner: Learner) -> Callable[[Params], Tensor]:
    return lambda params: task_loss(learner(params, tokens()).logits, torch.tensor([0, 1, 2]))


def cosine(a: Hypergradient, b: Hypergradient) -> dict[tuple[int, str], float]:
    return {
        (t, name): float(torch.cosine_similarity(part[name].flatten(), b.grads[t][name].flatten(), dim=0))
        for t, part in enumerate(a.grads)
        for name in part
    }


def test_difference_agrees_with_reverse(learner: Learner) -> None:
    """ModernBERT rotates in float32 whatever its dtype; in so few weights the default step rounds away."""
    params, batches = learner.fresh_params(0), [a_batch(learner, CLS, step) for step in range(2)]
    difference, reverse = (
        hypergradient(
            estimator,
            make_inner_loss(learner, CLS, 1.0, estimator.exact),
            outer_loss(learner),
            params,
            batches,
            eps=3e-5,
        )
        for estimator in (Estimator.difference, Estimator.reverse)
    )
    agreement = cosine(difference, reverse)
    assert agreement.keys() == {
        (t, name) for t in range(2) for name in ("inputs_embeds", "labels", "attention_labels", "lr")
    }
    # Not of min(), which passes over nan.
    assert all(value > 0.9999 for value in agreement.values()), agreement
    torch.testing.assert_close(difference.outer_loss, reverse.outer_loss, rtol=0, atol=1e-12)


def test_reach_is_where_attention_can_be(family: str, learner: Learner) -> None:
    everywhere = torch.ones(7, 7, dtype=torch.bool)
    window = (torch.arange(7)[:, None] - torch.arange(7)).abs() <= 2
    layers = [everywhere] + [window if family == "modernbert" else everywhere] * (learner.num_layers - 1)
    expected = torch.stack(layers)
    if family in DECODERS:
        expected = expected.tril()
    read_row = slice(-1, None) if family in DECODERS else slice(1)
    for label_type, rows in ((CLS, read_row), (ALL, slice(None))):
        key_mask = learner.key_mask(7, label_type)
        assert torch.equal(key_mask, expected[:, rows])
        _, log_rows = learner(learner.fresh_params(0), embeds(learner), label_type=label_type)
        assert log_rows is not None
        assert torch.equal(key_mask, (log_rows > -600).all(dim=(0, 2)))


def test_cls_is_the_row_that_the_classifier_reads(family: str, learner: Learner) -> None:
    read = {True: -1, False: 0}[family in DECODERS]
    assert learner.reads_last == (family in DECODERS)
    params = learner.fresh_params(0)
    cls, every = (learner(params, embeds(learner), label_type=label_type).log_rows for label_type in (CLS, ALL))
    torch.testing.assert_close(cls[..., 0, :].exp(), every[..., read, :].exp(), rtol=0, atol=1e-12)


def test_a_checkpoint_with_another_number_of_classes_gives_a_fresh_head(
    tiny_learner: Learner, tiny_bert: Path, tmp_path: Path
) -> None:
    tiny_learner.to_model(tiny_learner.fresh_params(0)).save_pretrained(tmp_path)
    tiny_learner.tokenizer.save_pretrained(tmp_path)
    five = Learner(ModelConfig(model_name=str(tmp_path)), tuple("abcde"))
    assert five.fresh_params(0)["classifier.weight"].shape == (5, 16)
