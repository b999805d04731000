"""What one example costs, from its size."""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.cost._checks import check_number, checked_column
from paceline.cost._least_squares import fit_nonnegative


class ExampleCost(Protocol):
    """Anything that turns sizes into costs: a model below, or any callable.

    Costs may have any unit that adds up: seconds, FLOPs, tokens.
    """

    def __call__(self, sizes: NDArray[np.float64], /) -> ArrayLike:
        """Return one cost per size, same shape, finite and not negative."""


@dataclass(frozen=True, slots=True)
class LinearCost:
    """Cost `linear * n + fixed` of an example of size `n`.

    Right for models whose work grows with the number of tokens alone.

    Examples:
        >>> LinearCost(2.0, fixed=1.0)(np.array([1.0, 3.0])).tolist()
        [3.0, 7.0]
    """

    linear: float = 1.0
    fixed: float = 0.0

    def __post_init__(self) -> None:
        check_number("linear", self.linear)
        check_number("fixed", self.fixed)

    def __call__(self, sizes: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Return the cost of each size."""
        return self.linear * sizes + self.fixed

    @classmethod
    def fit(cls, sizes: ArrayLike, costs: ArrayLike) -> Self:
        """Fit to measured pairs by non-negative least squares; see `fit_nonnegative`."""
        size = checked_column("sizes", sizes)
        features = np.stack([size, np.ones_like(size)], axis=1)
        return cls(*fit_nonnegative(features, costs).tolist())


@dataclass(frozen=True, slots=True)
class QuadraticCost:
    """Cost `linear * n + quadratic * n**2 + fixed` of an example of size `n`.

    Right for transformers: for hidden size `d` the attention scores take as much as everything else
    at about `n = 6 * d`, so `QuadraticCost(6 * d, 1.0)` is in proportion to the FLOPs [1].

    Examples:
        >>> QuadraticCost(6144.0, 1.0)(np.array([0.0, 1024.0])).tolist()
        [0.0, 7340032.0]

    References:
        [1] D. Narayanan et al., "Efficient large-scale language model training on GPU clusters
        using Megatron-LM", SC 2021, appendix.
    """

    linear: float
    quadratic: float
    fixed: float = 0.0

    def __post_init__(self) -> None:
        check_number("linear", self.linear)
        check_number("quadratic", self.quadratic)
        check_number("fixed", self.fixed)

    def __call__(self, sizes: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Return the cost of each size."""
        return (self.linear + self.quadratic * sizes) * sizes + self.fixed

    @classmethod
    def fit(cls, sizes: ArrayLike, costs: ArrayLike) -> Self:
        """Fit to measured pairs by non-negative least squares; see `fit_nonnegative`."""
        size = checked_column("sizes", sizes)
        features = np.stack([size, size**2, np.ones_like(size)], axis=1)
        return cls(*fit_nonnegative(features, costs).tolist())


def example_costs(cost: ExampleCost, sizes: ArrayLike) -> NDArray[np.float64]:
    """Return the cost of each example, checked.

    Args:
        cost: A cost model or any callable.
        sizes: Shape `(num_examples,)`, finite and not negative.

    Raises:
        ValueError: If a size or a returned cost is bad, or `cost` returns another shape.

    Examples:
        >>> example_costs(lambda n: 3 * n, [1, 2]).tolist()
        [3.0, 6.0]
    """
    size = checked_column("sizes", sizes)
    with np.errstate(over="ignore", invalid="ignore"):
        value = np.asarray(cost(size), dtype=np.float64)
    if value.shape != size.shape:
        raise ValueError(f"cost must return shape {size.shape} like the sizes, got {value.shape}")
    bad = np.flatnonzero(~np.isfinite(value) | (value < 0))
    if bad.size:
        raise ValueError(
            "costs must be finite and non-negative, but the cost of "
            f"sizes[{bad[0]}] = {size[bad[0]]:g} is {value[bad[0]]} ({bad.size} of {size.size} are "
            "bad); fit the cost model with LinearCost.fit or QuadraticCost.fit, which cannot "
            "go below zero"
        )
    return value
