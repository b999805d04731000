"""Seconds of compute per step from first principles, with a few coefficients that are fitted.

A step either waits for the host to launch kernels or for the device to execute them, and launches
overlap with execution, so that the slower of the two counts: `time = (launch**p + work**p)**(1/p)`
with a fitted p > 1 (p = 1 is no overlap, a large p is the maximum).

- launch: a constant, and seconds per kernel, more of them for mixed
  precision and for adaptive optimizers.
- work: FLOPs over the rate of the units that run them, and activation bytes and
  parameter bytes over the memory bandwidth [1].

Each coefficient is positive, is the same for all devices, and is held near what physics says
(utilisation of a half, eight passes over parameters, ...) as strongly as the data are few: rows of
one model say little about the next. What is left to a device are two factors, on launches by its
host and on work by the device, each drawn towards 1.

References:
    [1] S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model
    for multicore architectures", CACM 52(4), 2009. There the larger of compute and memory bounds;
    here they add up, since layers of both kinds take turns within a step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.predict.step._execution import Execution
from paceline.predict.step._rates import conv_rate_32, has_tf32, rate_16
from paceline.predict.step._rows import FloatArray, StepRows

# Coefficient before any data, and the weight of this prior (1 / standard deviation of its
# logarithm, in rows of evidence: see `STRENGTH`). Milliseconds.
LAUNCH_PRIOR = {
    "step": (2.0, 0.3),
    "conv kernel": (0.08, 0.3),
    "block kernel": (0.1, 0.3),
    "kernel, mixed precision": (0.03, 0.3),
    "kernel, adaptive optimizer": (0.02, 0.3),
    "kernel, factored optimizer": (0.02, 0.3),
}
WORK_PRIOR = {
    "conv FLOPs, 16 bit": (2.0, 3.0),
    # Ordinary cores reach more of their rate than matrix units, and 3 x 3 convolutions need fewer
    # products than are counted (A. Lavin, S. Gray, "Fast algorithms for convolutional neural
    # networks", CVPR 2016).
    "conv FLOPs, 32 bit": (1.4, 3.0),
    "3 x 3 conv FLOPs, 32 bit": (0.9, 3.0),
    "conv FLOPs, TF32": (2.5, 3.0),
    "matmul FLOPs, 16 bit": (2.0, 3.0),
    "matmul FLOPs, 32 bit": (1.4, 3.0),
    # One for both precisions, and firm: steps on small images cannot tell bytes from overhead, and
    # left to themselves they say that 16 bits move as much as 32.
    "conv activation bytes": (6.0, 3.0),
    # A block keeps 17 values per position and channel (V. Korthikanti et al., "Reducing activation
    # recomputation in large transformer models", MLSys 2023), each moved some five times.
    "block activation bytes": (85.0, 3.0),
    "parameter bytes": (8.0, 3.0),
    "parameter bytes, adaptive optimizer": (4.0, 3.0),
    "parameter bytes, mixed precision": (4.0, 3.0),
    "depthwise FLOPs": (10.0, 3.0),
}
SHARPNESS_PRIOR = (0.4, 3.0)  # log(p - 1), so that p is about 2.5
STRENGTH = 1.5
HOST_BELIEF = 1.5
ROBUST_SCALE = 0.15
MAX_ITERATIONS = 60


@dataclass(frozen=True, slots=True, eq=False)
class Physics:
    """What the roofline says about each row, as logarithms of seconds, shape `(num_rows,)`."""

    total: FloatArray
    launch: FloatArray
    work: FloatArray
    launch_share: FloatArray  # derivative of `total` by `launch`: 1 where the host alone bounds

    def columns(self) -> FloatArray:
        """As features: the three, and which of the two bounds, shape `(num_rows, 4)`."""
        return np.column_stack([self.total, self.launch, self.work, self.balance])

    @property
    def balance(self) -> FloatArray:
        """Launches over work: positive where the host bounds."""
        return self.launch - self.work


@dataclass(frozen=True, slots=True)
class Roofline:
    """Fitted coefficients; see the module."""

    # Logarithms in the order of `LAUNCH_PRIOR`, then `WORK_PRIOR`.
    log_coefficients: tuple[float, ...]
    log_sharpness: float  # of p - 1
    # Log factor on launches by host, `device|family` as the host of a device differed between
    # families of tables; one that is not listed has 0.
    host_launch: Mapping[str, float]
    device_work: Mapping[str, float]  # log factor on work by device; likewise

    @property
    def host_spread(self) -> float:
        """How far apart hosts are: standard deviation of the log of their launch times."""
        factors = list(self.host_launch.values())
        return float(np.std(factors, ddof=1)) if len(factors) > 1 else 0.0

    def predict(self, rows: StepRows, execution: Execution | None = None) -> Physics:
        """Apply to rows; no measured column is read.

        Without `execution`, steps are run as those of the tables were.
        """
        hosts, devices = host_names(rows), rows["device"].astype(str)
        launch, work = _terms(rows)
        if execution is not None:
            launch, work = launch.copy(), work.copy()
            factors = execution.factors(rows)
            for terms, names in ((launch, list(LAUNCH_PRIOR)), (work, list(WORK_PRIOR))):
                for name in set(names) & set(factors):
                    terms[:, names.index(name)] *= factors[name]
        return _combine(
            (launch, work),
            np.array([*self.log_coefficients, self.log_sharpness]),
            np.array([self.host_launch.get(name, 0.0) for name in hosts]),
            np.array([self.device_work.get(name, 0.0) for name in devices]),
        )


def host_names(rows: StepRows) -> NDArray[np.str_]:
    """Which machine feeds the device: `device|family`, the finest distinction in the tables."""
    return rows.keys("device", "family")


def fit_roofline(rows: StepRows, *, known_hosts: bool = True) -> Roofline:
    """Fit to measured compute times by damped Gauss-Newton steps on a robust loss of log errors.

    Deterministic, about half a second for 10,000 rows. Without `known_hosts` the two factors per
    host and device are left out, to predict for devices that are not in `rows`: the coefficients
    are then those of an average device.
    """
    hosts, host = _numbered(host_names(rows), known_hosts)
    devices, dev = _numbered(rows["device"].astype(str), known_hosts)
    problem = _Problem(_terms(rows), np.log(rows["compute_s"]), host, dev, len(hosts), len(devices))
    theta = problem.solve()
    num = len(LAUNCH_PRIOR) + len(WORK_PRIOR)
    factors = theta[num + 1 :].tolist()
    return Roofline(
        log_coefficients=tuple(theta[:num].tolist()),
        log_sharpness=float(theta[num]),
        host_launch=dict(zip(hosts, factors, strict=False)),
        device_work=dict(zip(devices, factors[len(hosts) :], strict=True)),
    )


def _terms(rows: StepRows) -> tuple[FloatArray, FloatArray]:
    """Launch and work terms in milliseconds per unit coefficient."""
    kernels, conv = rows["num_kernels"], rows["conv_fraction"]
    half = (rows["precision_bits"] == 16).astype(np.float64)
    adaptive = (rows["optimizer"] != "SGD").astype(np.float64)
    factored = (rows["optimizer"] == "Adafactor").astype(np.float64)
    flops = 1e3 * rows["train_flops_per_example"] * rows["batch_size"]
    depthwise = rows["depthwise_fraction"]
    dense_conv, matmul = flops * conv * (1 - depthwise), flops * (1 - conv)
    per_byte = 1e3 / rows["memory_bytes_per_s"]
    moved = rows["activation_bytes_per_example"] * rows["batch_size"] * per_byte
    params = 4 * rows["num_params"] * per_byte
    launch = [
        np.ones(len(rows)), kernels * conv, kernels * (1 - conv),
        kernels * half, kernels * adaptive, kernels * factored,
    ]  # fmt: skip
    tf32 = dense_conv * (1 - half) * has_tf32(rows) / conv_rate_32(rows)
    cores = dense_conv * (1 - half) * ~has_tf32(rows) / rows["fp32_flops"]
    square = np.minimum(rows["conv_3x3_fraction"], 1.0)
    work = [
        dense_conv * half / rate_16(rows), cores * (1 - square), cores * square, tf32,
        matmul * half / rate_16(rows), matmul * (1 - half) / rows["fp32_flops"],
        moved * conv,
        moved * (1 - conv),
        params, params * adaptive, params * half,
        flops * depthwise / rows["fp32_flops"],
    ]  # fmt: skip
    return np.column_stack(launch), np.column_stack(work)


def _combine(
    terms: tuple[FloatArray, FloatArray],
    theta: FloatArray,
    host_factor: FloatArray,
    device_factor: FloatArray,
) -> Physics:
    launch_terms, work_terms = terms
    split, end = launch_terms.shape[1], launch_terms.shape[1] + work_terms.shape[1]
    launch = np.log(launch_terms @ np.exp(theta[:split]) / 1e3) + host_factor
    work = np.log(work_terms @ np.exp(theta[split:end]) / 1e3) + device_factor
    power = 1 + np.exp(theta[end])
    total = np.logaddexp(power * launch, power * work) / power
    return Physics(total, launch, work, np.exp(power * (launch - total)))


def _numbered(names: NDArray[np.str_], wanted: bool) -> tuple[list[str], NDArray[np.intp]]:
    if not wanted:
        return [], np.zeros(len(names), dtype=np.intp)
    found, index = np.unique(names, return_inverse=True)
    return [str(name) for name in found], index


@dataclass(slots=True)
class _Problem:
    terms: tuple[FloatArray, FloatArray]
    target: FloatArray
    host: NDArray[np.intp]
    device: NDArray[np.intp]
    num_hosts: int
    num_devices: int

    def solve(self) -> FloatArray:
        """Minimise robust data loss plus prior; a step is kept only if it lowers the sum."""
        prior = [*LAUNCH_PRIOR.values(), *WORK_PRIOR.values()]
        num_factors = self.num_hosts + self.num_devices
        means = [math.log(value) for value, _ in prior] + [SHARPNESS_PRIOR[0]]
        firmness = [firm for _, firm in prior] + [SHARPNESS_PRIOR[1]]
        start = np.array(means + [0.0] * num_factors)
        belief = STRENGTH * np.array(firmness + [HOST_BELIEF] * num_factors)
        theta, damping = start.copy(), 1e-2
        cost = self._cost(theta, start, belief)
        for _ in range(MAX_ITERATIONS):
            step = self._step(theta, start, belief, damping)
            new_cost = self._cost(theta + step, start, belief)
            if new_cost < cost:
                done = cost - new_cost < 1e-7 * cost
                theta, cost, damping = theta + step, new_cost, damping / 3
                if done:
                    break
            else:
                damping *= 4
        return theta

    def _physics(self, theta: FloatArray) -> Physics:
        at = len(LAUNCH_PRIOR) + len(WORK_PRIOR) + 1
        factors = np.r_[theta[at:], 0.0]
        host = factors[self.host] if self.num_hosts else np.zeros(len(self.target))
        first = self.num_hosts
        device = factors[first + self.device] if self.num_devices else np.zeros(len(self.target))
        return _combine(self.terms, theta, host, device)

    def _cost(self, theta: FloatArray, start: FloatArray, belief: FloatArray) -> float:
        error = (self._physics(theta).total - self.target) / ROBUST_SCALE
        data = ROBUST_SCALE**2 * (np.sqrt(1 + error**2) - 1).sum()
        return float(data + 0.5 * ((belief * (theta - start)) ** 2).sum())

    def _step(
        self, theta: FloatArray, start: FloatArray, belief: FloatArray, damping: float
    ) -> FloatArray:
        physics = self._physics(theta)
        error = physics.total - self.target
        weight = 1 / np.sqrt(1 + (error / ROBUST_SCALE) ** 2)
        slope = self._slope(theta, physics)
        normal = slope.T @ (slope * weight[:, None]) + np.diag(belief**2)
        gradient = slope.T @ (weight * error) + belief**2 * (theta - start)
        normal[np.diag_indices_from(normal)] *= 1 + damping
        normal[np.diag_indices_from(normal)] += 1e-9
        return np.asarray(-np.linalg.solve(normal, gradient), dtype=np.float64)

    def _slope(self, theta: FloatArray, physics: Physics) -> FloatArray:
        """Derivative of the log time by each parameter, shape `(num_rows, num_parameters)`."""
        launch_terms, work_terms = self.terms
        split, end = launch_terms.shape[1], launch_terms.shape[1] + work_terms.shape[1]
        growth = np.exp(theta[end])
        power = 1 + growth
        share = physics.launch_share
        launch = launch_terms * np.exp(theta[:split])
        work = work_terms * np.exp(theta[split:end])
        by_power = share * physics.launch + (1 - share) * physics.work - physics.total
        columns = [
            launch * (share / launch.sum(axis=1))[:, None],
            work * ((1 - share) / work.sum(axis=1))[:, None],
            (by_power * growth / power)[:, None],
        ]
        if self.num_hosts:
            columns.append(np.eye(self.num_hosts)[self.host] * share[:, None])
            columns.append(np.eye(self.num_devices)[self.device] * (1 - share)[:, None])
        return np.hstack(columns)
