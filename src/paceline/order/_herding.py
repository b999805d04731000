"""How far the running sum of centred rows moves away from zero in an epoch; simulated orders."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._compile import compiled
from paceline.order._policy import OrderPolicy

# Rows that are made, centred or observed at once: enough to make the cost of a call small.
CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Herding:
    """The largest absolute coordinate of prefix sums of centred rows.

    Attributes:
        per_step: Over the prefixes that end with a global batch.
        per_example: Over all prefixes.
    """

    per_step: float
    per_example: float


def herding_bound(rows: NDArray[np.float32], order: ArrayLike, *, batch_size: int = 1) -> Herding:
    """Measure the herding bound of an order.

    The rows are taken less their mean. Takes O(n dim) time and O(dim) memory.

    Args:
        rows: Shape `(num_examples, dim)`; never copied.
        order: Each example once, shape `(num_examples,)`.
        batch_size: Examples of a step.

    Raises:
        ValueError: If shapes disagree or `batch_size` is below 1.

    Examples:
        >>> rows = np.array([[1.0], [1.0], [-1.0], [-1.0]], dtype=np.float32)
        >>> herding_bound(rows, [0, 1, 2, 3], batch_size=2)
        Herding(per_step=2.0, per_example=2.0)
        >>> herding_bound(rows, [0, 2, 1, 3], batch_size=2)
        Herding(per_step=0.0, per_example=1.0)

    References:
        Y. Lu, W. Guo, C. De Sa, "GraB", NeurIPS 2022, equation 3, infinity norm; `per_step`
        is the parallel herding bound of A. F. Cooper et al., NeurIPS 2023, section 4.
    """
    examples = np.asarray(order, dtype=np.int64)
    if rows.ndim != 2 or examples.shape != rows.shape[:1]:
        raise ValueError(
            f"order must hold the {len(rows)} examples that have rows, got shape {examples.shape}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    mean = rows.mean(axis=0, dtype=np.float64)
    return Herding(*_largest_prefix(rows, examples, mean, batch_size))


@compiled
def _largest_prefix(
    rows: NDArray[np.float32], order: NDArray[np.int64], mean: NDArray[np.float64], batch_size: int
) -> tuple[float, float]:
    total = np.zeros(len(mean))
    per_step, per_example = 0.0, 0.0
    for place in range(len(order)):
        row = rows[order[place]]
        largest = 0.0
        for i in range(len(mean)):
            total[i] += row[i] - mean[i]
            largest = max(largest, abs(total[i]))
        per_example = max(per_example, largest)
        if (place + 1) % batch_size == 0:
            per_step = max(per_step, largest)
    return per_step, per_example


@dataclass(frozen=True, slots=True)
class HerdingRun:
    """What an order did over some rounds.

    Attributes:
        bounds: Herding bound of the order of each epoch; the first is that of the shuffle.
        pass_cpu_s: Measured CPU seconds to observe each epoch and make the next order.
    """

    bounds: tuple[Herding, ...]
    pass_cpu_s: tuple[float, ...]


def gaussian_unit_rows(
    dim: int, num_examples: int, num_workers: int, *, seed: int = 1
) -> NDArray[np.float32]:
    """Return Gaussian directions, less the mean over each worker's examples.

    Row `t * num_workers + w` is the t-th example of worker w. The numbers are those of trial `seed`
    of the D-GraB reference, rounded to 32 bits, so they come from NumPy's legacy generator. Made in
    place: memory is that of the result, `4 * dim * num_examples * num_workers` bytes.

    Args:
        dim: Columns.
        num_examples: Rows of each worker.
        num_workers: Workers.
        seed: Of the rows.

    Raises:
        ValueError: If a number is below 1, or the seed below 0.

    Examples:
        >>> rows = gaussian_unit_rows(3, 5, 2)
        >>> rows.shape, bool(abs(rows[::2].sum(axis=0)).max() < 1e-6)
        ((10, 3), True)
    """
    for name, value in (("dim", dim), ("num_examples", num_examples), ("num_workers", num_workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    rng = np.random.RandomState(seed)
    rows = np.empty((num_examples * num_workers, dim), dtype=np.float32)
    for first in range(0, len(rows), CHUNK):
        part = rng.standard_normal((min(CHUNK, len(rows) - first), dim))
        rows[first : first + CHUNK] = part / np.linalg.norm(part, axis=1, keepdims=True)
    for worker in range(num_workers):
        mine = rows[worker::num_workers]
        mine -= mine.mean(axis=0, dtype=np.float64).astype(np.float32)
    return rows


def simulate_herding(
    policy: OrderPolicy, rows: NDArray[np.float32], *, batch_size: int, num_rounds: int
) -> HerdingRun:
    """Show a policy the same rows in each epoch and measure its orders.

    Its first order takes the rows in turn: position w of each step has an example of worker w.

    Args:
        policy: A new one; it is changed.
        rows: Shape `(num_examples, dim)`; never copied as a whole.
        batch_size: Examples of a step, for the bound.
        num_rounds: Epochs to learn from.
    """
    row_of = np.argsort(policy.order(0))
    bounds, pass_cpu_s = [], []
    for epoch in range(num_rounds + 1):
        order = policy.order(epoch)
        bounds.append(herding_bound(rows, row_of[order], batch_size=batch_size))
        if epoch < num_rounds:
            pass_cpu_s.append(_show(policy, rows, row_of, order))
    return HerdingRun(bounds=tuple(bounds), pass_cpu_s=tuple(pass_cpu_s))


def _show(
    policy: OrderPolicy,
    rows: NDArray[np.float32],
    row_of: NDArray[np.int64],
    order: NDArray[np.int64],
) -> float:
    """Return the CPU seconds that the policy takes for one epoch."""
    taken_s = 0.0
    for first in range(0, len(order), CHUNK):
        examples = order[first : first + CHUNK]
        fetched = rows[row_of[examples]]
        start = time.process_time()
        if policy.needs_rows:
            policy.observe(examples, fetched)
        taken_s += time.process_time() - start
    start = time.process_time()
    policy.end_epoch()
    return taken_s + time.process_time() - start
