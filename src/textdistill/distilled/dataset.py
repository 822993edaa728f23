"""The learned training set: its tensors, how step t reads them, and where they are kept.

Letters, used in every docstring of the package: **N** distilled samples, **B** batch, **L** sequence length,
**D** width of an input embedding, **C** classes, **Y** layers, **H** heads, **Q** supervised query rows (0, 1
or L), **T** inner steps.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import PreTrainedModel

from textdistill.core.precision import FLOAT32, Precision
from textdistill.core.seeding import generator, stream_seed
from textdistill.data.batches import stratified_sample
from textdistill.data.tokens import TokenizedSplit
from textdistill.distilled import hub, storage
from textdistill.distilled.readme import LICENSE, drop_local_paths, readme
from textdistill.distilled.spec import (
    AttentionLabelWeight,
    DistilledDataConfig,
    Init,
    LabelType,
    LearnerTrainConfig,
    ModelMetadata,
    SetMetadata,
    check_shapes,
    model_metadata,
    read_card,
    read_reference,
    tensor_shapes,
)
from textdistill.method.attention import AttentionLabelType
from textdistill.method.inner_loop import InnerBatch, InnerLoss, fine_tune, make_inner_loss
from textdistill.method.learner import Learner, ModelConfig, Params

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Softmax and exp turn this into exactly 0, with an exactly zero gradient: keys that a layer cannot reach stay so.
MASKED_LOGIT = -1e4
# Raw tensors that hold almost all of a set.
LARGE = ("inputs_embeds", "attention_labels")


class DistilledDataset:
    """The learned samples, as raw tensors that an optimiser can move freely.

    Raw tensors become what the inner loop reads through softplus (lr), softmax (soft labels, attention labels),
    exp (lr_scales, attention labels with learned weights) or nothing (embeddings, unrestricted labels), so learning
    rates and weights stay positive and probabilities sum to 1 by construction.

    Examples:
        >>> distilled = DistilledDataset.from_pretrained("DISTILLED_DIR")
        >>> distilled.labels.shape == (len(distilled), len(distilled.metadata.class_names))
        True
        >>> model = distilled.finetune()
        >>> model.config.id2label
        {0: 'negative', 1: 'positive'}

    Attributes:
        raw: ``inputs_embeds`` (N, L, D), ``labels`` (N, C), ``lr`` (T,) or a scalar; ``lr_scales`` (T, P) or (P,)
            with a learning rate for each parameter; and with attention labels ``attention_labels`` (N, Y, H, Q, L).
        config: shape and kinds.
        inner_config: number and batch size of inner steps.
        metadata: task, model and provenance.
        revision: commit of the hub repository that the set was read from, else None.
        stored_dtype: of embeddings and attention labels in the file that the set was read from, else None.

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
        config.check()
        inner_config.check(config)
        self.config, self.inner_config, self.metadata = config, inner_config, metadata
        check_shapes(raw, tensor_shapes(config, inner_config, len(metadata.class_names), metadata.model))
        self.raw = {name: tensor.detach().clone() for name, tensor in raw.items()}
        for name, tensor in self.raw.items():
            tensor.requires_grad_(name != "labels" or config.label_type is not LabelType.hard)

    @classmethod
    def create(
        cls,
        config: DistilledDataConfig,
        inner_config: LearnerTrainConfig,
        metadata: SetMetadata,
        learner: Learner,
        train: TokenizedSplit,
        seed: int,
    ) -> DistilledDataset:
        """The set before training.

        Args:
            config: its shape.
            inner_config: the inner loop it will serve.
            metadata: its task and, as ``model_metadata`` gives it, its model.
            learner: gives the widths, the reach of its attention and, for ``init=real``, the embeddings.
            train: real texts for ``init=real``: a random one of the class a sample, tiled to length.
            seed: the run's seed.

        """
        config.check()
        inner_config.check(config)
        if config.seq_length > learner.max_positions:
            raise ValueError(
                f"distilled_data.seq_length must be at most the {learner.max_positions} positions of"
                f" {learner.name}, got {config.seq_length}"
            )
        shapes = tensor_shapes(config, inner_config, learner.num_labels, metadata.model)
        count = config.data_per_label * learner.num_labels
        draw = generator(seed, "distilled", "inputs_embeds")
        if config.init is Init.noise:
            embeds = torch.randn(shapes["inputs_embeds"], generator=draw)
        else:
            rows = stratified_sample(train.labels, config.data_per_label, draw)
            embeds = torch.stack([_tiled(learner, train, int(row), config.seq_length) for row in rows])
        raw = {
            "inputs_embeds": embeds,
            "labels": torch.eye(learner.num_labels)[torch.arange(count) % learner.num_labels],
            "lr": _before_softplus(torch.full(shapes["lr"], config.lr_init)),
        }
        if "lr_scales" in shapes:
            raw["lr_scales"] = torch.zeros(shapes["lr_scales"])
        if "attention_labels" in shapes:
            draw = generator(seed, "distilled", "attention_labels")
            key_mask = learner.key_mask(config.seq_length, config.attention_label_type)
            noise = torch.randn(shapes["attention_labels"], generator=draw)
            # Normalised, so that learned weights start at 1.
            raw["attention_labels"] = noise.masked_fill(~key_mask[:, None], MASKED_LOGIT).log_softmax(-1)
        created = cls(raw, config, inner_config, metadata).to(learner.device, learner.dtype)
        created.check(learner)
        return created

    def __len__(self) -> int:
        return len(self.raw["labels"])

    @property
    def lr(self) -> Tensor:
        """Learning rates (T,) of the inner steps, above 0, with a graph to ``raw``.

        With one for each parameter, their geometric mean.
        """
        steps = self.inner_config.train_step
        lr = F.softplus(self.raw["lr"])
        if "lr_scales" in self.raw:
            lr = lr * self.raw["lr_scales"].mean(-1).exp()
        lr = lr.expand(steps)
        if self.config.lr_linear_decay and not self.config.lr_for_step:
            lr = lr * (1 - torch.arange(steps, dtype=lr.dtype, device=lr.device) / steps)
        return lr.clamp_min(torch.finfo(lr.dtype).tiny)  # softplus of -1e4 is 0

    @property
    def lr_scales(self) -> Tensor | None:
        """What ``lr`` is multiplied by for each parameter (T, P), of geometric mean 1; None with one lr for all."""
        if "lr_scales" not in self.raw:
            return None
        raw = self.raw["lr_scales"]
        return (raw - raw.mean(-1, keepdim=True)).exp().expand(self.inner_config.train_step, -1)

    @property
    def labels(self) -> Tensor:
        """Labels (N, C) as the inner loop uses them: soft ones are probabilities."""
        labels = self.raw["labels"]
        return labels.softmax(-1) if self.config.label_type is LabelType.soft else labels

    @property
    def attention_labels(self) -> Tensor | None:
        """Target attention (N, Y, H, Q, L), probabilities over the last dimension, or None."""
        raw = self.raw.get("attention_labels")
        return None if raw is None else raw.softmax(-1)

    @property
    def attention_weights(self) -> Tensor | None:
        """Weights (N, Y, H, Q), above 0, of the rows of attention labels in the attention loss; None if all are 1."""
        if self.config.attention_label_weight is AttentionLabelWeight.equal or "attention_labels" not in self.raw:
            return None
        return self.raw["attention_labels"].logsumexp(-1).exp()

    def batches(self, order_seed: int) -> list[InnerBatch]:
        """What the T inner steps read, with a graph to ``raw``.

        Args:
            order_seed: with ``fix_order=false`` decides which samples each step draws; with dropout, the masks.
                With neither, batches do not depend on it.

        """
        labels, attention_labels, weights = self.labels, self.attention_labels, self.attention_weights
        lr, scales = self.lr, self.lr_scales
        if scales is not None:
            lr = lr[:, None] * scales
        if attention_labels is not None and weights is not None:
            attention_labels = attention_labels * weights[..., None]
        batches = []
        for step in range(self.inner_config.train_step):
            rows = self._rows(step, order_seed).to(labels.device)
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

    def pull_back(self, batches: Sequence[InnerBatch], parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Gradient with respect to ``raw`` from the gradients with respect to ``batches``.

        Contributions of a sample that several steps use add up.
        """
        outputs, grads = [], []
        for batch, part in zip(batches, parts, strict=True):
            for name, tensor in {**batch.learned, "lr": batch.lr}.items():
                if tensor.requires_grad:
                    outputs.append(tensor)
                    grads.append(part[name])
        learned = {name: tensor for name, tensor in self.raw.items() if tensor.requires_grad}
        pulled = torch.autograd.grad(outputs, list(learned.values()), grads)
        return dict(zip(learned, pulled, strict=True))

    def inner_loss(self, learner: Learner, exact: bool = False, precision: Precision = FLOAT32) -> InnerLoss:
        """The loss that inner steps on this set descend; see ``make_inner_loss``."""
        config = self.config
        return make_inner_loss(learner, config.attention_label_type, config.attention_loss_lambda, exact, precision)

    def train(self, learner: Learner, seed: int, purpose: str, index: int) -> Params:
        """Learner ``index``: the fresh head of stream ("head", purpose, index), fine-tuned on this set."""
        params = learner.fresh_params(stream_seed(seed, "head", purpose, index))
        batches = self.batches(stream_seed(seed, "inner", purpose, index))
        return fine_tune(self.inner_loss(learner), params, batches)

    def adapt_to(self, learner: Learner) -> DistilledDataset:
        """The set itself, or a copy without what a model of another shape than its own has no use for.

        Attention labels are left out where layers or heads differ; where parameters have other names, the geometric
        mean of their learning rates is that of all.
        """
        made_for, has, config, raw = self.metadata.model, model_metadata(learner), self.config, dict(self.raw)
        differ = [key for key in ("num_layers", "num_heads") if getattr(made_for, key) != getattr(has, key)]
        if differ and config.attention_label_type is not AttentionLabelType.none:
            logger.warning(
                "attention labels are left out: the set was made for %s with %s",
                made_for.name,
                ", ".join(f"{key} {getattr(made_for, key)}, and {has.name} has {getattr(has, key)}" for key in differ),
            )
            del raw["attention_labels"]
            config = replace(config, attention_label_type=AttentionLabelType.none)
        if config.lr_for_parameter and made_for.parameters != has.parameters:
            logger.warning(
                "one learning rate for all parameters: the set was made for %s, whose parameters have other names than"
                " those of %s",
                made_for.name,
                learner.name,
            )
            raw["lr"] = _before_softplus(F.softplus(raw["lr"]) * raw.pop("lr_scales").mean(-1).exp())
            config = replace(config, lr_for_parameter=False)
        return self if config is self.config else DistilledDataset(raw, config, self.inner_config, self.metadata)

    def check(self, learner: Learner) -> None:
        """Raises ValueError if ``learner`` cannot be trained on this set."""
        needs = ["embedding_size"]
        if self.config.attention_label_type is not AttentionLabelType.none:
            needs += ["num_layers", "num_heads"]
        made_for, has = self.metadata.model, model_metadata(learner)
        for key in needs:
            expected, actual = getattr(made_for, key), getattr(has, key)
            if expected != actual:
                raise ValueError(
                    f"the distilled set was made for {made_for.name} with {key} {expected}, but"
                    f" model.model_name={learner.name} has {actual}; use a model of the same shape"
                )
        if self.config.lr_for_parameter and made_for.parameters != has.parameters:
            raise ValueError(
                f"the distilled set has learning rates for the parameters of {made_for.name}, but those"
                f" of model.model_name={learner.name} have other names; use a model of the same family and depth"
            )
        if len(needs) > 1 and learner.rows_are_dropped:
            raise ValueError(
                f"model.disable_dropout must be true for attention labels with {learner.name}, got false: this family's"
                " attention is known only after dropout; or set distilled_data.attention_label_type=none"
            )
        if len(self.metadata.class_names) != learner.num_labels:
            raise ValueError(
                f"the distilled set has {len(self.metadata.class_names)} classes {list(self.metadata.class_names)}, but"
                f" the data have {learner.num_labels}; use the data of task {self.metadata.task!r}"
            )
        if self.config.seq_length > learner.max_positions:
            raise ValueError(
                f"the distilled set has {self.config.seq_length} positions, but model.model_name={learner.name}"
                f" takes at most {learner.max_positions}"
            )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DistilledDataset:
        """Moves the raw tensors (those that move become new leaves); returns self."""
        for name, tensor in self.raw.items():
            moved = tensor.detach().to(device=device, dtype=dtype)
            if moved.device != tensor.device or moved.dtype != tensor.dtype:
                self.raw[name] = moved.requires_grad_(tensor.requires_grad)
        return self

    def finetune(self, model: Learner | str | None = None, seed: int = 42, index: int = 0) -> PreTrainedModel:
        """An ordinary transformers classifier: pretrained body, fresh head, fine-tuned on this set.

        Args:
            model: a learner, or a model name. None means the model that the set was made for; ``adapt_to`` says what
                other models get.
            seed: seed of the head. ``evaluate`` with this seed scores this very model as learner ``index``.
            index: number of the learner in that evaluation.

        """
        if not isinstance(model, Learner):
            name = model or self.metadata.model.name
            model = Learner(ModelConfig(self.metadata.task, name), self.metadata.class_names)
        adapted = self.adapt_to(model)
        adapted.check(model)
        adapted.to(model.device, model.dtype)
        return model.to_model(adapted.train(model, seed, "evaluation", index))

    def without_local_paths(self) -> DistilledDataset:
        """The set with metadata that name no folder or file of this machine, to be given away.

        A model or a task that is named by its path keeps the last part of it.
        """
        metadata = self.metadata
        model = ModelMetadata(**drop_local_paths(asdict(metadata.model)))
        if model.name != metadata.model.name:
            logger.warning(
                "the card to share names the model %s: %s is a folder of this machine, and others need a copy of it",
                model.name,
                metadata.model.name,
            )
        data, provenance = drop_local_paths(metadata.data), drop_local_paths(metadata.provenance)
        kept = SetMetadata(drop_local_paths(metadata.task), metadata.class_names, model, data, provenance)
        return DistilledDataset(self.raw, replace(self.config, pretrained_data_path=None), self.inner_config, kept)

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None, **provenance: Any) -> None:
        """Writes ``distilled.safetensors``, ``config.json`` and ``README.md``; the folder appears whole or not at all.

        Args:
            path: the folder; an earlier distilled set in it is replaced.
            dtype: of embeddings and attention labels in the file, such as ``torch.float16``; labels and learning
                rates, which are few, stay as they are. None leaves all as they are.
            **provenance: added to the metadata.

        """
        self._save(Path(path), "PATH", dtype, provenance)

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
            repo_id: ``owner/name``, or ``name`` for one's own; the repository is made unless it exists.
            private: whether a new repository is; an existing one that is public is refused then.
            revision: a branch, made if need be; None for the main one.
            commit_message: the first line of the commit.
            token: None for the one that the machine is logged in with (``hf auth login``, ``HF_TOKEN``).
            license: for the metadata, as the hub spells it (``mit``, ``cc-by-4.0``); None keeps what the metadata says.
            dtype: as in ``save_pretrained``.

        Raises:
            ValueError: there is no token, or an argument is not what it should be.
            OSError: the hub refuses, or cannot be reached.

        """
        if license is not None and not LICENSE.fullmatch(license):
            raise ValueError(f"license must be an identifier of the hub, such as mit or cc-by-4.0, got {license!r}")
        stated = {} if license is None else {"license": license}
        repo = hub.create(repo_id, private, token)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "set")
            self.without_local_paths()._save(folder, repo, dtype, stated)
            return hub.commit(folder, repo, revision, commit_message or "Upload a distilled set", token)

    def as_dataset(self, order_seed: int = 0) -> Dataset:
        """The samples as the T inner steps read them, in their order: one row for each sample of each step.

        Every step reads equally many rows; where steps share a sample it has several.

        Args:
            order_seed: as in ``batches``.

        Returns:
            Rows of float32 torch tensors (``with_format`` gives others), detached: ``step`` (0..T-1) and its ``lr``, a
            number or (P,), one for each parameter that ``metadata.model`` names; ``inputs_embeds`` (L, D), ``labels``
            (C), and with attention labels ``attention_labels`` (Y, H, Q, L); what learners read, not the raw values.

        """
        from datasets import Array2D, Array4D, Dataset, Features, List, Value

        batches = self.batches(order_seed)
        learned = {name: torch.cat([batch.learned[name] for batch in batches]) for name in batches[0].learned}
        size = len(batches[0].labels)
        columns = {"lr": torch.stack([batch.lr for batch in batches]).repeat_interleave(size, dim=0), **learned}
        features: dict[str, Any] = {
            "step": Value("int64"),
            "lr": List(Value("float32"), length=columns["lr"].shape[1])
            if columns["lr"].dim() > 1
            else Value("float32"),
            "inputs_embeds": Array2D(tuple(learned["inputs_embeds"].shape[1:]), "float32"),
            "labels": List(Value("float32"), length=learned["labels"].shape[1]),
        }
        if "attention_labels" in learned:
            features["attention_labels"] = Array4D(tuple(learned["attention_labels"].shape[1:]), "float32")
        arrays = {name: column.detach().float().cpu().numpy() for name, column in columns.items()}
        steps = [step for step in range(len(batches)) for _ in range(size)]
        return Dataset.from_dict({"step": steps, **arrays}, Features(features)).with_format("torch")

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, revision: str | None = None) -> DistilledDataset:
        """Reads a folder or hub dataset written by ``save_pretrained``, or the reference implementation's folder.

        Args:
            path_or_repo: a folder, or a repository id ``owner/name``.
            revision: branch, tag or commit of the repository; the commit that was read is kept as ``revision``.

        Raises:
            FileNotFoundError: there is no such folder or file.
            ValueError: a file is not what it should be.

        """
        if reference := storage.is_reference_folder(path_or_repo):
            stored, config = storage.load_reference(Path(path_or_repo))
        else:
            stored, config = storage.load_folder(path_or_repo, revision)
        tensors = {name: tensor.float() for name, tensor in stored.items()}
        # Again: float64 reaches further.
        file = storage.REFERENCE_TENSORS_FILE if reference else storage.TENSORS_FILE
        storage.check_finite(Path(path_or_repo, file), tensors)
        try:
            loaded = cls(tensors, *(read_reference(config, tensors) if reference else read_card(config)))
        except ValueError as error:
            config_file = Path(path_or_repo, storage.CONFIG_FILE)
            raise ValueError(f"{config_file}: {error}; restore the folder from its source") from error
        loaded.stored_dtype = stored["inputs_embeds"].dtype
        if not reference:
            loaded.revision = config["revision"]
        return loaded

    def _save(self, path: Path, source: str, dtype: torch.dtype | None, provenance: Mapping[str, Any]) -> None:
        """``save_pretrained`` with what ``from_pretrained`` will take to load the set, for the README."""
        config = {
            "distilled_data": asdict(self.config),
            "learner_train": asdict(self.inner_config),
            "task": self.metadata.task,
            "class_names": list(self.metadata.class_names),
            "model": asdict(self.metadata.model),
            "data": dict(self.metadata.data),
            "provenance": {**self.metadata.provenance, **provenance},
        }
        small = {name: tensor.to(dtype) for name, tensor in self.raw.items() if name in LARGE}
        shapes = {name: tensor.shape for name, tensor in self.raw.items()}
        storage.save_folder(path, self.raw | small, config, readme(config, shapes, source))

    def _rows(self, step: int, order_seed: int) -> Tensor:
        batch = self.inner_config.batch_size_per_label * len(self.metadata.class_names)
        if self.config.fix_order:
            cycle = step % (len(self) // batch)
            return torch.arange(batch * cycle, batch * (cycle + 1))
        return torch.randperm(len(self), generator=generator(order_seed, "order", step))[:batch]


def _before_softplus(lr: Tensor) -> Tensor:
    """The inverse of softplus, log(exp(lr) - 1), written so that no lr overflows."""
    return lr + torch.log(-torch.expm1(-lr))


def _tiled(learner: Learner, train: TokenizedSplit, row: int, length: int) -> Tensor:
    """Word embeddings (length, D) of a text, repeated or cut to length."""
    ids = train.batch([row])["input_ids"][0]
    return learner.embed(ids.repeat(-(-length // len(ids)))[:length]).cpu().float()
