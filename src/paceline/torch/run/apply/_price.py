"""What a rank's batch costs, fitted to the first steps of the job, and what a new split saves."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.balance import rank_costs, regroup
from paceline.cost import QuadraticCost, fit_nonnegative
from paceline.torch.run.apply._loss_form import Unfit

Array = NDArray[np.float64]
# Steps that cost this many usual deviations more than others are left out of the fit.
FAR = 4.0


class FirstSteps(NamedTuple):
    """Measured steps of all ranks, each column of shape `(num_ranks, num_steps)`.

    Attributes:
        num_microbatches: Of the step, like what follows.
        longest: Examples times the size of the longest one, summed over micro-batches.
        longest_squared: Examples times the square of it.
        total: Sizes.
        total_squared: Their squares.
        num_elements: Positions that the model was given.
        compute_s: Seconds of both passes until the rank's own gradients exist.
        step_s: Seconds of the step.
    """

    num_microbatches: Array
    longest: Array
    longest_squared: Array
    total: Array
    total_squared: Array
    num_elements: Array
    compute_s: Array
    step_s: Array


class Price(NamedTuple):
    """What a batch costs in seconds.

    Attributes:
        example: Cost of an example by its size.
        microbatch_s: Of a micro-batch whatever is in it.
        padded: Whether a rank pays for its longest example, as often as it has examples.
        other_s: What a step takes besides its slowest rank's passes.
    """

    example: QuadraticCost
    microbatch_s: float
    padded: bool
    other_s: float

    def told(self) -> dict[str, float | bool]:
        """Return plain values; the first two are those of a `QuadraticCost`."""
        return {
            "linear": self.example.linear,
            "quadratic": self.example.quadratic,
            "microbatch": self.microbatch_s,
            "padded": self.padded,
        }

    def plain_s(self, steps: FirstSteps) -> Array:
        """Return the expected seconds of the steps that it was fitted to."""
        return np.asarray(self.other_s + self._passes_s(steps).max(axis=0))

    def _passes_s(self, steps: FirstSteps) -> Array:
        linear, square = _features(steps, padded=self.padded)
        passes_s = self.example.linear * linear + self.example.quadratic * square
        return np.asarray(self.microbatch_s * steps.num_microbatches + passes_s)


class Regrouped(NamedTuple):
    """Global batches, divided anew.

    Attributes:
        owner: Rank of each slot, shape `(num_batches, num_ranks * batch_size)`.
        plain_s: Expected seconds of each batch as it was dealt.
        after_s: The same as it is divided now.
    """

    owner: NDArray[np.int64]
    plain_s: Array
    after_s: Array


def fit_price(steps: FirstSteps) -> Price:
    """Fit what a batch costs.

    Raises:
        Unfit: If nobody can tell, or lengths do not matter.
    """
    if (steps.num_elements < 0).any():
        raise Unfit("the model's inputs do not tell how large they are")
    # What the model was given is in proportion to the longest examples if they are padded.
    spreads = [_spread(steps.num_elements / one) for one in (steps.longest, steps.total)]
    padded = spreads[0] <= spreads[1]
    linear, square = _features(steps, padded=padded)
    unit = max(float(steps.longest.max()), 1.0)
    columns = [linear / unit, square / unit**2, steps.num_microbatches]
    found = _robust(np.stack(columns, -1).reshape(-1, 3), steps.compute_s.ravel())
    if not found[0] + found[1]:
        raise Unfit("the time of a batch does not depend on the lengths of its examples")
    cost = QuadraticCost(float(found[0] / unit), float(found[1] / unit**2))
    price = Price(cost, float(found[2]), padded, 0.0)
    other_s = float((steps.step_s.mean(axis=0) - price.plain_s(steps)).mean())
    return price._replace(other_s=max(other_s, 0.0))


def divided(price: Price, sizes: Array, dealt: NDArray[np.int64], microbatches: int) -> Regrouped:
    """Divide global batches.

    Args:
        price: What batches cost.
        sizes: Of all examples.
        dealt: Which examples the script's samplers dealt, shape
            `(num_batches, num_ranks, batch_size)`.
        microbatches: Batches of a step.
    """
    num_batches, num_ranks, _ = dealt.shape
    costs = price.example(sizes[dealt])
    owner = regroup(costs, padded=price.padded)
    plain = regroup(np.zeros_like(costs), padded=price.padded)  # Nothing is gained: as dealt.
    slots = costs.reshape(num_batches, -1)
    fixed_s = price.other_s / microbatches + price.microbatch_s
    seconds = [
        fixed_s + rank_costs(slots, one, num_ranks, padded=price.padded).max(axis=1)
        for one in (plain, owner)
    ]
    return Regrouped(owner, *seconds)


def _features(steps: FirstSteps, *, padded: bool) -> tuple[Array, Array]:
    if padded:
        return steps.longest, steps.longest_squared
    return steps.total, steps.total_squared


def _spread(ratio: Array) -> float:
    return float(ratio.std() / ratio.mean())


def _robust(features: Array, seconds: Array) -> Array:
    """Fit relative errors, then once more without the steps that were disturbed."""
    relative = features / seconds[:, None]
    keep = np.ones(len(seconds), dtype=bool)
    for _ in range(2):
        try:
            found = fit_nonnegative(relative[keep], np.ones(int(keep.sum())))
        except ValueError as error:
            raise Unfit("the lengths of the first steps differ too little") from error
        far = np.abs(relative @ found - 1)
        keep = far <= FAR * float(np.median(far)) + 1e-9
    return np.asarray(found)
