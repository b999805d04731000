from itertools import combinations, pairwise
from math import fsum, inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.balance import BalanceConfig, Limits
from paceline.balance._micro import check_limits, split_micro_batches


def split(
    costs: list[float],
    *,
    num_parts: int = 1,
    limits: Limits | None = None,
    is_padded: bool = False,
    owner: list[int] | None = None,
) -> tuple[list[list[list[float]]], NDArray[np.int64]]:
    """Split one step; return the costs per worker and micro-batch, and the owners after."""
    owners = np.array([owner or [0] * len(costs)])
    num_workers = int(owners.max()) + 1
    config = BalanceConfig(
        batch_size=len(costs),
        num_workers=num_workers,
        counts="free",
        padded=is_padded,
        num_microbatches=num_parts,
        limits=limits or Limits(),
    )
    amounts = np.stack([np.array(costs)] * 3)
    micro, parts = split_micro_batches(amounts[:, None], owners, config)
    held = [
        [
            [costs[i] for i in np.flatnonzero((owners[0] == worker) & (micro[0] == part))]
            for part in range(int(parts[0]))
        ]
        for worker in range(num_workers)
    ]
    return held, owners[0]


def price(costs: list[float], is_padded: bool) -> float:
    return len(costs) * max(costs) if is_padded else fsum(costs)


def least_largest(costs: list[float], num_parts: int, is_padded: bool) -> float:
    """Try every cut of the sorted costs into parts that are not empty."""
    ordered = sorted(costs)
    cuts = combinations(range(1, len(costs)), num_parts - 1)
    bounds = ([0, *cut, len(costs)] for cut in cuts)
    return min(max(price(ordered[a:b], is_padded) for a, b in pairwise(each)) for each in bounds)


@given(
    costs=st.lists(st.integers(0, 30).map(float) | st.floats(0, 1e3), min_size=3, max_size=9),
    num_parts=st.integers(1, 3),
    is_padded=st.booleans(),
)
def test_the_most_expensive_micro_batch_is_as_cheap_as_contiguous_parts_can_be(
    costs: list[float], num_parts: int, is_padded: bool
) -> None:
    [parts], _ = split(costs, num_parts=num_parts, is_padded=is_padded)
    assert sorted(cost for part in parts for cost in part) == sorted(costs)
    largest = max(price(part, is_padded) for part in parts)
    best = least_largest(costs, num_parts, is_padded)
    assert largest == pytest.approx(best, rel=1e-6, abs=1e-300)


@given(
    costs=st.lists(st.floats(0, 100), min_size=4, max_size=20),
    num_parts=st.integers(1, 4),
    is_padded=st.booleans(),
    max_cost=st.sampled_from([100.0, 250.0, inf]),
    max_examples=st.sampled_from([1, 3, inf]),
)
def test_micro_batches_are_full_light_to_heavy_and_within_limits(
    costs: list[float], num_parts: int, is_padded: bool, max_cost: float, max_examples: float
) -> None:
    limits = Limits(max_cost=max_cost, max_examples=max_examples)
    [parts], _ = split(costs, num_parts=num_parts, limits=limits, is_padded=is_padded)
    assert len(parts) >= num_parts
    assert all(0 < len(part) <= max_examples for part in parts)
    prices = [price(part, is_padded) for part in parts]
    assert max(prices) <= max_cost * (1 + 1e-12)
    assert all(one <= other * (1 + 1e-12) for one, other in pairwise(prices))


@pytest.mark.parametrize("num_examples", range(1, 12))
def test_many_equal_costs_whose_sum_is_rounded_up_stay_in_one_part(num_examples: int) -> None:
    for cost in (0.1, 0.7483103892336814, 1.1, 1e-300, 5e-324):
        [parts], _ = split([cost] * num_examples, limits=Limits(max_examples=100))
        assert parts == [[cost] * num_examples]


@pytest.mark.parametrize(
    ("costs", "options", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], {"num_parts": 2}, [[4.0], [1.0, 2.0, 3.0]]),
        ([5.0, 3.0, 3.0], {"num_parts": 2}, [[5.0], [3.0, 3.0]]),
        ([4.0, 3.0, 3.0], {"num_parts": 2, "is_padded": True}, [[4.0], [3.0, 3.0]]),
        ([0.0, 0.0, 0.0], {"num_parts": 3}, [[0.0], [0.0], [0.0]]),
        ([2.0, 2.0, 2.0], {"limits": Limits(max_cost=4)}, [[2.0], [2.0, 2.0]]),
        ([2.0, 2.0, 2.0], {"limits": Limits(max_examples=2)}, [[2.0], [2.0, 2.0]]),
        ([1.0, 1.0, 9.0], {"limits": Limits(max_tokens=9), "is_padded": True}, [[1.0] * 2, [9.0]]),
    ],
)
def test_small_shares_are_cut_as_by_hand(
    costs: list[float], options: dict[str, Any], expected: list[list[float]]
) -> None:
    assert split(costs, **options)[0] == [expected]


def test_all_workers_of_a_step_get_as_many_parts_as_the_one_that_needs_most() -> None:
    held, _ = split([6.0, 6.0, 1.0, 1.0, 1.0], owner=[0, 0, 1, 1, 1], limits=Limits(max_cost=6))
    assert held == [[[6.0], [6.0]], [[1.0], [1.0, 1.0]]]


def test_a_worker_with_too_few_takes_the_cheapest_of_the_one_with_most() -> None:
    held, owner = split([9.0, 1.0, 2.0, 3.0, 4.0], owner=[0, 1, 1, 1, 1], num_parts=2)
    assert owner.tolist() == [0, 0, 1, 1, 1]
    assert held == [[[1.0], [9.0]], [[4.0], [2.0, 3.0]]]


def test_limits_that_a_step_cannot_keep_are_refused() -> None:
    with pytest.raises(ValueError, match="need 4 micro-batches per worker in step 0, more than 5"):
        split([1.0] * 5, owner=[0, 0, 0, 0, 1], limits=Limits(max_examples=1))


@pytest.mark.parametrize(
    ("row", "limits", "message"),
    [
        (0, Limits(max_cost=2), "max_cost is 2, but the cost of example 1 alone is 3"),
        (1, Limits(max_tokens=2), "max_tokens is 2, but the size of example 1 alone is 3"),
        (2, Limits(max_bytes=2), "max_bytes is 2, but the bytes of example 1 alone is 3"),
    ],
)
def test_the_first_example_over_a_limit_is_named(row: int, limits: Limits, message: str) -> None:
    amounts = np.zeros((3, 4))
    amounts[row] = [2.0, 3.0, 1.0, 4.0]
    with pytest.raises(ValueError, match=message + r" \(2 examples are over\)"):
        check_limits(amounts, limits)


def test_an_example_may_be_exactly_on_a_limit() -> None:
    amounts = np.full((3, 4), 2.0)
    check_limits(amounts, Limits(max_cost=2, max_tokens=2, max_bytes=2, max_examples=1))
