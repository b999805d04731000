"""The simulation by which orders are compared: random rows that never change."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.order._herding import Herding, herding_bound
from paceline.order._policy import OrderPolicy

# Rows that are made, centred or observed at once: enough to make the cost of a call small.
CHUNK = 2048


@dataclass(frozen=True, slots=True)
class HerdingRun:
    """What an order did over some rounds.

    Attributes:
        bounds: Herding bound of the order of each epoch; the first is that of the shuffle.
        pass_cpu_s: Measured CPU seconds in which the policy observed each epoch and made the next
            order; fetching the rows is not counted.
    """

    bounds: tuple[Herding, ...]
    pass_cpu_s: tuple[float, ...]


def gaussian_unit_rows(
    dim: int, num_examples: int, num_workers: int, *, seed: int = 1
) -> NDArray[np.float32]:
    """Return Gaussian directions, less the mean over each worker's examples.

    Row `t * num_workers + w` is the t-th example of worker w. The numbers are those of
    trial `seed` of the D-GraB reference, rounded to 32 bits, so they come from NumPy's legacy
    generator. Made in place: memory is that of the result,
    `4 * dim * num_examples * num_workers` bytes.

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

    The policy's first order takes the rows in turn, so that position w of each step holds
    an example of worker w.

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
