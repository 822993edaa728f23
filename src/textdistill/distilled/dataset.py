"""The learned training set: its raw tensors, and how an inner step reads them.

Letters, used in every docstring of the package: **N** distilled samples, **B** batch, **L** sequence length,
**D** width of an input embedding, **C** classes, **Y** layers, **H** heads, **Q** supervised query rows (0, 1
or L), **T** inner steps, **P** parameters that inner steps update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import PreTrainedModel

from textdistill.core.precision import FLOAT32, Precision
from textdistill.core.seeding import generator, stream_seed
from textdistill.distilled.rows import to_rows
from textdistill.distilled.saving import load_set, push_set, save_set, with_provenance, without_local_paths
from textdistill.distilled.spec import (
    AttentionLabelWeight,
    DistilledDataConfig,
    LabelType,
    LearnerTrainConfig,
    SetMetadata,
    SetSpec,
)
from textdistill.method.inner_loop import InnerBatch, InnerLoss, make_inner_loss
from textdistill.method.learner import Learner

if TYPE_CHECKING:
    from datasets import Dataset


class DistilledDataset:
    """The learned samples, as raw tensors that an optimiser can move freely.

    The inner loop reads the raw tensors through softplus (lr), softmax (soft labels, attention labels), exp (lr_scales,
    weights of attention labels) or unchanged (embeddings, other labels). So learning rates and weights stay positive,
    and probabilities sum to 1, whatever values the raw tensors take.

    Examples:
        >>> distilled = DistilledDataset.from_pretrained("DISTILLED_DIR")
        >>> distilled.labels.shape == (len(distilled), len(distilled.metadata.class_names))
        True
        >>> model = distilled.finetune()
        >>> model.config.id2label
        {0: 'negative', 1: 'positive'}

    Attributes:
        raw: ``inputs_embeds`` (N, L, D), ``labels`` (N, C), ``lr`` (T,) or a scalar. With a learning rate for each
            parameter also ``lr_scales`` (T, P) or (P,). With attention labels also ``attention_labels``
            (N, Y, H, Q, L).
        config: shape and kinds.
        inner_config: number and batch size of inner steps.
        metadata: task, model and provenance.
        revision: commit of the hub repository that the set was read from, else None.
        stored_dtype: dtype of embeddings and attention labels in the file that the set was read from, else None.

    """

    revision: str | None = None
    stored_dtype: torch.dtype | None = None

    def __init__(
        self,
        raw: Mapping[str, Tensor],
        config: DistilledDataConfig,
        inner_config: LearnerTrainConfig,
        metadata: SetMetadata,
    ) -> None:
        SetSpec(config, inner_config, metadata).check(raw)
        self.config, self.inner_config, self.metadata = config, inner_config, metadata
        self.raw = {name: tensor.detach().clone() for name, tensor in raw.items()}
        for name, tensor in self.raw.items():
            tensor.requires_grad_(name != "labels" or config.label_type is not LabelType.hard)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, revision: str | None = None) -> DistilledDataset:
        """Reads a folder or hub dataset written by ``save_pretrained``, or a folder of the reference implementation.

        Nothing in the folder is executed. Files are checked against their checksums, and every value against its type.

        Args:
            path_or_repo: a folder, or a repository id ``owner/name``.
            revision: branch, tag or commit of the repository. The commit that was read becomes ``revision``.

        Returns:
            A set in float32 on the CPU.

        Raises:
            FileNotFoundError: there is no such folder, repository or file.
            ValueError: a file is damaged, or a value breaks a rule of the format.

        """
        loaded = load_set(path_or_repo, revision)
        distilled = cls(loaded.raw, *loaded.spec)
        distilled.stored_dtype, distilled.revision = loaded.dtype, loaded.revision
        return distilled

    def __len__(self) -> int:
        return len(self.raw["labels"])

    @property
    def lr(self) -> Tensor:
        """Learning rates (T,) of the inner steps, above 0, with a graph to ``raw``.

        If parameters have rates of their own, the rate of a step is the geometric mean of theirs.
        """
        steps = self.inner_config.train_step
        lr = F.softplus(self.raw["lr"])
        if "lr_scales" in self.raw:
            lr = lr * self.raw["lr_scales"].mean(-1).exp()
        lr = lr.expand(steps)
        if self.config.lr_linear_decay and not self.config.lr_for_step:
            lr = lr * (1 - torch.arange(steps, dtype=lr.dtype, device=lr.device) / steps)
        return lr.clamp_min(torch.finfo(lr.dtype).tiny)  # softplus underflows to 0, for example at -1e4

    @property
    def lr_scales(self) -> Tensor | None:
        """Factors (T, P) on ``lr`` for each parameter, with geometric mean 1; None if all parameters share one lr."""
        if "lr_scales" not in self.raw:
            return None
        raw = self.raw["lr_scales"]
        return (raw - raw.mean(-1, keepdim=True)).exp().expand(self.inner_config.train_step, -1)

    @property
    def labels(self) -> Tensor:
        """Labels (N, C) as the inner loop reads them. Soft labels are probabilities."""
        labels = self.raw["labels"]
        return labels.softmax(-1) if self.config.label_type is LabelType.soft else labels

    @property
    def attention_labels(self) -> Tensor | None:
        """Target attention (N, Y, H, Q, L), probabilities over the last dimension; None without attention labels."""
        raw = self.raw.get("attention_labels")
        return None if raw is None else raw.softmax(-1)

    @property
    def attention_weights(self) -> Tensor | None:
        """Weights (N, Y, H, Q), above 0, of attention rows in the attention loss; None if every weight is 1."""
        if self.config.attention_label_weight is AttentionLabelWeight.equal or "attention_labels" not in self.raw:
            return None
        return self.raw["attention_labels"].logsumexp(-1).exp()

    def batches(self, order_seed: int) -> list[InnerBatch]:
        """The batches of the T inner steps, with a graph to ``raw``.

        Args:
            order_seed: decides the samples of each step if ``fix_order=false``, and the dropout masks if dropout is
                enabled. Otherwise batches do not depend on it.

        """
        labels, attention_labels, weights = self.labels, self.attention_labels, self.attention_weights
        lr, scales = self.lr, self.lr_scales
        if scales is not None:
            lr = lr[:, None] * scales
        if attention_labels is not None and weights is not None:
            attention_labels = attention_labels * weights[..., None]
        batches = []
        for step in range(self.inner_config.train_step):
            rows = _rows(self, step, order_seed).to(labels.device)
            batches.append(
                InnerBatch(
                    self.raw["inputs_embeds"][rows],
                    labels[rows],
                    None if attention_labels is None else attention_labels[rows],
                    lr[step],
                    dropout_seed=stream_seed(order_seed, "dropout", step),
                )
            )
        return batches

    def pull_back(self, batches: Sequence[InnerBatch], grads: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Gradients with respect to ``raw`` from gradients with respect to ``batches``.

        Gradients of a sample that several steps read add up.

        Args:
            batches: as ``batches`` returned them.
            grads: for each batch the gradients of its learned tensors and of ``lr``, by name.

        Returns:
            Gradients of the raw tensors that are learned, by name.

        """
        outputs, output_grads = [], []
        for batch, batch_grads in zip(batches, grads, strict=True):
            for name, tensor in {**batch.learned, "lr": batch.lr}.items():
                if tensor.requires_grad:
                    outputs.append(tensor)
                    output_grads.append(batch_grads[name])
        learned = {name: tensor for name, tensor in self.raw.items() if tensor.requires_grad}
        pulled = torch.autograd.grad(outputs, list(learned.values()), output_grads)
        return dict(zip(learned, pulled, strict=True))

    def inner_loss(self, learner: Learner, exact: bool = False, precision: Precision = FLOAT32) -> InnerLoss:
        """The loss that inner steps on this set descend; see ``make_inner_loss``."""
        config = self.config
        return make_inner_loss(learner, config.attention_label_type, config.attention_loss_lambda, exact, precision)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DistilledDataset:
        """Moves the raw tensors and returns the set itself. A tensor that moves becomes a new leaf."""
        for name, tensor in self.raw.items():
            moved = tensor.detach().to(device=device, dtype=dtype)
            if moved.device != tensor.device or moved.dtype != tensor.dtype:
                self.raw[name] = moved.requires_grad_(tensor.requires_grad)
        return self

    def finetune(self, model: Learner | str | None = None, seed: int = 42, index: int = 0) -> PreTrainedModel:
        """An ordinary transformers classifier: pretrained body, fresh head, fine-tuned on this set.

        Args:
            model: a learner, or a model name. None means the model that the set was made for. For a model of another
                shape the set is adapted as ``adapt.adapt_to`` says.
            seed: seed of the head. ``evaluate`` with this seed scores this very model as learner ``index``.
            index: number of the learner in that evaluation.

        Raises:
            ValueError: the set does not fit the model.

        """
        from textdistill.distilled.adapt import finetune  # adapt.py itself imports this module

        return finetune(self, model, seed, index)

    def as_dataset(self, order_seed: int = 0) -> Dataset:
        """The samples as the T inner steps read them, in order: one row for each sample of each step.

        Every step reads equally many rows. A sample that several steps share has several rows.

        Args:
            order_seed: as in ``batches``.

        Returns:
            Rows of detached float32 torch tensors (``with_format`` gives other types). The columns are ``step``
            (0..T-1), ``lr`` (a number, or (P,) with a rate for each parameter that ``metadata.model`` names),
            ``inputs_embeds`` (L, D), ``labels`` (C), and with attention labels ``attention_labels`` (Y, H, Q, L). They
            hold the values that learners read, not the raw ones.

        """
        return to_rows(self.batches(order_seed))

    def without_local_paths(self) -> DistilledDataset:
        """A copy whose metadata name no folder or file of this machine, to be given away.

        A model or a task that is named by its path keeps the last part of that path.
        """
        return DistilledDataset(self.raw, *without_local_paths(_spec(self)))

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None, **provenance: Any) -> None:
        """Writes ``distilled.safetensors``, ``config.json`` and ``README.md``; the folder appears whole or not at all.

        Args:
            path: the folder. An earlier distilled set in it is replaced.
            dtype: of embeddings and attention labels in the file, such as ``torch.float16``. Labels and learning rates,
                which are few, stay as they are. None leaves all as they are.
            **provenance: added to the provenance in the metadata.

        Raises:
            ValueError: the folder holds something other than a distilled set, or a tensor is not finite.

        """
        save_set(Path(path), self.raw, with_provenance(_spec(self), provenance), dtype)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | None = None,
        license: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CommitInfo:
        """Commits this set, without local paths, to a dataset repository on the hub: all files or none.

        Args:
            repo_id: ``owner/name``, or ``name`` for a repository of the token's owner. It is created if need be.
            private: whether a new repository is private. If True, an existing public repository is refused.
            revision: a branch, created if need be. None means the main branch.
            commit_message: first line of the commit.
            token: None for the token that the machine is logged in with (``hf auth login``, ``HF_TOKEN``).
            license: identifier of the hub (``mit``, ``cc-by-4.0``). None keeps the licence in the metadata.
            dtype: as in ``save_pretrained``.

        Raises:
            ValueError: there is no token, or an argument breaks its rule.
            OSError: the hub refuses, or cannot be reached.

        """
        return push_set(
            repo_id,
            self.raw,
            _spec(self),
            dtype,
            private=private,
            revision=revision,
            commit_message=commit_message,
            token=token,
            license=license,
        )


def before_softplus(lr: Tensor) -> Tensor:
    """The inverse of softplus, log(exp(lr) - 1), in a form in which no lr overflows."""
    return lr + torch.log(-torch.expm1(-lr))


def _rows(distilled: DistilledDataset, step: int, order_seed: int) -> Tensor:
    """Indices (B,) of the samples that an inner step reads."""
    batch = distilled.inner_config.batch_size_per_label * len(distilled.metadata.class_names)
    if distilled.config.fix_order:
        cycle = step % (len(distilled) // batch)
        return torch.arange(batch * cycle, batch * (cycle + 1))
    return torch.randperm(len(distilled), generator=generator(order_seed, "order", step))[:batch]


def _spec(distilled: DistilledDataset) -> SetSpec:
    return SetSpec(distilled.config, distilled.inner_config, distilled.metadata)
