"""Batches: padding, order, shares of the classes."""

import numpy as np
import pytest
import torch

from textdistill.core.seeding import generator
from textdistill.data.batches import sorted_batches, steps_per_epoch, stratified_sample, train_batches
from textdistill.data.tokenized import TokenizedSplit


def split_of(lengths: np.ndarray, labels: np.ndarray | None = None) -> TokenizedSplit:
    """Row i holds ``lengths[i]`` times the token i."""
    return TokenizedSplit(
        ids=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        token_types=None,
        labels=np.arange(len(lengths)) if labels is None else labels,
        pad_token_id=0,
    )


@pytest.fixture(scope="module")
def skewed() -> TokenizedSplit:
    """Lengths spread as those of news and review texts are: log-normal, cut at 128."""
    draws = torch.empty(5_000).log_normal_(3.5, 0.6, generator=generator(0, "lengths")).long().numpy()
    return split_of(np.clip(draws, 3, 128))


def test_padding_is_under_a_tenth_of_tokens(skewed):
    masks = [batch["attention_mask"] for batch in train_batches(skewed, 32, seed=0, epoch=0)]
    assert 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks) < 0.1


def labels_of(batches: object) -> list[list[int]]:
    return [batch["labels"].tolist() for batch in batches]


def test_an_epoch_holds_every_row_once_but_for_an_incomplete_batch(skewed):
    batches = labels_of(train_batches(skewed, 32, seed=0, epoch=0))
    assert len(batches) == steps_per_epoch(skewed, 32) == 5_000 // 32
    assert {len(batch) for batch in batches} == {32}
    assert len(set().union(*batches)) == 5_000 // 32 * 32


def test_the_rows_an_epoch_drops_are_not_always_the_longest():
    split = split_of(np.arange(1, 64))
    epochs = [set(labels_of(train_batches(split, 32, seed=0, epoch=epoch))[0]) for epoch in range(10)]
    assert 62 in set().union(*epochs)


def test_order_is_decided_by_seed_and_epoch(skewed):
    orders = [labels_of(train_batches(skewed, 32, *args)) for args in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert orders[0] == orders[1]
    assert all(orders[0] != other for other in orders[2:])
    # Other batches, too, not only another order of the same.
    assert not {frozenset(batch) for batch in orders[0]} & {frozenset(batch) for batch in orders[2]}


def test_batches_do_not_come_sorted_by_length(skewed):
    widths = [batch["input_ids"].shape[1] for batch in train_batches(skewed, 32, seed=0, epoch=0)]
    first, second = widths[: len(widths) // 2], widths[len(widths) // 2 :]
    assert abs(np.mean(first) - np.mean(second)) < 0.2 * np.mean(widths)


@pytest.mark.parametrize("counts", [(1_600, 1_600), (2_001, 1_033, 166), (800, 800, 800, 800), (3_111, 89)])
def test_batches_keep_the_shares_of_the_classes(skewed, counts):
    """Of a pool, which this epoch is one of; and pad no more than they may."""
    random = generator(0, "classes")
    labels = np.repeat(np.arange(len(counts)), counts)[torch.randperm(3_200, generator=random).numpy()]
    split = split_of(skewed.lengths[:3_200], labels)
    batches = list(train_batches(split, 32, seed=0, epoch=0))
    found = np.array([np.bincount(batch["labels"], minlength=len(counts)) for batch in batches])
    assert np.abs(found - np.array(counts) / 100).max() < 1.5
    assert found.sum(axis=0).tolist() == list(counts)
    masks = [batch["attention_mask"] for batch in batches]
    assert 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks) < 0.1


def test_length_alone_counts_where_the_classes_differ_in_length():
    lengths = np.concatenate([np.arange(1_600) % 10 + 5, np.arange(1_600) % 60 + 60])
    split = split_of(lengths, np.repeat([0, 1], 1_600))
    batches = list(train_batches(split, 32, seed=0, epoch=0))
    assert sorted(len(set(batch["labels"].tolist())) for batch in batches) == [1] * 100
    masks = [batch["attention_mask"] for batch in batches]
    assert 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks) < 0.1


@pytest.mark.parametrize("start", [0, 1, 100, 155, 156])
def test_start_leaves_out_the_first_batches(skewed, start):
    whole = labels_of(train_batches(skewed, 32, seed=0, epoch=3))
    assert len(whole) == 156
    assert labels_of(train_batches(skewed, 32, seed=0, epoch=3, start=start)) == whole[start:]
    assert labels_of(train_batches(skewed, 32, seed=0, epoch=3, start=start, stride=2)) == whole[start::2]


def test_fewer_rows_than_a_batch_are_one_batch():
    split = split_of(np.array([3, 4, 5]))
    (batch,) = labels_of(train_batches(split, 32, seed=0, epoch=0))
    assert sorted(batch) == [0, 1, 2]
    assert steps_per_epoch(split, 32) == 1


def test_batch_pads_to_its_longest_row():
    batch = split_of(np.array([1, 3, 2, 9])).batch([2, 1])
    assert batch["input_ids"].tolist() == [[2, 2, 0], [1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [2, 1]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_sorted_batches_hold_every_row_once_and_bounded_tokens():
    split = split_of(np.concatenate([np.full(500, 20), np.full(40, 128), np.array([900])]))
    seen, shapes = [], []
    for indices, batch in sorted_batches(split, 8):
        assert batch["labels"].tolist() == indices.tolist()
        seen += indices.tolist()
        shapes.append(tuple(batch["input_ids"].shape))
    assert sorted(seen) == list(range(541))
    # 512 tokens at most: the row of 900 alone, 4 rows of 128, and 8 rows where they are short.
    assert shapes == [(1, 900)] + [(4, 128)] * 10 + [(8, 20)] * 62 + [(4, 20)]


def test_stratified_sample_is_class_major():
    labels = np.array([2, 0, 1, 1, 0, 2, 2, 0, 1, 0])
    sample = stratified_sample(labels, 3, generator(0, "sample"))
    assert labels[sample].tolist() == [0, 1, 2] * 3
    assert len(set(sample.tolist())) == 9
    draws = [stratified_sample(labels, 2, generator(seed, "sample")).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    with pytest.raises(ValueError, match="class 1 has 3 rows, fewer than the 4 to be drawn"):
        stratified_sample(labels, 4, generator(0, "sample"))
