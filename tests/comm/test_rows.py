"""Rows first: what is sent of an embedding, and that no row is read before its update."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.comm import Head, RowUse, WireProblem, plan_blocks, rows_first, step_time_s
from paceline.cost import Link

NUM_ROWS, ROW_BYTES = 12, 8.0
MASKS = st.lists(st.booleans(), min_size=NUM_ROWS, max_size=NUM_ROWS).map(np.array)
# Three layers; the embedding is tensor 0, ready at 6 s, the head's part exists at 2 s.
PROBLEM = WireProblem(
    forward_s=np.array([1.0, 1.0, 1.0]),
    layer=np.array([0, 1]),
    num_bytes=np.array([NUM_ROWS * ROW_BYTES, 16.0]),
    ready_s=np.array([6.0, 4.0]),
    backward_s=6.0,
    link=Link(0.0, 16.0),
)


def use_of(touched: list[int], needed: list[int]) -> RowUse:
    return RowUse.from_ids(touched, needed, num_rows=NUM_ROWS)


def pieces_of(problem: WireProblem) -> list[tuple[int, float, float]]:
    columns = (problem.layer, problem.num_bytes / ROW_BYTES, problem.ready_s)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


MASK = (2, NUM_ROWS / ROW_BYTES, 0.0)
OTHER = (1, 2.0, 4.0)


@pytest.mark.parametrize(
    ("heads", "pieces"),
    [
        ([], [(0, 2.0, 6.0), (3, 1.0, 6.0)]),
        ([Head(2, 2.0)], [(0, 2.0, 6.0), (2, 1.0, 6.0), (0, 4.0, 2.0), (2, 8.0, 2.0)]),
        ([Head(2, 6.0)], [(0, 4.0, 6.0), (2, 8.0, 6.0)]),
        (
            # Rows 0 to 5 have touched 0, 1, 2 and needed 1, 2, 3; rows 6 to 11 only needed 11.
            [Head(1, 3.0), Head(2, 2.0)],
            [
                (0, 2.0, 6.0),
                (1, 1.0, 6.0),
                (0, 3.0, 3.0),
                (1, 3.0, 3.0),
                (0, 1.0, 2.0),
                (2, 5.0, 2.0),
            ],
        ),
    ],
    ids=["by itself", "tied", "tied and summed", "tied to two stretches"],
)
def test_what_is_sent_is_what_one_counts_by_hand(
    heads: list[Head], pieces: list[tuple[int, float, float]]
) -> None:
    found = rows_first(PROBLEM, 0, use_of([0, 1, 2], [1, 2, 3, 11]), heads=heads)
    assert pieces_of(found) == sorted([*pieces, MASK, OTHER])


@given(touched=MASKS, needed=MASKS, num_heads=st.integers(0, 3))
def test_rows_that_are_needed_next_come_first_and_none_is_lost(
    touched: NDArray[np.bool_], needed: NDArray[np.bool_], num_heads: int
) -> None:
    rows = RowUse(touched=touched, needed=needed)
    heads = [Head(2, 2.0)] * num_heads
    pieces = pieces_of(rows_first(PROBLEM, 0, rows, heads=heads))
    pieces.remove(MASK)
    pieces.remove(OTHER)
    dense = NUM_ROWS if num_heads else 0
    assert sum(count for _, count, _ in pieces) == touched.sum() + dense
    first = sum(count for layer, count, _ in pieces if layer == 0)
    assert first == (touched & needed).sum() + (needed.sum() if num_heads else 0)
    assert all(layer == (2 if num_heads else 3) for layer, _, _ in pieces if layer)


@given(touched=MASKS, needed=MASKS)
def test_a_row_is_never_read_between_its_gradient_and_its_update(
    touched: NDArray[np.bool_], needed: NDArray[np.bool_]
) -> None:
    # What is carried over is what rows_first does not send before the lookup.
    carried = rows_first(PROBLEM, 0, RowUse(touched=touched, needed=needed))
    sent_late = carried.num_bytes[carried.layer == 3].sum() / ROW_BYTES
    assert sent_late == (touched & ~needed).sum()


def test_rows_first_is_faster_where_the_embedding_comes_last() -> None:
    found = rows_first(PROBLEM, 0, use_of([0, 1], [1, 2]), heads=[Head(2, 2.0)])
    prices = [step_time_s(each, plan_blocks(each)) for each in (found, PROBLEM)]
    assert prices[0] < prices[1]


@pytest.mark.parametrize(("bytes_per_s", "step_s"), [(16.0, 9.0 + 8 / 16), (12.0, 124 / 12)])
def test_what_is_carried_over_leaves_the_step_as_short_as_the_wire_allows(
    bytes_per_s: float, step_s: float
) -> None:
    slow = replace(PROBLEM, link=Link(0.0, bytes_per_s))
    found = rows_first(slow, 0, use_of(list(range(NUM_ROWS)), [0]))
    # 8 bytes of the row that is needed behind 9 s of compute, or 124 bytes per step.
    assert step_time_s(found, plan_blocks(found)) == pytest.approx(step_s)


@pytest.mark.parametrize(
    ("tensor", "heads", "message"),
    [
        (2, [], r"tensor must lie in \[0, 2\), got 2"),
        (0, [Head(3, 1.0)], r"in \[0, 3\), got 3"),
        (1, [Head(0, 1.0)], r"in \[1, 3\), got 0"),
    ],
)
def test_layers_that_do_not_exist_are_refused(tensor: int, heads: list[Head], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_first(PROBLEM, tensor, use_of([0], [1]), heads=heads)


@pytest.mark.parametrize("ids", [[-1], [NUM_ROWS]])
def test_ids_that_are_no_rows_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 12\)"):
        use_of(ids, [0])


def test_masks_of_different_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        RowUse(touched=np.ones(2, dtype=np.bool_), needed=np.ones(3, dtype=np.bool_))
