"""Rows of similar length in a step: every row once, seeded, little padding, any batch split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from accelerate import PartialState, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from rosa.data.length_grouping import LengthGroupedSampler, pass_epochs_to_sampler

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=300)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(0, 5))
def test_every_row_comes_once_an_epoch(lengths: list[int], rows: int, seed: int) -> None:
    sampler = LengthGroupedSampler(lengths, rows, seed)
    first = list(sampler)
    assert sorted(first) == list(range(len(lengths)))
    assert first == list(sampler)
    sampler.set_epoch(1)
    again = LengthGroupedSampler(lengths, rows, seed)
    again.set_epoch(1)
    assert list(sampler) == list(again)


def padding(order: list[int], lengths: list[int], batch: int) -> float:
    """Share of padding in what is computed."""
    cut = [[lengths[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
    computed = sum(max(rows) * len(rows) for rows in cut)
    return 1 - sum(lengths) / computed


def test_micro_batches_have_little_padding() -> None:
    lengths = [30 + (37 * i * i) % 170 for i in range(3000)]
    order = list(LengthGroupedSampler(lengths, 16, seed=1))
    assert padding(order, lengths, 4) < 0.03
    assert padding(order, lengths, 16) < 0.05
    assert padding(list(range(3000)), lengths, 16) > 0.3


def test_steps_are_not_in_the_order_of_length() -> None:
    lengths = list(range(1, 801))
    order = list(LengthGroupedSampler(lengths, 8, seed=0))
    means = [sum(lengths[i] for i in order[at : at + 8]) / 8 for at in range(0, 800, 8)]
    rising = sum(b > a for a, b in pairwise(means))
    assert 30 < rising < 70


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_epoch_has_its_own_order(processes: int) -> None:
    PartialState(cpu=True)
    sampler = LengthGroupedSampler([i % 7 + 1 for i in range(32)], 4, seed=1)
    loader = prepare_data_loader(
        DataLoader(list(range(32)), batch_size=2, sampler=sampler),
        num_processes=processes,
        process_index=0,
        put_on_device=False,
    )
    pass_epochs_to_sampler(loader)
    loader.set_epoch(1)
    whole = [batch.tolist() for batch in loader]
    loader.set_epoch(0)
    rest = skip_first_batches(loader, 2)
    rest.set_epoch(1)
    assert [batch.tolist() for batch in rest] == whole[2:]
