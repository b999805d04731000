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

import numpy as np
from numpy.typing import NDArray

from paceline.predict.step._calibration import HeldOut
from paceline.predict.step._loader import LoaderRates, posterior_rate
from paceline.predict.step._rows import StepRows
from paceline.predict.step._time import StepLogs

FloatArray = NDArray[np.float64]

VARIANCE_GRID = np.array([0.0005, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32])
NUM_SWEEPS = 3
MAX_ROWS_PER_DEVICE = 120


@dataclass(frozen=True, slots=True)
class ProbeKernel:
    """Variances of the parts of a log residual, all of compute on one device.

    Attributes:
        device: Shared by everything on the device.
        family: Shared by models of one family.
        precision: Shared by one precision within a family.
        variant: Shared by one model.
        dataset: Shared by one dataset within a family.
        run: Shared by one model on one dataset at one precision, whatever the batch size:
            what tables measure together.
        balance: A smooth function of what bounds the step, within a family.
        cell: Shared by repeats of one configuration.
        noise: Not shared.
    """

    device: float = 0.02
    family: float = 0.04
    precision: float = 0.01
    variant: float = 0.02
    dataset: float = 0.01
    run: float = 0.01
    balance: float = 0.04
    cell: float = 0.01
    noise: float = 0.01

    def covariance(self, left: "_Points", right: "_Points") -> FloatArray:
        """Shape `(num_left, num_right)`, without noise."""
        family = left.family[:, None] == right.family[None, :]
        variant = left.variant[:, None] == right.variant[None, :]
        bits = left.bits[:, None] == right.bits[None, :]
        cell = left.cell[:, None] == right.cell[None, :]
        apart = left.place[:, None, :] - right.place[None, :, :]
        near = np.exp(-0.5 * (apart**2).sum(axis=2))
        dataset = left.dataset[:, None] == right.dataset[None, :]
        within = self.family + self.precision * bits + self.balance * near + self.dataset * dataset
        own = variant * (self.variant + self.run * (dataset & bits)) + self.cell * cell
        value = self.device + family * within + own
        return np.asarray(value, dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class _Points:
    family: NDArray[np.str_]
    variant: NDArray[np.str_]
    bits: FloatArray
    dataset: NDArray[np.str_]
    cell: NDArray[np.str_]
    place: FloatArray


def _points(rows: StepRows, logs: StepLogs) -> _Points:
    # What bounds the step, cut where one side is all, and the time itself, in factors of e.
    place = np.column_stack([np.clip(logs.balance, -2, 2), logs.compute / 2])
    cell = rows.keys("variant", "dataset", "batch_size", "precision_bits")
    labels = (rows["family"], rows["variant"], rows["precision_bits"], rows["dataset"])
    return _Points(*labels, cell, place)


def fit_probe_kernel(held_out: HeldOut, *, seed: int = 0) -> ProbeKernel:
    """Variances of largest marginal likelihood over held-out devices, one coordinate at a time."""
    samples = [
        (_points(part.rows, part.logs), part.residuals("compute"))
        for part in _by_device(held_out, seed)
    ]
    kernel = ProbeKernel()
    for _ in range(NUM_SWEEPS):
        for name in ProbeKernel.__slots__:
            options = [replace(kernel, **{name: float(value)}) for value in VARIANCE_GRID]
            kernel = max(options, key=lambda option: _log_likelihood(option, samples))
    return kernel


def _by_device(held_out: HeldOut, seed: int) -> Iterator[HeldOut]:
    rng = np.random.default_rng(seed)
    for name in np.unique(held_out.rows["device"]):
        index = np.flatnonzero(held_out.rows["device"] == name)
        chosen = rng.permutation(index)[:MAX_ROWS_PER_DEVICE]
        yield held_out.take(chosen)


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
    """Predictions for rows of one device, given probes of the same device.

    Args:
        rows: What to predict, all on the device of the probes.
        logs: Its predictions without probes.
        probes: Measured steps with their predictions.
        kernel: Covariance of residuals.
        loader: Rates of other hosts.

    Returns:
        The shifted predictions; without probes, `logs` itself.
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
