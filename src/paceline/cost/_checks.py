"""The one rule for sizes, costs and seconds: finite and not below zero."""

from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._files import shown


def checked_column(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return `values` as one-dimensional floats.

    Raises:
        ValueError: For another shape, or a value that is negative or not finite, by `name`.
    """
    try:
        column = np.asarray(values, dtype=np.float64)
    except (OverflowError, TypeError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from None
    if column.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {column.shape}")
    bad = np.flatnonzero(~np.isfinite(column) | (column < 0))
    if bad.size:
        raise ValueError(
            f"{name} must be finite and non-negative, but {name}[{bad[0]}] is {column[bad[0]]} "
            f"({bad.size} of {column.size} are bad)"
        )
    return column


def check_number(name: str, value: float) -> None:
    """Raise a `ValueError` that calls it `name` if `value` is negative or not finite."""
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and non-negative, got {shown(value)}")


def is_finite(value: Any) -> bool:
    """Whether `value` is a number that a float can hold."""
    try:
        return isfinite(value)
    except (OverflowError, TypeError):
        return False
