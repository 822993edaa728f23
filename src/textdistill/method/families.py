"""The one place that refuses a model: by its family, before its weights are loaded, or by what a trial of it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

_PAGES = "it reads the place of each word on a page beside the text"
_RECURRENT = "some of its layers are recurrent and have no attention"
_SPARSE = "its attention is sparse, so it has no rows over all positions"

# Reasons by transformers' ``model_type``. Every other family is tried, see ``method.checks``.
REFUSED = {
    "big_bird": _SPARSE,
    "bloom": "its activation function has no forward derivative",
    "canine": "it reads characters, which have no table of embeddings",
    "ctrl": "it changes the embeddings that it is given",
    "diffllama": "its layers subtract two attentions from each other",
    "esmc": "it takes no embeddings",
    "fnet": "it has no attention",
    "funnel": "it shortens the sequence from layer to layer, so its attention has rows of several lengths",
    "jamba": _RECURRENT,
    "layoutlm": _PAGES,
    "layoutlmv2": _PAGES,
    "layoutlmv3": _PAGES,
    "lilt": _PAGES,
    "longformer": _SPARSE,
    "markuplm": "it reads the place of each word in a web page beside the text",
    "minimax": _RECURRENT,
    "mobilebert": "it mixes the embeddings of neighbours, and thus of padding",
    "mpt": "its attention adds a bias for distance, which our kernel does not know",
    "perceiver": "it reads bytes through latent vectors, which have no table of embeddings",
    "qwen3_5_text": _RECURRENT,
    "qwen3_next": _RECURRENT,
    "reformer": _SPARSE,
    "tapas": "it reads the place of each word in a table beside the text",
    "zamba": _RECURRENT,
    "zamba2": _RECURRENT,
}


def check_family(config: PreTrainedConfig, model_name: str) -> None:
    """Raises ValueError if the family of a model is known not to fit."""
    if reason := refusal(config):
        raise ValueError(_line(model_name, config.model_type, reason))


def refusal(config: PreTrainedConfig) -> str | None:
    """Returns why the family of a model is refused; None if it is not."""
    if reason := REFUSED.get(config.model_type):
        return reason
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return "transformers has no sequence classifier of it"
    if config.is_encoder_decoder:
        return "it is an encoder-decoder, whose decoder needs tokens"
    if hasattr(config, "vision_config"):
        return "it reads images beside the text"
    if hasattr(config, "quantization_config"):
        return "its weights are quantised and have no gradient"
    return None


@contextmanager
def refusing(model_name: str, family: str) -> Iterator[None]:
    """A block that tries a model. Whatever fails in it becomes the ValueError that refuses the model."""
    try:
        yield
    except Exception as error:  # a model that does not fit fails in its own way
        raise ValueError(_line(model_name, family, " ".join(str(error).split()))) from error


def _line(model_name: str, family: str, reason: str) -> str:
    return (
        f"model.model_name={model_name} is of family {family}, which cannot be a learner: {reason}; use a model of a"
        " family in docs/models.md"
    )
