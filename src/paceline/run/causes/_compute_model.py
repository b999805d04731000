"""What the passes cost, fitted to the steps that were measured."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.cost import fit_nonnegative
from paceline.run.causes._grid import Grid

Array = NDArray[np.float64]
# Below this spread (deviation over mean) sizes say nothing about the cost of an empty batch.
LEAST_SPREAD = 0.1
MAX_ROWS, LEAST_ROWS = 10_000, 500
NUM_ROUNDS = 4
NUM_STRETCHES = 20
# Deviations beyond which a step counts as disturbed, not as costly.
FAR = 4.0


class Work(NamedTuple):
    """What passes had to do, each of shape `(num_ranks, num_steps)`."""

    num_microbatches: Array
    num_examples: Array
    num_elements: Array


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ComputeModel:
    """Seconds of the passes: micro-batches, elements, and elements times length.

    Attributes:
        microbatch_s: Seconds of a micro-batch whatever is in it.
        element_s: Seconds of an element.
        pair_s: Seconds of a pair of elements of one example, as in attention.
        pace: Seconds of each rank over those of the reference rank, for the same work. Shape
            `(num_ranks,)`. The reference is the middle one, of two the faster one.
        knows_fixed: Whether `microbatch_s` was fitted or measured, and not set to 0.
    """

    microbatch_s: float
    element_s: float
    pair_s: float
    pace: Array
    knows_fixed: bool

    def predict(self, work: Work) -> Array:
        """Return seconds on the reference rank."""
        pairs = _pairs(work)
        return (
            self.microbatch_s * work.num_microbatches
            + self.element_s * work.num_elements
            + self.pair_s * pairs
        )


def work_of(grid: Grid) -> Work:
    """Return what each rank had to do in each step; where nobody could tell, micro-batches."""
    num_microbatches = np.maximum(grid.num_microbatches, 1.0)
    examples = grid.num_examples if _is_known(grid.num_examples) else num_microbatches
    elements = grid.num_elements if _is_known(grid.num_elements) else examples
    return Work(num_microbatches, np.maximum(examples, 1.0), elements)


def _is_known(counts: Array) -> bool:
    return bool(np.isfinite(counts).all() and counts.sum() > 0)


def fit_compute(grid: Grid, work: Work, host_s: float | None) -> ComputeModel:
    """Fit the cost of work, and the pace of each rank at it, in turns.

    Args:
        grid: Measured steps.
        work: What they had to do.
        host_s: Seconds of a micro-batch whatever is in it, if they were measured; used where all
            batches are of one size.
    """
    pace = np.ones(grid.num_ranks)
    rows = _spread_rows(grid.num_steps, max(MAX_ROWS // grid.num_ranks, LEAST_ROWS))
    part = Work(*(column[:, rows] for column in work))
    compute_s = grid.compute_s[:, rows]
    for _ in range(NUM_ROUNDS):
        model = _fit(part, compute_s / pace[:, None], host_s)
        pace = _level(compute_s / np.maximum(model.predict(part), 1e-12))
        pace = pace / max(np.sort(pace)[(len(pace) - 1) // 2], 1e-12)
    return replace(model, pace=pace)


def _level(ratio: Array) -> Array:
    """Return the mean over stretches of each one's median: what lasts counts, a pause does not."""
    num_stretches = max(min(NUM_STRETCHES, ratio.shape[1] // 5), 1)
    medians = [np.median(part, axis=1) for part in np.array_split(ratio, num_stretches, axis=1)]
    return np.asarray(np.mean(medians, axis=0))


def _spread_rows(num_steps: int, at_most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, num_steps - 1, min(num_steps, at_most)).astype(np.int64))


def _pairs(work: Work) -> Array:
    return np.asarray(work.num_elements**2 / work.num_examples, dtype=np.float64)


def _fit(work: Work, compute_s: Array, host_s: float | None) -> ComputeModel:
    num = work.num_microbatches
    size = work.num_elements / num
    if size.std() < LEAST_SPREAD * size.mean():
        return _in_proportion(float(np.median(compute_s / num)), float(np.median(size)), host_s)
    columns = [num, work.num_elements, _pairs(work)]
    if np.ptp(work.num_elements / work.num_examples) < 1e-9:
        columns.pop()  # All examples are of one length: pairs say what elements say.
    found = _robust(np.stack(columns, axis=-1).reshape(-1, len(columns)), compute_s.ravel())
    return _model(*found.tolist(), knows_fixed=True)


def _in_proportion(microbatch_s: float, num_elements: float, host_s: float | None) -> ComputeModel:
    fixed_s = min(host_s or 0.0, microbatch_s)
    element_s = (microbatch_s - fixed_s) / max(num_elements, 1.0)
    return _model(fixed_s, element_s, knows_fixed=host_s is not None)


def _model(
    microbatch_s: float, element_s: float, pair_s: float = 0.0, *, knows_fixed: bool
) -> ComputeModel:
    return ComputeModel(
        microbatch_s=microbatch_s,
        element_s=element_s,
        pair_s=pair_s,
        pace=np.ones(1),
        knows_fixed=knows_fixed,
    )


def _robust(features: Array, seconds: Array) -> Array:
    """Fit relative errors, without the rows that are far from what the others say."""
    expected = np.full(len(seconds), max(float(seconds.mean()), 1e-12))
    keep = np.ones(len(seconds), dtype=bool)
    for _ in range(NUM_ROUNDS):
        weight = 1.0 / expected[keep]
        if len(np.unique(features[keep], axis=0)) < features.shape[1]:
            break
        found = fit_nonnegative(features[keep] * weight[:, None], seconds[keep] * weight)
        expected = np.maximum(features @ found, 1e-3 * float(seconds.mean()) + 1e-12)
        error = seconds / expected - 1
        middle = np.median(error)
        keep = np.abs(error - middle) <= FAR * 1.4826 * np.median(np.abs(error - middle)) + 1e-9
    return found
