"""Least squares with coefficients that cannot go below zero."""

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def fit_nonnegative(features: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Return the coefficients, none negative, that fit `features @ x` to `targets` best.

    Tries every set of coefficients that may be above zero and keeps the best
    feasible fit, which is exact and, for the two to four coefficients of a cost
    model, cheaper than the active-set method of Lawson and Hanson. Time is
    O(2**num_features * num_rows). Ties go to the set with fewer coefficients.

    Args:
        features: Shape `(num_rows, num_features)`, at most 8 features, finite.
        targets: Shape `(num_rows,)`, finite.

    Raises:
        ValueError: If shapes disagree, a value is not finite, or features outnumber distinct rows.

    Examples:
        >>> fit_nonnegative([[1, 1], [2, 1], [3, 1]], [2.0, 4.0, 6.0]).round(6).tolist()
        [2.0, 0.0]
    """
    matrix = np.asarray(features, dtype=np.float64)
    target = np.asarray(targets, dtype=np.float64)
    if matrix.ndim != 2 or target.shape != matrix.shape[:1] or matrix.shape[1] > 8:
        raise ValueError(
            "features must have shape (num_rows, num_features of at most 8) and targets "
            f"(num_rows,), got {matrix.shape} and {target.shape}"
        )
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        raise ValueError("features and targets must be finite; drop the steps that failed")
    num_features = matrix.shape[1]
    if len(np.unique(matrix, axis=0)) < num_features:
        raise ValueError(
            f"{num_features} coefficients need at least {num_features} different rows, got "
            f"{len(np.unique(matrix, axis=0))}; measure more sizes"
        )
    return _best_of_all_supports(matrix, target)


def _best_of_all_supports(
    matrix: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    best, best_error = np.zeros(matrix.shape[1]), float(target @ target)
    # Below this an error is rounding, and getting smaller means nothing.
    noise = 1e-28 * best_error
    for size in range(1, matrix.shape[1] + 1):
        for support in map(list, combinations(range(matrix.shape[1]), size)):
            x = np.zeros(matrix.shape[1])
            x[support] = np.linalg.lstsq(scaled[:, support], target, rcond=None)[0]
            residual = scaled @ x - target
            error = float(residual @ residual)
            if (x >= 0).all() and error < best_error * (1 - 1e-12) - noise:
                best, best_error = x, error
    return np.asarray(best / scale, dtype=np.float64)
