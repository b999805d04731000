"""Global batches that somebody else dealt, divided anew."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.balance import rank_costs, regroup

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@given(SHAPES, st.integers(0, 2**32 - 1), st.booleans())
def test_no_batch_is_slower_than_it_was_dealt(
    shape: tuple[int, int, int], seed: int, padded: bool
) -> None:
    costs = np.random.default_rng(seed).integers(1, 20, shape).astype(np.float64)
    owner, slots = regroup(costs, padded=padded), costs.reshape(shape[0], -1)
    dealt = np.tile(np.arange(slots.shape[1]) // shape[2], (shape[0], 1))
    after, before = (
        rank_costs(slots, one, shape[1], padded=padded).max(axis=1) for one in (owner, dealt)
    )
    assert (after <= before).all()
    assert (owner[after == before] == dealt[after == before]).all()
    assert set(np.unique(owner)) == set(range(shape[1]))


@pytest.mark.parametrize("seed", range(8))
def test_padded_batches_are_divided_as_well_as_can_be(seed: int) -> None:
    costs = np.random.default_rng(seed).integers(1, 30, (1, 2, 4)).astype(np.float64)
    slots = costs.reshape(1, -1)
    found = rank_costs(slots, regroup(costs, padded=True), 2, padded=True).max()
    assert found == pytest.approx(min(largest(slots, owner) for owner in product((0, 1), repeat=8)))


def largest(slots: NDArray[np.float64], owner: tuple[int, ...]) -> float:
    return float(rank_costs(slots, np.array([owner]), 2, padded=True).max())
