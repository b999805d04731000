"""The chain of spans that set how long a run took."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled

if TYPE_CHECKING:
    from paceline.timeline._timeline import Timeline

CLOCK_TOLERANCE_S = 1e-9


def critical_path(run: "Timeline", last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of the spans on the critical path, first to last.

    Walks back from the span that ends last. A collective is traced to the rank
    that arrived last; any other span to the latest-ending span before it on its
    own rank, or, when that one left a gap, to a span of another rank that ended at
    that very moment. Timelines do not hold dependencies, so where two spans ended
    together the choice between them is a guess. Takes O(n log n) time.

    Args:
        run: Spans of all ranks on one clock.
        last: Per span, the part of its collective that arrived last.
    """
    if not len(run):
        return np.zeros(0, dtype=np.int64)
    end_s = run.end_s
    by_end = np.argsort(end_s, kind="stable")
    by_rank = by_end[np.argsort(run.rank[by_end], kind="stable")]
    first_of_rank = np.searchsorted(run.rank[by_rank], run.rank, side="left")
    last_of_rank = np.searchsorted(run.rank[by_rank], run.rank, side="right")
    path = _walk_back(run.start_s, end_s, by_end, by_rank, first_of_rank, last_of_rank, last)
    return path[::-1]


@compiled
def _walk_back(
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    by_end: NDArray[np.int64],
    by_rank: NDArray[np.int64],
    first_of_rank: NDArray[np.int64],
    last_of_rank: NDArray[np.int64],
    last_to_arrive: NDArray[np.int64],
) -> NDArray[np.int64]:
    path = np.empty(len(start_s), dtype=np.int64)
    position = np.empty(len(start_s), dtype=np.int64)
    position[by_end] = np.arange(len(start_s))
    length = 0
    span = by_end[-1]
    seen_before = len(start_s)
    # Each span on the path comes earlier in the order of ends, so the walk ends.
    while span >= 0 and position[span] < seen_before:
        seen_before = position[span]
        path[length] = last_to_arrive[span]
        length += 1
        span = last_to_arrive[span]
        span = _predecessor(
            span, start_s, end_s, by_end, by_rank, first_of_rank, last_of_rank, seen_before
        )
    return path[:length]


@compiled
def _predecessor(
    span: int,
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    by_end: NDArray[np.int64],
    by_rank: NDArray[np.int64],
    first_of_rank: NDArray[np.int64],
    last_of_rank: NDArray[np.int64],
    seen_before: int,
) -> int:
    limit = start_s[span] + CLOCK_TOLERANCE_S
    own = by_rank[first_of_rank[span] : last_of_rank[span]]
    mine: int = -1
    at = _last_at_or_before(end_s, own, limit)
    while at >= 0:
        if own[at] != span:
            mine = own[at]
            break
        at -= 1
    if mine >= 0 and end_s[mine] >= start_s[span] - CLOCK_TOLERANCE_S:
        return mine
    at = min(_last_at_or_before(end_s, by_end, limit), seen_before - 1)
    if at >= 0 and end_s[by_end[at]] >= start_s[span] - CLOCK_TOLERANCE_S:
        mine = by_end[at]
    return mine


@compiled
def _last_at_or_before(end_s: NDArray[np.float64], order: NDArray[np.int64], limit: float) -> int:
    """Return the last position in `order`, ascending by end, that ends by `limit`; or -1."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if end_s[order[middle]] <= limit:
            low = middle + 1
        else:
            high = middle
    return low - 1
