"""What a change gains, with an interval: stretches of steps, resampled."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NUM_RESAMPLES, NUM_BLOCKS, SEED = 400, 50, 20261121
# Ends of the interval that holds 95 % of the resamples.
ENDS = (0.025, 0.975)


def gain_interval(before_s: Array, after_s: Array) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the share of time that a change saves.

    Resamples stretches of consecutive steps, since neighbours resemble each other, with a fixed
    seed. Both arrays hold the seconds of the same steps, shape `(num_steps,)`.

    Examples:
        >>> low, high = gain_interval(np.full(100, 2.0), np.full(100, 1.5))
        >>> round(low, 6), round(high, 6)
        (0.25, 0.25)
    """
    before, after = resampled_sums(before_s, after_s)
    return interval_of(1 - after / before)


def interval_of(resampled: Array) -> tuple[float, float]:
    """Return the ends of the interval that holds 95 % of the resampled values."""
    low, high = np.quantile(resampled, ENDS).tolist()
    return low, high


def resampled_sums(*columns_s: Array) -> list[Array]:
    """Return sums of resampled stretches of steps, the same stretches for all columns.

    Each result has shape `(num_resamples,)`.
    """
    num_steps = len(columns_s[0])
    starts = np.unique(np.linspace(0, num_steps, min(num_steps, NUM_BLOCKS) + 1)[:-1].astype(int))
    picks = np.random.default_rng(SEED).integers(len(starts), size=(NUM_RESAMPLES, len(starts)))
    return [np.add.reduceat(column, starts)[picks].sum(axis=1) for column in columns_s]
