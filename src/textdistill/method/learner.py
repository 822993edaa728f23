"""A Hugging Face classifier as a pure function of its parameters, with a fresh head for each seed."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from textdistill.core.precision import FLOAT32, Precision
from textdistill.method.attention import KERNEL, AttentionLabelType, recording
from textdistill.method.checks import check_fit, own_attention
from textdistill.method.families import refusing
from textdistill.method.pretrained import input_embeddings, load_pretrained, max_positions

logger = logging.getLogger(__name__)

# Parameters of a learner by name.
Params = dict[str, Tensor]


@dataclass
class ModelConfig:
    """The configuration keys ``model.*``.

    Attributes:
        task_name: must equal ``data.task_name``, which it follows by default.
        model_name: the encoder: ``minilm-l6``, an id of the hub, or a folder.
        use_pretrained_model: start from the pretrained weights; otherwise all weights are drawn by the seed.
        disable_dropout: train learners without dropout.

    """

    task_name: str = "ag_news"
    model_name: str = "minilm-l6"
    use_pretrained_model: bool = True
    disable_dropout: bool = True


class LearnerOutput(NamedTuple):
    """The result of a forward pass.

    Attributes:
        logits: (B, C).
        log_rows: the logarithm of the supervised attention rows, (B, Y, H, Q, L); None if no row is supervised.

    """

    logits: Tensor
    log_rows: Tensor | None


class Learner:
    """A classifier that takes its parameters as an argument and never holds them.

    ``params`` holds what the inner loop trains: every parameter with a gradient when the input is embeddings. Word
    embeddings have none, so they stay in the model. Only with ``use_pretrained_model=False`` does ``params`` hold
    them too, because they are drawn anew.

    Attributes:
        model: the transformers model. Its own weights are the pretrained ones and are never written to.
        tokenizer: its tokenizer.
        trainable: names of the parameters that inner steps update.
        head: names of the parameters that ``fresh_params`` draws.
        num_labels: C, the number of classes.
        embedding_size: the width of an input embedding.
        num_layers: Y, the number of layers.
        num_heads: H, the number of heads of a layer.
        max_positions: the length of the longest sequence that the model takes.
        has_kernel: whether attention is computed by our kernel, which is fused, rather than by the family's own code.
        reads_last: whether the classifier reads the last position (decoders) rather than the first.
        name: the name of the model in the configuration.
        revision: hub commit or checksum of the weights; None if neither is known.
        use_pretrained_model: whether the body keeps its pretrained weights.
        dropout: whether inner steps use dropout.

    """

    def __init__(self, config: ModelConfig, class_names: tuple[str, ...]) -> None:
        pretrained = load_pretrained(config.model_name, class_names, KERNEL)
        self.name, self.revision = config.model_name, pretrained.revision
        self.use_pretrained_model = config.use_pretrained_model
        self.dropout = not config.disable_dropout
        self.tokenizer = pretrained.tokenizer
        self.model = pretrained.model
        self.num_labels = len(class_names)
        self.embedding_size = input_embeddings(self.model).embedding_dim
        self.max_positions = max_positions(self.model)
        names = [name for name, _ in self.model.named_parameters()]
        self.head = set(names)
        if config.use_pretrained_model:
            body = f"{self.model.base_model_prefix}."
            self.head = {name for name in names if not name.startswith(body)} | pretrained.missing_keys
        self.reads_last = False
        linear = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        self._scorer = [module for module in linear if module.out_features == self.num_labels][-1]
        with refusing(self.name, self.model.config.model_type):
            self.has_kernel = self._select_attention()
            self.reads_last = self._reads_last()
            if self.reads_last:
                # Its classifier looks for padding by this id, in the exported model as well.
                self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
                self.model.config.use_cache = False
            self.trainable, self.num_layers, self.num_heads = self._trace(names)
            check_fit(self)

        # Heads are drawn in the template, so that the weights of the model stay as they are.
        self._template = pretrained.template
        for name in self.head:
            self._template.get_submodule(name.rpartition(".")[0]).to_empty(device="cpu", recurse=False)
        # Children come before parents, because a parent of ModernBERT draws the weights of its children anew. Modules
        # without head parameters stay on the meta device, where drawing takes no numbers from the generator.
        self._head_modules = [
            module
            for name, module in reversed(list(self._template.named_modules()))
            if any(parameter.startswith(f"{name}." if name else "") for parameter in self.head)
        ]

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters: float32 unless ``to`` has changed it."""
        return self.model.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Learner:
        """Moves the pretrained weights to a device or type, and returns the learner itself."""
        self.model.to(device=device, dtype=dtype)  # type: ignore[call-arg]  # a decorator hides the signature
        return self

    def fresh_params(self, seed: int) -> Params:
        """Returns the pretrained body, bit for bit, and a head that depends on ``seed`` only.

        The head is every parameter outside the base model, and every one that the checkpoint does not hold. It is
        drawn on the CPU as transformers initialises it, so that a seed means the same head on every device.

        Returns:
            New tensors on the device of the learner. The caller may write to them.

        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for module in self._head_modules:
                self._template._init_weights(module)
        drawn = {name: p.detach().clone() for name, p in self._template.named_parameters() if name in self.head}
        weights = dict(self.model.named_parameters())
        names = self.trainable if self.use_pretrained_model else list(weights)
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
        """Computes the logits, and the attention rows that ``label_type`` supervises.

        Args:
            params: as ``fresh_params`` returns them. Gradients flow to them.
            inputs: ``inputs_embeds``, (B, L, D); or ``input_ids`` with ``attention_mask`` and, if the tokenizer makes
                them, ``token_type_ids``, each (B, L).
            label_type: the rows to return: none, the one that the classifier reads (cls) or all.
            exact: use attention that has second derivatives.
            dropout_seed: the seed of the dropout masks of this pass if dropout is enabled; None for no dropout.

        """
        drop = self.dropout and dropout_seed is not None
        devices = [self.device] if self.device.type == "cuda" else []
        self.model.train(drop)
        with (
            torch.random.fork_rng(devices=devices) if drop else nullcontext(),
            recording(label_type, exact, self.reads_last) as record,
            self._recording_scores() as scores,
        ):
            if drop:
                assert dropout_seed is not None
                torch.manual_seed(dropout_seed)
            wants_rows = label_type is not AttentionLabelType.none
            extra = {} if self.has_kernel else {"output_attentions": wants_rows}
            outputs = torch.func.functional_call(self.model, params, kwargs={**inputs, **extra})
        logits = outputs.logits
        if self.reads_last and "inputs_embeds" in inputs and "attention_mask" in inputs:
            # transformers finds the last token by its id, and reads the last position where it gets embeddings.
            mask = inputs["attention_mask"]
            last = (mask * torch.arange(mask.size(1), device=mask.device)).argmax(dim=1)
            logits = scores[0][torch.arange(len(mask), device=mask.device), last]
        if not wants_rows:
            return LearnerOutput(logits, None)
        log_rows = record.log_rows
        if not self.has_kernel:
            if outputs.get("attentions") is None:
                raise TypeError("it returns no attention")
            rows = [a[:, :, record.rows(a.size(2))] for a in outputs.attentions]
            log_rows = [row.clamp_min(torch.finfo(row.dtype).tiny).log() for row in rows]
        return LearnerOutput(logits, torch.stack(log_rows, dim=1))

    def logits(self, params: Params, inputs: Mapping[str, Tensor], precision: Precision = FLOAT32) -> Tensor:
        """Computes the logits, (B, C), in the type of the parameters.

        Args:
            params: as ``fresh_params`` returns them.
            inputs: as in ``__call__``.
            precision: its autocast is applied. The caller sets TF32, because it concerns the backward pass as well.

        """
        with precision.autocast(self.device):
            logits: Tensor = self(params, inputs).logits
        return logits.to(self.dtype)

    @property
    def rows_are_dropped(self) -> bool:
        """Whether dropout is applied to the returned attention rows, as the eager attention of transformers does."""
        return self.dropout and not self.has_kernel

    def embed(self, input_ids: Tensor) -> Tensor:
        """Returns the pretrained word embeddings of token ids, (..., D)."""
        with torch.no_grad():
            embedded: Tensor = input_embeddings(self.model)(input_ids.to(self.device))
        return embedded

    def pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the mean of the last hidden states of the pretrained body over the tokens, (B, hidden size)."""
        with torch.no_grad(), recording(AttentionLabelType.none, exact=False):
            hidden: Tensor = self.model.base_model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def key_mask(self, length: int, label_type: AttentionLabelType) -> Tensor:
        """Returns which keys each layer can attend to from each supervised row: boolean, (Y, Q, L).

        Layers with a sliding window (ModernBERT) and causal layers have keys out of reach. Elsewhere every value is
        True.
        """
        blank = {"inputs_embeds": self._blank_input(length)}
        with torch.no_grad():
            if not self.has_kernel:
                _, log_rows = self({}, blank, label_type=label_type)
                assert log_rows is not None
                return (log_rows[0] > math.log(2 * torch.finfo(log_rows.dtype).tiny)).any(dim=1).cpu()
            with recording(label_type, exact=False, reads_last=self.reads_last) as record:
                self.model(**blank)
        full = torch.ones(label_type.rows(length), length, dtype=torch.bool)
        return torch.stack([full if m is None else m[0, 0, record.rows(length)].cpu() & full for m in record.masks])

    def to_model(self, params: Params) -> PreTrainedModel:
        """Returns an ordinary transformers model with ``params`` as its weights, independent of this learner."""
        model: PreTrainedModel = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(True)
                if name in params:
                    parameter.copy_(params[name])
        if self.has_kernel:
            model.set_attn_implementation(own_attention(model))
        model.eval()
        return model

    def _blank_input(self, length: int) -> Tensor:
        return torch.zeros(1, length, self.embedding_size, device=self.device, dtype=self.dtype)

    def _select_attention(self) -> bool:
        """Returns whether the model uses our attention kernel; if it does not, switches it to eager attention.

        Families with attention code of their own (mpnet, deberta-v2) take the setting and ignore it.
        """
        with torch.no_grad(), recording(AttentionLabelType.none, exact=False) as record:
            self.model(inputs_embeds=self._blank_input(2))
        fits = record.calls > 0 and not record.foreign
        if not fits:
            logger.warning(
                "%s computes attention in its own code: falling back to eager attention, slower and with memory"
                " quadratic in the sequence length",
                type(self.model).__name__,
            )
            self.model.config._attn_implementation = "eager"
        return fits

    def _reads_last(self) -> bool:
        """Returns whether the logits depend on the last position alone of what the base model returns."""
        hidden: list[Tensor] = []
        hook = self.model.base_model.register_forward_hook(lambda module, args, output: hidden.append(output[0]))
        try:
            logits = self.model(inputs_embeds=self._blank_input(3).requires_grad_()).logits
        finally:
            hook.remove()
        (grad,) = torch.autograd.grad(logits.sum(), hidden[0], materialize_grads=True)
        used = grad[0].any(dim=-1)
        return bool(used[-1] and not used[:-1].any())

    @contextmanager
    def _recording_scores(self) -> Iterator[list[Tensor]]:
        """Yields a list to which the last layer of the head adds its output, (B, L, C) in a decoder."""
        scores: list[Tensor] = []
        hook = self._scorer.register_forward_hook(lambda module, args, output: scores.append(output))
        try:
            yield scores
        finally:
            hook.remove()

    def _trace(self, names: list[str]) -> tuple[list[str], int, int]:
        """Returns the names of the parameters with a gradient when the input is embeddings, Y, and H."""
        weights = dict(self.model.named_parameters())
        params = {name: weights[name].detach().requires_grad_() for name in names}
        inputs = {"inputs_embeds": self._blank_input(2)}
        # The head may still be uninitialised, which is harmless: the graph matters, not the values.
        logits, log_rows = self(params, inputs, label_type=AttentionLabelType.all)
        assert log_rows is not None
        grads = torch.autograd.grad(logits.sum(), list(params.values()), allow_unused=True)
        used = [name for name, grad in zip(params, grads, strict=True) if grad is not None]
        return used, log_rows.size(1), log_rows.size(2)
