"""Correct the estimates for a device that was never seen by a few short measurements on it.

The log residuals of probes show how a device or its host differs from the predicted one. Part of
that holds for steps that were not probed: all of it for the same model at the same batch size,
less for others. How much is a Gaussian process over residuals [1], whose variances are fitted on
the devices of the training tables, each predicted without itself (empirical Bayes). The loader is
fitted separately, with the other hosts' rates as the prior.

References:
    [1] C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine
    Learning", 2006, chapters 2 and 5.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.predict.step._calibration import Calibration, HeldOut, calibrate, join_held_out
from paceline.predict.step._loader import LoaderRates, posterior_rate
from paceline.predict.step._rows import FloatArray, StepRows
from paceline.predict.step._time import StepLogs

VARIANCE_GRID = np.array([0.0005, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32])
NUM_SWEEPS = 3
MAX_ROWS_PER_DEVICE = 120
NUM_PROBES = (1, 3, 10, 30)  # that intervals are made for; in between the next lower one holds
NUM_DRAWS = 3


@dataclass(frozen=True, slots=True)
class ProbeKernel:
    """Variances of the parts of a log residual, all of compute on one device."""

    device: float = 0.02  # shared by everything on the device
    family: float = 0.04  # shared by models of one family
    precision: float = 0.01  # shared by one precision within a family
    variant: float = 0.02  # shared by one model
    dataset: float = 0.01  # shared by one dataset within a family
    # Shared by one model on one dataset at one precision, whatever the batch size: what tables
    # measure together.
    run: float = 0.01
    balance: float = 0.04  # a smooth function of what bounds the step, within a family
    host: float = 0.04  # of the pace of launches, felt as far as launches bound the step
    cell: float = 0.01  # shared by repeats of one configuration
    noise: float = 0.01  # not shared

    def covariance(self, left: "_Points", right: "_Points") -> FloatArray:
        """Shape `(num_left, num_right)`, without noise."""
        alike = [a[:, None] == b[None, :] for a, b in zip(left.labels, right.labels, strict=True)]
        family, variant, bits, dataset, cell = alike
        apart = left.place[:, None, :] - right.place[None, :, :]
        near = np.exp(-0.5 * (apart**2).sum(axis=2))
        within = self.family + self.precision * bits + self.balance * near + self.dataset * dataset
        own = variant * (self.variant + self.run * (dataset & bits)) + self.cell * cell
        host = self.host * left.launch_share[:, None] * right.launch_share[None, :]
        value = self.device + host + family * within + own
        return np.asarray(value, dtype=np.float64)


class _Points(NamedTuple):
    labels: tuple[NDArray[Any], ...]  # family, variant, precision, dataset and cell
    place: FloatArray
    launch_share: FloatArray


def _points(rows: StepRows, logs: StepLogs) -> _Points:
    # What bounds the step, cut where one side is all, and the time itself, in factors of e.
    place = np.column_stack([np.clip(logs.balance, -2, 2), logs.compute / 2])
    cell = rows.keys("variant", "dataset", "batch_size", "precision_bits")
    labels = (rows["family"], rows["variant"], rows["precision_bits"], rows["dataset"], cell)
    return _Points(labels, place, logs.launch_share)


def fit_probe_kernel(held_out: HeldOut, *, seed: int = 0) -> ProbeKernel:
    """Variances of largest marginal likelihood over held-out devices, one coordinate at a time."""
    random, samples = np.random.default_rng(seed), []
    for name in np.unique(held_out.rows["device"]):
        rows = random.permutation(np.flatnonzero(held_out.rows["device"] == name))
        part = held_out.take(rows[:MAX_ROWS_PER_DEVICE])
        samples.append((_points(part.rows, part.logs), part.residuals("compute")))
    kernel = ProbeKernel()
    for _ in range(NUM_SWEEPS):
        for name in ProbeKernel.__slots__:
            options = [replace(kernel, **{name: float(value)}) for value in VARIANCE_GRID]
            kernel = max(options, key=lambda option: _log_likelihood(option, samples))
    return kernel


def _log_likelihood(kernel: ProbeKernel, samples: list[tuple[_Points, FloatArray]]) -> float:
    total = 0.0
    for points, residuals in samples:
        factor = np.linalg.cholesky(
            kernel.covariance(points, points) + kernel.noise * np.eye(len(residuals))
        )
        white = np.linalg.solve(factor, residuals)
        total -= 0.5 * float(white @ white) + float(np.log(np.diag(factor)).sum())
    return total


def probed_logs(
    rows: StepRows, logs: StepLogs, probes: HeldOut, kernel: ProbeKernel, loader: LoaderRates
) -> StepLogs:
    """Predictions for rows of one device, given measured and predicted probes of it.

    `loader` holds the rates of other hosts; without probes, `logs` itself is returned.
    """
    if not len(probes.rows):
        return logs
    here, there = _points(rows, logs), _points(probes.rows, probes.logs)
    covariance = kernel.covariance(there, there) + kernel.noise * np.eye(len(probes.rows))
    pull = np.linalg.solve(covariance, probes.residuals("compute"))
    compute = logs.compute + kernel.covariance(here, there) @ pull
    feed, known = _probed_feed(rows, logs, probes.rows, loader)
    return replace(
        logs, compute=compute, feed=feed, total=np.maximum(compute, feed), loader_known=known
    )


def _probed_feed(
    rows: StepRows, logs: StepLogs, probes: StepRows, loader: LoaderRates
) -> tuple[FloatArray, NDArray[np.bool_]]:
    feed, known = logs.feed.copy(), logs.loader_known.copy()
    names, seen = rows.keys("family", "dataset"), probes.keys("family", "dataset")
    for name in np.unique(seen):
        rate = posterior_rate(probes.take(seen == name), loader.known(str(name)))
        at = names == name
        feed[at] = np.log(rate * rows["batch_size"][at])
        known |= at
    return feed, known


def probe_trial(
    part: HeldOut,
    kernel: ProbeKernel,
    loader: LoaderRates,
    num_probes: int,
    rng: np.random.Generator,
) -> HeldOut:
    """Probe rows of one device and family at random; predict the others given the probes."""
    order = rng.permutation(len(part.rows))
    rest, probes = part.take(order[num_probes:]), part.take(order[:num_probes])
    others = loader.without(str(part.rows["device"][0]))
    return HeldOut(rest.rows, probed_logs(rest.rows, rest.logs, probes, kernel, others))


def by_device_and_family(held_out: HeldOut) -> Iterator[HeldOut]:
    names = held_out.rows.keys("device", "family")
    for name in np.unique(names):
        yield held_out.take(np.flatnonzero(names == name))


def calibrate_probed(
    held_out: HeldOut, kernel: ProbeKernel, loader: LoaderRates, num_probes: int
) -> Calibration:
    trials = []
    for number, part in enumerate(by_device_and_family(held_out)):
        for draw in range(NUM_DRAWS):
            rng = np.random.default_rng([number, draw])
            if len(part.rows) > num_probes:
                trials.append(probe_trial(part, kernel, loader, num_probes, rng))
    return calibrate(join_held_out(trials), "device")
