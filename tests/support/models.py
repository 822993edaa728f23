"""The configuration of the tiny encoder that most tests fine-tune."""

from __future__ import annotations

from transformers import BertConfig

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
