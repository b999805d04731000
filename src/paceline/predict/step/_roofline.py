"""Seconds of compute per step from first principles, with a few coefficients that are fitted.

A step either waits for the host to launch kernels or for the device to execute them, and launches
overlap with execution, so that the slower of the two counts:
`time = (launch**p + work**p)**(1/p)` with a fitted p > 1 (p = 1 is no overlap, a large p is the
maximum).

- launch: a constant, and seconds per kernel, more of them for mixed
  precision and for adaptive optimizers.
- work: FLOPs over the rate of the units that run them, activation bytes and
  parameter bytes over the memory bandwidth [1], and a least time per kernel.

Each coefficient is positive, is the same for all devices, and is held near
what physics says (utilisation of a half, eight passes over parameters, ...) as
strongly as the data are few: rows of one model say little about the next.
What is left to a device are two factors, on launches by its host and on work by
the device, each drawn towards 1.

References:
    [1] S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual
    performance model for multicore architectures", CACM 52(4), 2009. There the
    larger of compute and memory bounds; here they add up, since layers
    of both kinds take turns within a step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.predict.step._rows import StepRows

FloatArray = NDArray[np.float64]

TF32_FLOPS_PER_CLOCK = 200

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
    "conv FLOPs, 32 bit": (2.0, 3.0),
    "matmul FLOPs, 16 bit": (2.0, 3.0),
    "matmul FLOPs, 32 bit": (2.0, 3.0),
    "conv activation bytes, 32 bit": (3.0, 0.3),
    "conv activation bytes, 16 bit": (3.0, 0.3),
    "block activation bytes, 32 bit": (30.0, 0.3),
    "block activation bytes, 16 bit": (30.0, 0.3),
    "parameter bytes": (8.0, 3.0),
    "parameter bytes, adaptive optimizer": (4.0, 3.0),
    "parameter bytes, mixed precision": (4.0, 3.0),
    "depthwise FLOPs": (10.0, 3.0),
    "kernel, per megacycle": (0.01, 0.3),
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

    def columns(self) -> FloatArray:
        """As features: the three, and which of the two bounds, shape `(num_rows, 4)`."""
        return np.column_stack([self.total, self.launch, self.work, self.launch - self.work])


@dataclass(frozen=True, slots=True)
class Roofline:
    """Fitted coefficients; see the module.

    Attributes:
        log_coefficients: Logarithms in the order of `LAUNCH_PRIOR`, then `WORK_PRIOR`.
        log_sharpness: Of p - 1.
        host_launch: Log factor on launches by host, `device|family` as the host of
            a device differed between families of tables; one that is not listed has 0.
        device_work: Log factor on work by device; likewise.
    """

    log_coefficients: tuple[float, ...]
    log_sharpness: float
    host_launch: Mapping[str, float]
    device_work: Mapping[str, float]

    def predict(self, rows: StepRows) -> Physics:
        """Apply to rows; no measured column is read."""
        hosts, devices = host_names(rows), rows["device"].astype(str)
        return _combine(
            _terms(rows),
            np.array([*self.log_coefficients, self.log_sharpness]),
            np.array([self.host_launch.get(name, 0.0) for name in hosts]),
            np.array([self.device_work.get(name, 0.0) for name in devices]),
        )


def host_names(rows: StepRows) -> NDArray[np.str_]:
    """Which machine feeds the device: `device|family`, the finest distinction in the tables."""
    return rows.keys("device", "family")


def fit_roofline(rows: StepRows, *, known_hosts: bool = True) -> Roofline:
    """Fit to measured compute times by damped Gauss-Newton steps on a robust loss of log errors.

    Args:
        rows: Measured rows, at least one.
        known_hosts: Fit the two factors per host and device. Leave it off to predict
            for devices that are not in `rows`: then the coefficients are those of
            an average device.

    Returns:
        The fit; deterministic, about half a second for 10,000 rows.
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


def conv_rate_32(rows: StepRows) -> FloatArray:
    """FLOPs per second of 32-bit convolutions: matrix units take them since Ampere (TF32)."""
    clocks = np.maximum(rows["num_tensor_cores"] * rows["boost_clock_hz"], 1.0)
    has_tf32 = (rows["tensor_flops"] / clocks > TF32_FLOPS_PER_CLOCK) & (
        rows["num_tensor_cores"] > 0
    )
    rate: FloatArray = np.where(has_tf32, rows["tensor_flops"] / 2, rows["fp32_flops"])
    return rate


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
        np.ones(len(rows)),
        kernels * conv,
        kernels * (1 - conv),
        kernels * half,
        kernels * adaptive,
        kernels * factored,
    ]
    work = [
        dense_conv * half / rows["tensor_flops"],
        dense_conv * (1 - half) / conv_rate_32(rows),
        matmul * half / rows["tensor_flops"],
        matmul * (1 - half) / rows["fp32_flops"],
        moved * conv * (1 - half),
        moved * conv * half,
        moved * (1 - conv) * (1 - half),
        moved * (1 - conv) * half,
        params,
        params * adaptive,
        params * half,
        flops * depthwise / rows["fp32_flops"],
        kernels / rows["boost_clock_hz"] * 1e6,
    ]
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
    return Physics(np.logaddexp(power * launch, power * work) / power, launch, work)


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
        share = np.exp(power * (physics.launch - physics.total))
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
