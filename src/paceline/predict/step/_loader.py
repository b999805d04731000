"""How fast a host delivers examples, apart from what its device computes.

Loader workers run while the device computes, so a step takes
`max(compute, batch_size * seconds_per_example)` and the wait that is measured is
what exceeds the compute. The seconds per example follow the host and the dataset.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.predict.step._rows import StepRows

FloatArray = NDArray[np.float64]

RATE_GRID = np.exp(np.linspace(np.log(1e-6), np.log(2e-2), 100))
"""Seconds per example on a grid; the least one stands for a loader that keeps up."""
WAITING_SHARE = 0.15
"""A step whose wait is a smaller share of it says only that the loader kept up."""
PRIOR_WIDTH = 0.35
ERROR_SCALE = 0.1
EXPENSIVE_SHARE = 0.05
"""Share of datasets that may cost more than the upper end of an interval says."""


@dataclass(frozen=True, slots=True)
class LoaderRates:
    """Seconds per example by `device|family|dataset`, where that was measured."""

    seconds: Mapping[str, float]

    def feed_s(self, rows: StepRows) -> FloatArray:
        """Seconds that the host needs for each row's batch.

        A dataset that was never measured on this host is taken to be no bottleneck:
        the tables show costs per example 30 times apart for datasets of one example
        size, and the low guess has the least error.
        """
        least = float(RATE_GRID[0])
        names = rows.keys("device", "family", "dataset")
        rates = np.array([self.seconds.get(str(name), least) for name in names])
        return rates * _batch(rows)

    def is_known(self, rows: StepRows) -> NDArray[np.bool_]:
        """Whether each row's dataset was measured on its host."""
        return np.isin(rows.keys("device", "family", "dataset"), list(self.seconds))

    def slow_feed_s(self, rows: StepRows) -> FloatArray:
        """Seconds for each row's batch if its dataset is in the most expensive twentieth.

        A loader keeps up, as a share of the measured ones did, or its rate is log-normal.
        What is unknown is a dataset, and few of them were measured: the bound is
        Student's, with one degree of freedom less than datasets.
        """
        slow = {name: rate for name, rate in self.seconds.items() if rate > RATE_GRID[0]}
        num = len({name.rsplit("|", 1)[1] for name in slow})
        if num < 2:
            return float(RATE_GRID[-1]) * _batch(rows)
        # A twentieth of all is a larger share of those that do not keep up.
        quantile = max(0.5, 1 - EXPENSIVE_SHARE * len(self.seconds) / len(slow))
        # The deviation has `num - 1` degrees of freedom, and the mean is uncertain too.
        bound = _student_quantile(num - 1, quantile) * np.sqrt((num + 1) / (num - 1))
        rates = np.log(list(slow.values()))
        rate = min(float(np.exp(rates.mean() + bound * rates.std())), float(RATE_GRID[-1]))
        return rate * _batch(rows)

    def of_other_hosts(self, rows: StepRows) -> FloatArray:
        """Seconds for each row's batch on the median of the hosts that know the dataset."""
        names = rows.keys("family", "dataset")
        middle = {name: float(np.median(self.known(str(name)))) for name in np.unique(names)}
        return np.array([middle[name] for name in names]) * _batch(rows)

    def without(self, device: str) -> "LoaderRates":
        """The rates of all hosts but those of one device."""
        kept = {k: rate for k, rate in self.seconds.items() if k.split("|", 1)[0] != device}
        return LoaderRates(kept)

    def on_some_host(self, name: str) -> bool:
        """Whether `family|dataset` was measured on any host."""
        return any(key.split("|", 1)[1] == name for key in self.seconds)

    def known(self, name: str) -> list[float]:
        """The seconds per example of `family|dataset` on every host, or the least rate."""
        found = [rate for key, rate in self.seconds.items() if key.split("|", 1)[1] == name]
        return found or [float(RATE_GRID[0])]


def fit_loader_rates(rows: StepRows) -> LoaderRates:
    """The rate of each host and dataset with the least absolute log error of the step time.

    Ties go to the fastest loader, so a host that never made its device wait
    gets the least rate.
    """
    names = rows.keys("device", "family", "dataset")
    seconds = {}
    for name in np.unique(names):
        error = _errors(rows.take(names == name)).sum(axis=0)
        seconds[str(name)] = float(RATE_GRID[np.flatnonzero(error <= error.min() + 1e-9)[0]])
    return LoaderRates(seconds)


def posterior_rate(probes: StepRows, others: list[float]) -> float:
    """Seconds per example of a host from a few measured steps and the rates of other hosts.

    The prior is the other hosts' rates, smoothed; the likelihood is that of Laplace
    errors of the log step time. The median of the posterior is returned, so
    that without an informative probe it is the median host.
    """
    grid = np.log(RATE_GRID)
    bumps = np.exp(-0.5 * ((grid[:, None] - np.log(others)[None, :]) / PRIOR_WIDTH) ** 2)
    log_prior = np.log(bumps.sum(axis=1) + 1e-6)
    log_weight = log_prior - _errors(probes).sum(axis=0) / ERROR_SCALE
    weight = np.cumsum(np.exp(log_weight - log_weight.max()))
    return float(RATE_GRID[np.searchsorted(weight, weight[-1] / 2)])


def _student_quantile(degrees: int, probability: float) -> float:
    from scipy.special import stdtrit  # Comes with LightGBM, like all that is fitted.

    return float(stdtrit(degrees, probability))


def _errors(rows: StepRows) -> FloatArray:
    """Absolute log error of the step time at every rate, shape `(num_rows, num_rates)`."""
    total, compute = rows.total_s, rows["compute_s"]
    kept_up = rows["loader_s"] < WAITING_SHARE * total
    own = np.where(kept_up, total, compute)[:, None]
    step = np.maximum(own, _batch(rows)[:, None] * RATE_GRID)
    return np.abs(np.log(step / total[:, None]))


def _batch(rows: StepRows) -> FloatArray:
    return np.asarray(rows["batch_size"], dtype=np.float64)
