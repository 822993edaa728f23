"""Views of a distilled set for a reader: strongest attention labels, nearest tokens, attention, and anomalies."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from textdistill.distilled.dataset import DistilledDataset
from textdistill.distilled.spec import LabelType
from textdistill.method.learner import Learner, Params

# Flag embeddings whose norm exceeds this multiple of the median norm of the set.
MAX_NORM_RATIO = 3.0
# Flag attention rows whose largest probability reaches this value.
MAX_PROBABILITY = 0.99


class LabelPeak(NamedTuple):
    """The largest probability of one row of attention labels.

    Attributes:
        layer: 0..Y-1.
        head: 0..H-1.
        row: index of the supervised query row, 0..Q-1.
        key: position that the row points at, 0..L-1.
        probability: of that position, 0..1.
        weight: of the row in the attention loss, above 0.

    """

    layer: int
    head: int
    row: int
    key: int
    probability: float
    weight: float


class NearToken(NamedTuple):
    """A token of the vocabulary, and the cosine of its word embedding with an input embedding of the set."""

    token: str
    cosine: float


def strongest_labels(distilled: DistilledDataset, count: int) -> list[list[LabelPeak]] | None:
    """For each sample the ``count`` attention rows with the largest product of probability and weight.

    Returns:
        Peaks by sample, the strongest first; None without attention labels.

    """
    labels, weights = distilled.attention_labels, distilled.attention_weights
    if labels is None:
        return None
    weights = torch.ones_like(labels[..., 0]) if weights is None else weights
    return [_peaks(*sample, count) for sample in zip(labels.detach(), weights.detach(), strict=True)]


def nearest_tokens(
    distilled: DistilledDataset, learner: Learner, count: int, positions: int
) -> list[list[list[NearToken]]]:
    """For each sample and position the ``count`` nearest word embeddings by cosine.

    The tokens aid the eye. Learned embeddings need not be near to any word.

    Args:
        distilled: on the learner's device.
        learner: gives the vocabulary.
        count: tokens for each position.
        positions: leading positions of each sample.

    """
    ids = torch.arange(len(learner.tokenizer), device=learner.device)
    vocabulary = F.normalize(learner.embed(ids), dim=-1)
    to_tokens = learner.tokenizer.convert_ids_to_tokens
    samples = []
    # Take samples one by one, because each position has as many similarities as the vocabulary has tokens.
    for sample in distilled.raw["inputs_embeds"].detach()[:, :positions]:
        similarity, nearest = (F.normalize(sample, dim=-1) @ vocabulary.T).topk(count, dim=-1)
        samples.append(
            [
                [NearToken(token, cosine) for token, cosine in zip(to_tokens(at_ids), at_similarity, strict=True)]
                for at_ids, at_similarity in zip(nearest.tolist(), similarity.tolist(), strict=True)
            ]
        )
    return samples


def own_attention(distilled: DistilledDataset, learner: Learner, params: Params, count: int) -> Tensor:
    """The learner's own attention on the first samples, without dropout.

    Args:
        distilled: has attention labels and is on the learner's device.
        learner: the model.
        params: its parameters, such as those before the first inner step or after the last one.
        count: number of samples, at most N.

    Returns:
        Logarithms of the attention rows that the set labels, (count, Y, H, Q, L).

    """
    log_rows = []
    # Take samples one by one, because the rows of one sample can have Y * H * L * L numbers.
    for sample in distilled.raw["inputs_embeds"].detach()[:count].split(1):
        with torch.no_grad():
            output = learner(params, {"inputs_embeds": sample}, label_type=distilled.config.attention_label_type)
        assert output.log_rows is not None
        log_rows.append(output.log_rows)
    return torch.cat(log_rows)


def find_anomalies(distilled: DistilledDataset) -> list[str]:
    """Anomalies that a reader should look at before trusting the set, one sentence for each kind.

    A set can hide a backdoor in attention rows that force a head onto one position, or in embeddings of large norm. An
    anomaly does not prove a backdoor, and a set without anomalies may still have one.
    """
    anomalies = []
    norms = distilled.raw["inputs_embeds"].detach().norm(dim=-1)
    ratios = norms / norms.median().clamp_min(torch.finfo(norms.dtype).tiny)
    if far := int((ratios > MAX_NORM_RATIO).sum()):
        sample, position = divmod(int(ratios.argmax()), ratios.shape[1])
        anomalies.append(
            f"{far} of {ratios.numel()} embeddings are longer than {MAX_NORM_RATIO:g} times the median; the longest,"
            f" {ratios.max():.1f} times, is at sample {sample}, position {position}"
        )
    if (labels := distilled.attention_labels) is not None:
        peaks = labels.detach().amax(dim=-1)
        if sharp := int((peaks >= MAX_PROBABILITY).sum()):
            anomalies.append(
                f"{sharp} of {peaks.numel()} attention rows put at least {MAX_PROBABILITY:g} on one position;"
                " textdistill show lists the strongest"
            )
    class_labels = distilled.labels.detach()
    if distilled.config.label_type is not LabelType.unrestricted:
        outside = (class_labels < 0).any(-1) | ((class_labels.sum(-1) - 1).abs() > 1e-4)
        if outside.any():
            samples = outside.nonzero().flatten().tolist()
            anomalies.append(f"{distilled.config.label_type} labels of samples {samples[:10]} are no probabilities")
    return anomalies


def _peaks(rows: Tensor, weights: Tensor, count: int) -> list[LabelPeak]:
    """The ``count`` strongest peaks of one sample's attention rows (Y, H, Q, L) with weights (Y, H, Q)."""
    peak, position = rows.max(dim=-1)  # (Y, H, Q)
    flat = (peak * weights).flatten().topk(min(count, peak.numel())).indices
    heads, queries = peak.shape[1:]
    return [
        LabelPeak(
            layer=i // (heads * queries),
            head=i // queries % heads,
            row=i % queries,
            key=int(position.flatten()[i]),
            probability=peak.flatten()[i].item(),
            weight=weights.flatten()[i].item(),
        )
        for i in flat.tolist()
    ]
