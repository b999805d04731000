import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from paceline.balance.split._sorting import descending_order, group_rows

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)


def stable_order(costs: NDArray[np.float64]) -> list[list[int]]:
    order: list[list[int]] = np.argsort(-costs, axis=1, kind="stable").tolist()
    return order


# Whole numbers up to 10^6 differ in bits that no position needs.
@given(hnp.arrays(np.int64, SHAPES, elements=st.integers(0, 10**6)))
def test_distinct_and_equal_costs_are_ordered_as_by_a_stable_sort(
    costs: NDArray[np.int64],
) -> None:
    cost = costs.astype(np.float64)
    assert descending_order(cost).tolist() == stable_order(cost)


@given(hnp.arrays(np.float64, SHAPES, elements=st.floats(0, 1.7e308)))
def test_any_costs_descend_to_within_the_bits_of_a_position(costs: NDArray[np.float64]) -> None:
    order = descending_order(costs)
    assert (np.sort(order, axis=1) == np.arange(costs.shape[1])).all()
    ordered = np.take_along_axis(costs, order, axis=1)
    most = np.maximum(ordered[:, :-1] * (1 + 1e-14), 1e-320)
    assert (ordered[:, 1:] <= most).all()


@pytest.mark.parametrize(
    ("costs", "order"),
    [
        ([0.0, -0.0, 0.0], [0, 1, 2]),
        ([-0.0, 1.0, 0.0], [1, 0, 2]),
        ([1.0], [0]),
        ([1.0, np.nextafter(1.0, 2.0)], [0, 1]),  # Too close to tell apart.
        ([1.0, 1.0 + 1e-12], [1, 0]),
        ([5e-324, 1e-300, 1.7e308, 0.0], [2, 1, 0, 3]),
    ],
)
def test_special_costs_are_ordered_as_by_hand(costs: list[float], order: list[int]) -> None:
    assert descending_order(np.array([costs])).tolist() == [order]


@pytest.mark.parametrize("num_columns", [1, 2, 3, 4, 5, 255, 256, 257, 70_000])
def test_rows_of_any_length_are_ordered(num_columns: int) -> None:
    costs = np.random.default_rng(0).permutation(np.arange(num_columns) // 2)[None].astype(float)
    assert descending_order(costs).tolist() == stable_order(costs)


def test_the_costs_are_left_as_they_were() -> None:
    costs = np.array([[-0.0, 3.0, 2.0]])
    before = costs.tobytes()
    descending_order(costs)
    assert costs.tobytes() == before


@given(
    hnp.arrays(np.int64, SHAPES, elements=st.integers(0, 5)),
    st.lists(st.integers(6, 8), min_size=20, max_size=20),
)
def test_entries_are_grouped_as_by_a_stable_sort(
    place: NDArray[np.int64], num_places: list[int]
) -> None:
    sizes = np.array(num_places[: len(place)])
    slots = np.empty_like(place)
    counts = group_rows(place, sizes, slots)
    first = np.arange(len(place))[:, None] * place.shape[1]
    assert slots.tolist() == (np.argsort(place, axis=1, kind="stable") + first).tolist()
    expected = [
        np.bincount(row, minlength=size) for row, size in zip(place, sizes.tolist(), strict=True)
    ]
    assert counts.tolist() == np.concatenate(expected).tolist()
