"""Random streams: the same for the same name, unrelated for different names."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from textdistill.core.seeding import generator, stream_seed

names = st.lists(st.one_of(st.integers(-3, 3), st.sampled_from(["head", "1", "head1", ""])), max_size=3)


@given(st.integers(-5, 5), names, st.integers(-5, 5), names)
def test_streams_are_the_same_if_and_only_if_seed_and_name_are(
    seed: int, name: list[str | int], other_seed: int, other_name: list[str | int]
) -> None:
    same = (seed, name) == (other_seed, other_name)
    assert (stream_seed(seed, *name) == stream_seed(other_seed, *other_name)) == same


@given(st.integers(), names)
def test_stream_seed_is_one_that_torch_takes(seed: int, name: list[str | int]) -> None:
    assert 0 <= stream_seed(seed, *name) < 2**63
    torch.manual_seed(stream_seed(seed, *name))


def test_stream_seed_is_the_same_in_every_process_and_release() -> None:
    # A change of this number changes every result: it belongs in the changelog.
    assert stream_seed(42, "head", "evaluation", 3) == 5103231602279197803


def test_generators_are_independent_of_order_and_of_the_global_state() -> None:
    torch.manual_seed(0)
    first = torch.randn(5, generator=generator(7, "order", 1))
    generator(7, "order", 0).seed()
    torch.manual_seed(1)
    again = torch.randn(5, generator=generator(7, "order", 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.randn(5, generator=generator(7, "order", 2)))


def test_opening_a_generator_leaves_the_global_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    torch.randn(3, generator=generator(1, "x"))
    assert torch.equal(torch.randn(3), expected)
