"""Say how far off an estimate may be: intervals calibrated on residuals of the same kind of shift.

A residual is `log(measured / predicted)`, so an interval is a pair of factors
around the prediction and stays positive. What counts as one observation
depends on the shift: for a known configuration every row is one; for a new
model, dataset or GPU all rows of that unit move together, so a unit is one.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number together with the range that holds it nine times out of ten.

    Attributes:
        median: Best single guess, in the unit of what is estimated.
        low: Lower end of the interval, at most `median`.
        high: Upper end of the interval, at least `median`.

    Raises:
        ValueError: If one of the three is not finite, or they are out of order.

    Examples:
        >>> Estimate(2.0, 1.5, 3.0).scaled(10)
        Estimate(median=20.0, low=15.0, high=30.0)
    """

    median: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (self.median, self.low, self.high)):
            raise ValueError(f"an estimate needs finite numbers, got {self._text()}")
        if not self.low <= self.median <= self.high:
            raise ValueError(
                f"low must be at most median and median at most high, got {self._text()}; "
                "pass them as Estimate(median, low, high)"
            )

    def scaled(self, by: float) -> "Estimate":
        """The estimate of `by` times the same thing: steps per epoch, price per second.

        Raises:
            ValueError: If `by` is negative or not finite.
        """
        if not (math.isfinite(by) and by >= 0):
            raise ValueError(f"by must be finite and not negative, got {by}")
        return Estimate(self.median * by, self.low * by, self.high * by)

    def plus(self, other: "Estimate") -> "Estimate":
        """Add medians, and spreads as if they were independent.

        Examples:
            >>> Estimate(2.0, 1.0, 6.0).plus(Estimate(5.0, 5.0, 8.0))
            Estimate(median=7.0, low=6.0, high=12.0)
        """
        median = self.median + other.median
        down = math.hypot(self.median - self.low, other.median - other.low)
        up = math.hypot(self.high - self.median, other.high - other.median)
        return Estimate(median, max(median - down, 0.0), median + up)

    def times(self, other: "Estimate") -> "Estimate":
        """Multiply medians, and spreads of logarithms as if they were independent.

        Examples:
            >>> Estimate(2.0, 1.0, 4.0).times(Estimate(3.0, 3.0, 3.0))
            Estimate(median=6.0, low=3.0, high=12.0)
        """
        median = self.median * other.median
        if not median:
            return Estimate(0.0, 0.0, self.high * other.high)
        if self.low * other.low <= 0:
            return Estimate(median, 0.0, self.high * other.high)
        down = _both(self.median / self.low, other.median / other.low)
        up = _both(self.high / self.median, other.high / other.median)
        return Estimate(median, min(median / down, median), max(median * up, median))

    def _text(self) -> str:
        return f"median {self.median}, low {self.low}, high {self.high}"


def _both(one: float, other: float) -> float:
    return math.exp(math.hypot(math.log(one), math.log(other)))


def conformal_offsets(
    log_residuals: ArrayLike, coverage: float = 0.9, *, groups: ArrayLike | None = None
) -> tuple[float, float]:
    """Offsets `(low, high)` around a log prediction that hold a new residual with `coverage`.

    Without `groups` this is split conformal prediction [1], one tail at a time: with n exchangeable
    residuals, the `ceil((n + 1) * (1 + coverage) / 2)`-th smallest bounds a new one from above with
    at least the asked probability, and likewise from below. The tails are kept apart because
    measured times err to the slow side; where n is too small for that rank to exist, the extreme
    residual is widened in proportion to the missing rank.

    With `groups`, rows of one group share one vote: each group's rows together weigh 1, whatever
    their number, and the interval is symmetric, the weighted quantile of the absolute residual,
    since a handful of groups says little about the two tails apart. With n groups the next one is
    among the `ceil((n + 1) * coverage)` best in that many cases [1]; where n is smaller than that
    rank (less than nine groups at 90 %) the largest of the groups' own quantiles is taken.

    Args:
        log_residuals: `log(measured / predicted)` of rows that the predictor
            was not fitted on, shape `(num_rows,)`, at least one.
        coverage: Wanted share inside, between 0 and 1 exclusive.
        groups: Name of the unit that each row belongs to, shape `(num_rows,)`.

    Returns:
        `(low, high)` with `low <= 0 <= high`; the interval of a prediction p
        is `p * exp(low)` to `p * exp(high)`.

    Raises:
        ValueError: If the residuals are empty or not finite, the shapes
            differ, or `coverage` is outside (0, 1).

    Examples:
        >>> low, high = conformal_offsets([-0.2, -0.1, 0.0, 0.1, 0.3] * 20)
        >>> (low, high)
        (-0.2, 0.3)
        >>> conformal_offsets([-0.1] * 97 + [0.2], groups=["a"] * 97 + ["b"])
        (-0.2, 0.2)

    References:
        [1] V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random
        World", 2005. Groups differ from it as said above.
    """
    residuals = np.asarray(log_residuals, dtype=np.float64)
    if residuals.ndim != 1 or not residuals.size or not np.isfinite(residuals).all():
        raise ValueError(
            "log_residuals must be finite with shape (num_rows,) and at least one row, "
            f"got shape {residuals.shape}"
        )
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage}; 0.9 means 90 %")
    if groups is None:
        tail = (1 + coverage) / 2
        return min(-_upper_rank(-residuals, tail), 0.0), max(_upper_rank(residuals, tail), 0.0)
    names = np.asarray(groups)
    if names.shape != residuals.shape:
        raise ValueError(
            f"groups must name one unit per residual, got shapes {names.shape} "
            f"and {residuals.shape}"
        )
    width = _group_quantile(np.abs(residuals), names, coverage)
    return -width, width


def _upper_rank(values: FloatArray, level: float) -> float:
    """The conformal rank of `level`, extrapolated past the largest value when there is none."""
    ordered = np.sort(values)
    rank = (values.size + 1) * level
    # Without the rounding, 19 * 0.95 + 0.95 would ask for one rank more than it should.
    whole = math.ceil(round(rank, 9))
    if whole <= values.size:
        return float(ordered[whole - 1])
    return float(ordered[-1] + (rank / values.size - 1) * np.abs(values).max())


def _group_quantile(sizes: FloatArray, names: NDArray[Any], coverage: float) -> float:
    _, unit, counts = np.unique(names, return_inverse=True, return_counts=True)
    if round((counts.size + 1) * coverage, 9) > counts.size:
        return max(_own_quantile(sizes[unit == one], coverage) for one in range(counts.size))
    order = np.argsort(sizes, kind="stable")
    weight = np.cumsum(1.0 / counts[unit][order]) / counts.size
    at = min(int(np.searchsorted(weight, coverage - 1e-12)), sizes.size - 1)
    return float(sizes[order][at])


def _own_quantile(sizes: FloatArray, coverage: float) -> float:
    return float(np.quantile(sizes, coverage, method="inverted_cdf"))
