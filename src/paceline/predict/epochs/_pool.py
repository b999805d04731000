"""Several predictive distributions of the epochs, pooled by how they did on held-out runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

GRID_STEPS = 3
LEAST_TEMPERATURE = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Epochs that a run may take, and how likely; both of shape `(num_runs, num_values)`."""

    values: NDArray[np.float64]
    weights: NDArray[np.float64]


def pooled_epochs(spreads: Sequence[Spread], pool: NDArray[np.float64]) -> NDArray[np.float64]:
    """The epochs with the least expected relative error under the pooled spreads.

    The expectation of `|p - y| / y` is least at the median of y when each value
    counts `1 / y`, which lies below the plain median: being 10 epochs long costs
    a run of 8 more than a run of 40. The pool is linear [1].

    There is one spread per member; `pool` is the weight of each, shape `(num_members,)`, sum 1.

    Examples:
        >>> short_or_long = Spread(np.array([[8.0, 40.0]]), np.array([[0.4, 0.6]]))
        >>> pooled_epochs([short_or_long], np.array([1.0])).tolist()
        [8.0]

    References:
        [1] M. Stone, "The opinion pool", Annals of Mathematical Statistics 32, 1961.
    """
    values = np.concatenate([spread.values for spread in spreads], axis=1)
    weights = np.concatenate(
        [share * spread.weights for share, spread in zip(pool, spreads, strict=True)], axis=1
    )
    order = np.argsort(values, axis=1, kind="stable")
    values = np.take_along_axis(values, order, axis=1)
    mass = np.cumsum(np.take_along_axis(weights, order, axis=1) / values, axis=1)
    middle = (mass >= mass[:, -1:] / 2).argmax(axis=1)
    return np.asarray(np.take_along_axis(values, middle[:, None], axis=1)[:, 0])


def learn_pool(
    held_out: Sequence[tuple[Sequence[Spread], NDArray[np.float64]]], *, rows_alike: bool
) -> NDArray[np.float64]:
    """Weights of the members, from how each mixture of them did on held-out runs.

    Every mixture of a coarse grid counts with `exp(-2 (loss - least loss) / standard error)`, where
    the error is over rows if `rows_alike` or, for new names, over units: two or three units move
    the weights little away from equal shares, a hundred rows move them to the best member.
    `held_out` holds, per unit, the members' spreads and the true epochs.
    """
    grid = _mixtures(len(held_out[0][0]))
    errors = [
        np.array([np.abs(pooled_epochs(spreads, mixture) / truth - 1) for mixture in grid])
        for spreads, truth in held_out
    ]
    loss = np.concatenate(errors, axis=1).mean(axis=1)
    best = int(loss.argmin())
    seen = np.concatenate(
        [unit[best] if rows_alike else unit[best].mean()[None] for unit in errors]
    )
    deviation = float(seen.std(ddof=1)) if seen.size > 1 else 1.0
    temperature = max(deviation / np.sqrt(seen.size) / 2, LEAST_TEMPERATURE)
    credit = np.exp(-(loss - loss[best]) / temperature)
    return np.asarray(credit @ grid / credit.sum())


def _mixtures(num_members: int) -> NDArray[np.float64]:
    chosen = combinations_with_replacement(range(num_members), GRID_STEPS)
    counts = [np.bincount(members, minlength=num_members) for members in chosen]
    return np.array(counts) / GRID_STEPS
