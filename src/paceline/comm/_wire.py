"""What compiled code sees of a problem and of a plan: plain columns."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.comm._problem import WireProblem


class Wire(NamedTuple):
    """The columns and numbers of a `WireProblem`, under the same names."""

    layer: NDArray[np.int64]
    num_bytes: NDArray[np.float64]
    ready_s: NDArray[np.float64]
    forward_s: NDArray[np.float64]
    backward_s: float
    alpha_s: float
    bytes_per_s: float
    block_cost_s: float
    num_in_flight: int


class Parts(NamedTuple):
    """The columns of a `BlockPlan`, or room for them."""

    tensor: NDArray[np.int64]
    num_bytes: NDArray[np.float64]
    block: NDArray[np.int64]


def wire_of(problem: WireProblem, *, latency_share: float = 1.0) -> Wire:
    """Return the columns of `problem`, with that share of an all-reduce's latency."""
    return Wire(
        layer=problem.layer.astype(np.int64),
        num_bytes=problem.num_bytes.astype(np.float64),
        ready_s=problem.ready_s.astype(np.float64),
        forward_s=problem.forward_s.astype(np.float64),
        backward_s=float(problem.backward_s),
        alpha_s=problem.link.alpha_s * latency_share,
        bytes_per_s=float(problem.link.bytes_per_s),
        block_cost_s=float(problem.block_cost_s),
        num_in_flight=problem.num_in_flight,
    )
