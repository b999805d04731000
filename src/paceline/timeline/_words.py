"""What the shares of a run mean, and what to do about them."""

import numpy as np
from numpy.typing import NDArray

MEANING = (
    "busy: computes; waiting: for the most loaded rank; exposed: for the wire, all ranks there; "
    "data: between steps; other: idle otherwise"
)
# What is worth a change: below this share of rank time, nothing is.
WORTH_IT = 0.05
NEXT = (
    "waiting for the most loaded rank: balance by length, see docs/balance.md",
    "waiting for the wire alone: overlap it with the backward pass, see docs/communication.md",
    "between steps, mostly waiting for data: load it ahead, see Prefetch in docs/overlap.md",
    "idle without a cause that was recorded: look at it with to_chrome_trace(), docs/timeline.md",
)


def share_rows(ranks: NDArray[np.int32], shares: NDArray[np.float64]) -> list[str]:
    """Return a table of `shares`, shape `(5, num_ranks)`, as percentages, and what its words mean.

    Rows of `shares` are busy, exposed, waiting, data and other.
    """
    rows = ["rank   busy  waiting  exposed   data  other  (% of time)"]
    for rank, (busy, exposed, waiting, data, other) in zip(ranks, 100 * shares.T, strict=True):
        cells = f"{busy:7.1f}{waiting:9.1f}{exposed:9.1f}{data:7.1f}{other:7.1f}"
        rows.append(f"{rank:4d}{cells}")
    return [*rows, MEANING]


def next_step(shares: NDArray[np.float64]) -> str:
    """Return in one line what costs most of the ranks' time, and where to read on."""
    busy, exposed, waiting, data, other = shares.mean(axis=1).tolist()
    share, advice = max(zip((waiting, exposed, data, other), NEXT, strict=True))
    if share < WORTH_IT:
        return f"next: {busy:.0%} of rank time is computing; no wait is worth a change"
    return f"next: {share:.0%} of rank time is {advice}"
