"""How far the running sum of centred rows moves away from zero in an epoch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._compile import compiled


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
    rows: NDArray[np.float32],
    order: NDArray[np.int64],
    mean: NDArray[np.float64],
    batch_size: int,
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
