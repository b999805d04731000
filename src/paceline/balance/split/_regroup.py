"""Divide the global batches that somebody else dealt anew over their ranks."""

import numpy as np
from numpy.typing import NDArray

from paceline.balance.split._pace import pace_of
from paceline.balance.split._padded import split_padded_steps
from paceline.balance.split._steps import partition_steps


def regroup(costs: NDArray[np.float64], *, padded: bool) -> NDArray[np.int64]:
    """Return which rank computes each example, so that the slowest rank ends early.

    Each global batch keeps its examples. One that no split makes faster stays as it was dealt.

    Args:
        costs: Cost of each example where it was dealt, finite and not negative, shape
            `(num_batches, num_ranks, batch_size)`.
        padded: Whether a rank pays its number of examples times the cost of the most expensive
            one, else the sum.

    Returns:
        Shape `(num_batches, num_ranks * batch_size)`; slot `i` was dealt to rank
        `i // batch_size`.

    Examples:
        >>> regroup(np.array([[[9.0, 1.0], [1.0, 1.0]]]), padded=True).tolist()
        [[0, 1, 1, 1]]
    """
    num_batches, num_ranks, batch_size = costs.shape
    slots = costs.reshape(num_batches, num_ranks * batch_size)
    pace = pace_of(None, num_ranks)
    if padded:
        owner = split_padded_steps(slots, "free", pace)
    else:
        owner = partition_steps(slots, "free", pace)
    dealt = np.broadcast_to(np.arange(slots.shape[1]) // batch_size, slots.shape)
    before = rank_costs(slots, dealt, num_ranks, padded=padded).max(axis=1)
    after = rank_costs(slots, owner, num_ranks, padded=padded).max(axis=1)
    return np.where((after < before)[:, None], owner, dealt)


def rank_costs(
    slots: NDArray[np.float64], owner: NDArray[np.int64], num_ranks: int, *, padded: bool
) -> NDArray[np.float64]:
    """Return what each rank pays for each batch, shape `(num_batches, num_ranks)`.

    Args:
        slots: Cost of each example, shape `(num_batches, num_slots)`.
        owner: Its rank, same shape.
        num_ranks: Ranks.
        padded: As in `regroup`.

    Examples:
        >>> slots, owner = np.array([[9.0, 1.0, 8.0, 1.0]]), np.array([[0, 1, 0, 1]])
        >>> rank_costs(slots, owner, 2, padded=True).tolist()
        [[18.0, 2.0]]
    """
    mine = owner[:, None] == np.arange(num_ranks)[:, None]
    held = np.where(mine, slots[:, None], 0.0)
    paid = held.max(axis=2) * mine.sum(axis=2) if padded else held.sum(axis=2)
    return np.asarray(paid, dtype=np.float64)
