"""What is kept of each step of one rank: 78 bytes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.timeline import Kind

# In whole-number columns: nobody could tell.
UNKNOWN = -1
# What a rank goes through in a step, in this order: the column, its name and its kind.
STEP_SPANS = {
    "data_s": ("waiting for data", Kind.DATA),
    "between_s": ("between steps", Kind.DATA),
    "forward_s": ("forward", Kind.FORWARD),
    "loss_s": ("loss", Kind.FORWARD),
    "backward_s": ("backward", Kind.BACKWARD),
    "collective_s": ("all-reduce", Kind.COLLECTIVE),
    "after_s": ("after backward", Kind.COMPUTE),
    "optimizer_s": ("optimizer", Kind.OPTIMIZER),
}


class Steps(NamedTuple):
    """Steps of one rank, a row for each optimizer update; all columns have shape `(num_steps,)`.

    Where a step has several micro-batches, its columns hold their sums.

    Attributes:
        begin_s: When the update before had ended, on the clock of this rank.
        arrival_s: When this rank arrived at the step's last collective, on the same clock; NaN
            where it had none.
        data_s: Seconds in which the loop waited for its loader.
        between_s: Other seconds outside of the passes: printing, moving batches, whatever.
        forward_s: Seconds of forward passes.
        loss_s: Seconds from the end of a forward pass to the begin of its backward pass.
        backward_s: Seconds of backward passes until this rank's own gradients exist.
        collective_s: Seconds from the arrival until all ranks had the result.
        after_s: Seconds from there to the update.
        optimizer_s: Seconds of the update.
        num_microbatches: Forward passes.
        num_examples: Length of the first axis of the inputs, summed over micro-batches.
        num_elements: Positions of the inputs, padding included: examples x length for text.
        num_padding: Positions that hold padding; `UNKNOWN` if the inputs do not tell.
    """

    begin_s: NDArray[np.float64]
    arrival_s: NDArray[np.float64]
    data_s: NDArray[np.float32]
    between_s: NDArray[np.float32]
    forward_s: NDArray[np.float32]
    loss_s: NDArray[np.float32]
    backward_s: NDArray[np.float32]
    collective_s: NDArray[np.float32]
    after_s: NDArray[np.float32]
    optimizer_s: NDArray[np.float32]
    num_microbatches: NDArray[np.int32]
    num_examples: NDArray[np.int64]
    num_elements: NDArray[np.int64]
    num_padding: NDArray[np.int64]
