from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.balance import split_padded

# Whole numbers, many of them equal, so that loads are exact.
COSTS = st.integers(0, 20).map(float)
NUM_WORKERS = st.integers(1, 6)


def least_largest_load(costs: list[float], num_workers: int) -> float:
    """Try every way to cut the sorted batch, empty parts included."""
    cost = sorted(costs, reverse=True)
    best = np.inf
    places = range(len(cost) + num_workers - 1)
    for bars in combinations(places, num_workers - 1):
        cuts = [0, *(bar - index for index, bar in enumerate(bars)), len(cost)]
        parts = [cost[a:b] for a, b in pairwise(cuts)]
        best = min(best, max(len(part) * max(part, default=0.0) for part in parts))
    return best


@given(costs=st.lists(COSTS, max_size=8), num_workers=st.integers(1, 4))
def test_no_contiguous_split_of_the_sorted_batch_is_better(
    costs: list[float], num_workers: int
) -> None:
    load = split_padded(costs, num_workers).load
    assert load.max() == least_largest_load(costs, num_workers)


@given(
    costs=st.lists(st.floats(0, 1e6), min_size=1, max_size=7),
    num_workers=st.integers(1, 3),
    factor=st.sampled_from([1.0, 1e-12, np.pi]),
)
def test_odd_costs_are_split_as_well_as_whole_ones(
    costs: list[float], num_workers: int, factor: float
) -> None:
    scaled = [cost * factor for cost in costs]
    best = least_largest_load(scaled, num_workers)
    assert split_padded(scaled, num_workers).load.max() == pytest.approx(best, rel=1e-9, abs=1e-300)


@given(costs=st.lists(COSTS, max_size=40), num_workers=NUM_WORKERS)
def test_every_example_has_one_owner_and_loads_follow_from_owners(
    costs: list[float], num_workers: int
) -> None:
    split = split_padded(costs, num_workers)
    assert split.owner.shape == (len(costs),)
    assert split.load.shape == (num_workers,)
    parts = [split.examples_of(worker).tolist() for worker in range(num_workers)]
    assert sorted(example for part in parts for example in part) == list(range(len(costs)))
    for part, load in zip(parts, split.load, strict=True):
        assert load == len(part) * max((costs[example] for example in part), default=0.0)


@given(costs=st.lists(COSTS, max_size=40), num_workers=NUM_WORKERS)
def test_no_worker_is_left_without_examples_if_there_are_enough(
    costs: list[float], num_workers: int
) -> None:
    owner = split_padded(costs, num_workers).owner
    assert len(set(owner.tolist())) == min(len(costs), num_workers)


@given(costs=st.lists(COSTS, max_size=40), num_workers=NUM_WORKERS)
def test_dearer_examples_go_to_lower_workers_and_ties_by_index(
    costs: list[float], num_workers: int
) -> None:
    owner = split_padded(costs, num_workers).owner
    order = sorted(range(len(costs)), key=lambda example: (-costs[example], example))
    assert (np.diff(owner[order]) >= 0).all()


@pytest.mark.parametrize(
    ("costs", "num_workers", "owner", "load"),
    [
        ([8.0, 1.0, 1.0, 1.0], 2, [0, 1, 1, 1], [8.0, 3.0]),
        ([2.0, 2.0, 2.0, 2.0], 2, [0, 0, 1, 1], [4.0, 4.0]),
        ([1.0, 5.0, 4.0], 1, [0, 0, 0], [15.0]),
        ([1.0, 5.0], 3, [1, 0], [5.0, 1.0, 0.0]),
        ([1e3, 501.0, 501.0, 1.0, 1.0], 4, [0, 1, 2, 3, 3], [1e3, 501.0, 501.0, 2.0]),
        ([0.0, 0.0, 0.0], 2, [0, 0, 1], [0.0, 0.0]),
        ([], 2, [], [0.0, 0.0]),
    ],
)
def test_small_batches_are_split_as_by_hand(
    costs: list[float], num_workers: int, owner: list[int], load: list[float]
) -> None:
    split = split_padded(costs, num_workers)
    assert split.owner.tolist() == owner
    assert split.load.tolist() == load


def test_the_input_is_left_as_it_was() -> None:
    costs = np.array([3.0, 1.0, 2.0])
    split_padded(costs, 2)
    assert costs.tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("costs", "num_workers", "message"),
    [
        ([1.0, -1.0], 2, r"costs\[1\] is -1.0"),
        ([np.nan], 2, r"costs\[0\] is nan"),
        ([np.inf], 2, r"costs\[0\] is inf"),
        ([[1.0]], 2, "one-dimensional"),
        (1.0, 2, "one-dimensional"),
        ([1.0], 0, "num_workers must be at least 1, got 0"),
        ([1.0], -3, "num_workers must be at least 1, got -3"),
    ],
)
def test_bad_input_is_refused(costs: Any, num_workers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_padded(costs, num_workers)
