"""Learn each worker's speed and overhead from the steps that it has run."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.cost import Worker, fit_nonnegative

# How much of the old speed and overhead is kept at each refit. Workers change slowly, and
# one epoch is many steps.
KEPT_SHARE = 0.3
# Steps farther from the median residual than this many median deviations do not count:
# a garbage collection or a page fault says nothing about the next epoch.
OUTLIER_DEVIATIONS = 4.0
MIN_REFIT_STEPS = 4


def refit_workers(
    load: ArrayLike, seconds: ArrayLike, previous: tuple[Worker, ...]
) -> tuple[Worker, ...]:
    """Fit `seconds = overhead_s + load / speed` for each worker, robustly.

    Each worker's line is fitted by non-negative least squares, once with all steps and
    once without outliers, and mixed with the line of `previous`, so that the influence of
    an epoch falls exponentially. A worker whose loads hardly vary cannot tell overhead
    from speed; it keeps its overhead. This is Chronica's dynamic schedule, with the
    intercept and the outliers added.

    Args:
        load: What each worker was given, shape `(num_steps, num_workers)`, in the unit
            of the costs.
        seconds: How long it was busy with it, same shape. Time in which it waited for
            others must not be in it.
        previous: What the plan of these steps assumed; workers that have never been
            measured have speed 1 and no overhead.

    Returns:
        One worker each, with speeds in units of cost per second.

    Raises:
        ValueError: If shapes disagree, a value is negative or not finite, or there are
            fewer than 4 steps.

    Examples:
        >>> load = [[1.0, 4.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0]]
        >>> seconds = [[1.0, 12.0], [2.0, 9.0], [3.0, 6.0], [4.0, 3.0]]
        >>> [round(w.speed, 2) for w in refit_workers(load, seconds, (Worker(), Worker()))]
        [1.0, 0.33]
    """
    loads, times = np.asarray(load, np.float64), np.asarray(seconds, np.float64)
    if loads.shape != times.shape or loads.ndim != 2 or loads.shape[1] != len(previous):
        raise ValueError(
            f"load and seconds must have shape (num_steps, {len(previous)} workers), got "
            f"{loads.shape} and {times.shape}"
        )
    if len(loads) < MIN_REFIT_STEPS:
        raise ValueError(f"a refit needs at least {MIN_REFIT_STEPS} steps, got {len(loads)}")
    for name, values in (("load", loads), ("seconds", times)):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"{name} must be finite and non-negative")
    has_history = any(worker != Worker() for worker in previous)
    return tuple(
        _mixed(_fit(loads[:, index], times[:, index], worker), worker if has_history else None)
        for index, worker in enumerate(previous)
    )


def _fit(
    load: NDArray[np.float64], seconds: NDArray[np.float64], previous: Worker
) -> tuple[float, float]:
    """Return seconds per unit of cost, and overhead seconds."""
    line = _line(load, seconds, previous)
    residual = seconds - (line[1] + line[0] * load)
    deviation = np.abs(residual - np.median(residual))
    is_usual = deviation <= OUTLIER_DEVIATIONS * max(float(np.median(deviation)), 1e-12)
    return _line(load[is_usual], seconds[is_usual], previous)


def _line(
    load: NDArray[np.float64], seconds: NDArray[np.float64], previous: Worker
) -> tuple[float, float]:
    if load.std() > 0.05 * load.mean():
        features = np.stack([load, np.ones_like(load)], axis=1)
        slope, overhead_s = fit_nonnegative(features, seconds).tolist()
        if slope > 0:
            return slope, overhead_s
    overhead_s = min(previous.overhead_s, float(np.median(seconds)) / 2)
    total = float(load.sum())
    if not total:
        return 1.0 / previous.speed, overhead_s
    return max(float((seconds - overhead_s).sum()) / total, 1e-300), overhead_s


def _mixed(fitted: tuple[float, float], previous: Worker | None) -> Worker:
    slope, overhead_s = fitted
    if previous is not None:
        slope = KEPT_SHARE / previous.speed + (1 - KEPT_SHARE) * slope
        overhead_s = KEPT_SHARE * previous.overhead_s + (1 - KEPT_SHARE) * overhead_s
    return Worker(speed=1.0 / slope, overhead_s=overhead_s)
