"""Bring what was measured in the first steps together with the examples that they had."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from paceline.run import Steps
from paceline.torch.run.apply._first_batches import NUM_WARM_UP
from paceline.torch.run.apply._loss_form import Unfit
from paceline.torch.run.apply._price import FirstSteps
from paceline.torch.run.apply._talk import Talk

Array = NDArray[np.float64]


def microbatches_per_step(batches: list[tuple[int, list[int]]]) -> int:
    """Return how many batches each step had.

    Raises:
        Unfit: If that varies.
    """
    counts = Counter(step for step, _ in batches)
    whole = {counts[step] for step in sorted(counts)[1:-1]}
    if len(whole) != 1:
        raise Unfit(f"steps have {sorted(whole)} batches; they must have equally many")
    return whole.pop()


def gather_first_steps(
    steps: Steps, batches: list[tuple[int, list[int]]], sizes: Array, talk: Talk
) -> FirstSteps:
    """Return the first steps of all ranks; all must call it."""
    own = np.stack(_columns(steps, batches, sizes))
    ranks = talk.gather(own)
    num_steps = min(one.shape[1] for one in ranks)
    stacked = np.stack([one[:, :num_steps] for one in ranks], axis=1)
    return FirstSteps(*stacked)


def _columns(steps: Steps, batches: list[tuple[int, list[int]]], sizes: Array) -> list[Array]:
    num_steps = len(steps.begin_s)
    sums = np.zeros((5, num_steps))
    for step, rows in batches:
        if step < num_steps:
            size = sizes[rows]
            longest = size.max()
            sums[:, step] += (
                1, len(rows) * longest, len(rows) * longest**2, size.sum(), (size**2).sum()
            )  # fmt: skip
    compute_s = np.asarray(steps.forward_s + steps.loss_s + steps.backward_s, dtype=np.float64)
    seconds = [getattr(steps, name) for name in Steps._fields[2:] if name.endswith("_s")]
    step_s = np.sum(seconds, axis=0, dtype=np.float64)
    columns = [*sums, steps.num_elements.astype(np.float64), compute_s, step_s]
    known = (sums[0] > 0) & (np.arange(num_steps) >= NUM_WARM_UP)
    return [column[known] for column in columns]
