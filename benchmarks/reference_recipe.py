"""The reference implementation's recipe, written slow and plain: what ours is measured against.

Read off its public code (arumaekawa/dataset-distillation-with-attention-labels, ``src/trainer.py``, ``src/data.py``):

* real batches in random order, padded to their longest text, rounded up to 8 tokens; texts are cut at 512;
* every parameter of the model, word embeddings included, is updated in the inner loop and gets the outer gradient;
* the inner steps are unrolled with their graph, and autograd goes through all of it;
* eager attention, whose matrices are kept, for the distilled samples and for the real batch;
* AdamW with one rate for all parts, PyTorch's weight decay of 0.01 on labels and lr, gradients clipped at norm 1, a
  linear schedule with a warm-up of a tenth.

Its settings are those of ``experiment=reference``. The raw tensors of a distilled set mean the same there and here, so
it trains our ``DistilledDataset``. Left out: the copy of the pretrained weights onto themselves at every outer step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_scheduler

from benchmarks.workload import configure
from textdistill.config import RunConfig
from textdistill.core.seeding import generator, stream_seed
from textdistill.data.tokenized import TokenizedSplit
from textdistill.distilled.dataset import DistilledDataset
from textdistill.method.learner import Learner
from textdistill.training.config import TrainConfig

PAD_TO = 8


def configure_reference(model: str, *overrides: str) -> RunConfig:
    """The reference's defaults, on our split of the data, with the labels of its README's command."""
    return configure(model, "experiment=reference", f"model.model_name={model}", "data.protocol=clean", *overrides)


def padded_batch(split: TokenizedSplit, rows: Tensor) -> dict[str, Tensor]:
    """The rows, padded to the longest of them, rounded up to a multiple of 8 tokens."""
    batch = split.batch(rows.numpy())
    missing = -batch["input_ids"].size(1) % PAD_TO
    fill = {"input_ids": split.pad_token_id}
    return {n: t if n == "labels" else F.pad(t, (0, missing), value=fill.get(n, 0)) for n, t in batch.items()}


def random_batches(split: TokenizedSplit, batch_size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Epoch after epoch in random order, whatever the lengths; an incomplete last batch is dropped."""
    random = generator(seed, "reference order")
    while True:
        order = torch.randperm(len(split), generator=random)
        for start in range(0, len(split) - batch_size + 1, batch_size):
            yield padded_batch(split, order[start : start + batch_size])


class ReferenceStep:
    """Outer steps as the reference takes them.

    Args:
        learner: gives the model; not used afterwards.
        distilled: trained in place.
        config: rates, clipping, schedule.
        seed: of the heads.
        max_steps: length of the schedule.

    """

    def __init__(
        self, learner: Learner, distilled: DistilledDataset, config: TrainConfig, seed: int, max_steps: int
    ) -> None:
        self.distilled, self.config, self.seed, self.head = distilled, config, seed, learner.head
        self.model = learner.to_model(learner.fresh_params(seed))
        self.model.set_attn_implementation("eager")
        decay = {"inputs_embeds": config.weight_decay, "attention_labels": config.weight_decay}
        groups = [
            {"params": [tensor], "lr": getattr(config, f"lr_{name}")}
            | ({"weight_decay": decay[name]} if name in decay else {})
            for name, tensor in distilled.raw.items()
        ]
        self.optimizer = torch.optim.AdamW(groups)
        self.scheduler = get_scheduler(
            config.scheduler_type, self.optimizer, int(max_steps * config.warmup_ratio), max_steps
        )

    def __call__(self, batch: Mapping[str, Tensor], step: int) -> float:
        """Outer step number ``step`` on a real batch; the outer loss."""
        self._draw_head(stream_seed(self.seed, "head", step))
        params: dict[str, Tensor] = dict(self.model.named_parameters())
        for inner in self.distilled.batches(step):
            loss = self._loss(params, {"inputs_embeds": inner.inputs_embeds}, inner.labels, inner.attention_labels)
            grads = torch.autograd.grad(
                loss, list(params.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            params = {n: p - inner.lr * grad for (n, p), grad in zip(params.items(), grads, strict=True)}
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        loss = self._loss(params, inputs, batch["labels"], None)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.distilled.raw.values(), self.config.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def _loss(
        self, params: dict[str, Tensor], inputs: Mapping[str, Tensor], labels: Tensor, attention_labels: Tensor | None
    ) -> Tensor:
        outputs = torch.func.functional_call(self.model, params, kwargs={**inputs, "output_attentions": True})
        loss = F.cross_entropy(outputs.logits, labels)
        if attention_labels is not None:
            rows = torch.stack(outputs.attentions, dim=1)[..., : attention_labels.size(-2), :]
            divergence = F.kl_div((rows + 1e-12).log(), attention_labels, reduction="none").sum(-1).mean()
            loss = loss + self.distilled.config.attention_loss_lambda * divergence
        return loss

    @torch.no_grad()
    def _draw_head(self, seed: int) -> None:
        random = generator(seed)
        for name, parameter in self.model.named_parameters():
            if name in self.head and parameter.dim() > 1:
                nn.init.normal_(parameter, std=self.model.config.initializer_range, generator=random)
            elif name in self.head:
                nn.init.zeros_(parameter)
