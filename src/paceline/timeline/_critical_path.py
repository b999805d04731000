"""The chain of spans that set how long a run took."""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.timeline._columns import Columns

CLOCK_TOLERANCE_S = 1e-9


def critical_path(run: Columns, last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of the spans on the critical path, first to last.

    Goes back from the span that ends last. A collective is traced to the rank that arrived last
    (`last`, per span); any other span to the latest-ending span before it on its own rank, or,
    when that one left a gap, to a span of another rank that ended at that very moment. Timelines
    hold no dependencies, so between spans that ended together this is a guess. O(n log n) time.
    """
    if not len(run.rank):
        return np.zeros(0, dtype=np.int64)
    _, row, counts = np.unique(run.rank, return_inverse=True, return_counts=True)
    return _trace_back(
        run.start_s,
        run.end_s,
        row,
        np.argsort(run.end_s, kind="stable"),
        np.lexsort((run.end_s, row)),
        np.concatenate([[0], np.cumsum(counts)]),
        last,
    )[::-1]


@compiled_beyond(100_000)
def _trace_back(
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    row: NDArray[np.int64],
    by_end: NDArray[np.int64],
    by_row: NDArray[np.int64],
    first_of_row: NDArray[np.int64],
    last_to_arrive: NDArray[np.int64],
) -> NDArray[np.int64]:
    path = np.empty(len(start_s), dtype=np.int64)
    length = 0
    # Spans without length end together with what is before and after them, so being
    # earlier is not enough to tell what the path already holds.
    on_path = np.zeros(len(start_s), dtype=np.bool_)
    # The limit only falls, so what a cursor has passed never comes into question again.
    limit_s = np.inf
    own_cursor = first_of_row[1:] - 1
    cursor = len(start_s) - 1
    span = by_end[-1]
    while span >= 0:
        span = last_to_arrive[span]
        on_path[span] = True
        path[length] = span
        length += 1
        limit_s = min(limit_s, start_s[span] + CLOCK_TOLERANCE_S)
        gap_before_s = limit_s - 2 * CLOCK_TOLERANCE_S
        first, at = first_of_row[row[span]], own_cursor[row[span]]
        at = _step_down(by_row, at, first, end_s, limit_s, on_path, last_to_arrive)
        own_cursor[row[span]] = at
        span = by_row[at] if at >= first else -1
        if span < 0 or end_s[span] < gap_before_s:
            cursor = _step_down(by_end, cursor, 0, end_s, limit_s, on_path, last_to_arrive)
            if cursor >= 0 and end_s[by_end[cursor]] >= gap_before_s:
                span = by_end[cursor]
    return path[:length]


@compiled
def _step_down(
    order: NDArray[np.int64],
    at: int,
    first: int,
    end_s: NDArray[np.float64],
    limit_s: float,
    on_path: NDArray[np.bool_],
    last_to_arrive: NDArray[np.int64],
) -> int:
    """Return the last position from `at` down that ended in time and is not on the path."""
    while at >= first and (end_s[order[at]] > limit_s or on_path[last_to_arrive[order[at]]]):
        at -= 1
    return at
