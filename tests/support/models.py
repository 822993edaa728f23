"""Configurations of tiny models: the encoder that most tests fine-tune, and one model of each family."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, BertConfig, PreTrainedConfig

from tests.support.words import VOCABULARY


def tiny_bert_config() -> BertConfig:
    """A BERT with 2 layers, width 16 and 4 heads, whose vocabulary is that of the toy task."""
    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.2,
    )


# Sizes by the names that families give them. A family takes those that its own configuration has.
_WIDTH = (
    "hidden_size d_model dim n_embd emb_dim embedding_size input_embedding_size word_embed_proj_dim entity_emb_size"
    " moe_intermediate_size kv_lora_rank q_lora_rank prediction_head_size pronunciation_embed_dim shape_embed_dim"
)
_INNER = "intermediate_size hidden_dim ffn_dim dff ffn_hidden_size n_inner shared_expert_intermediate_size"
_HEAD_WIDTH = "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim rotary_dim query_pre_attn_scalar"
SIZES: dict[str, Any] = {
    **dict.fromkeys(_WIDTH.split(), 16),
    **dict.fromkeys(_INNER.split(), 32),
    **dict.fromkeys(_HEAD_WIDTH.split(), 4),
    **dict.fromkeys(["num_hidden_layers", "n_layers", "n_layer", "num_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_heads", "n_head", "num_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads"], 2),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], 40),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(["n_group", "topk_group"], 1),
    **dict.fromkeys(["entity_vocab_size", "pronunciation_vocab_size", "shape_vocab_size"], 8),
    "initializer_range": 0.2,
}
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
# What a family needs beside its sizes.
FULL_HEADS = {"num_key_value_heads": 4}
ROTARY = {"rope_type": "default", "rope_theta": 1e4}
SETTINGS: dict[str, dict[str, Any]] = {
    "axk1": FULL_HEADS,
    "axk2": FULL_HEADS,
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": ROTARY, "full_attention": ROTARY},
    },
    "deepseek_v2": FULL_HEADS | {"num_experts_per_tok": 2},
    "deepseek_v3": FULL_HEADS,
    "esm": {"position_embedding_type": "rotary"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 4},
    "hunyuan_v1_moe": {"head_dim": 4},
    "minicpm3": FULL_HEADS,
    "ministral": {"head_dim": 4},
    "mistral4": FULL_HEADS,
    "nemotron": {"num_key_value_heads": 2, "head_dim": 4},
    # Its tokenizer class adds tokens of its own to those of the toy task.
    "qwen2": {"vocab_size": len(VOCABULARY) + 4},
    "xmod": {"default_language": "en_XX"},
}


def tiny_config(family: str, **settings: Any) -> PreTrainedConfig:
    """A model of a family with 2 layers, width 16 and 4 heads, whose vocabulary is that of the toy task."""
    known = AutoConfig.for_model(family).to_dict()
    sizes = {name: size for name, size in SIZES.items() if known.get(name) is not None}
    sizes["vocab_size"] = len(VOCABULARY)
    return AutoConfig.for_model(family, **(SPECIAL_TOKENS | sizes | SETTINGS.get(family, {}) | settings))
