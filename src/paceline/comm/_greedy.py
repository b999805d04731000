"""Run the wire greedily, and note the order in which slices are sent."""

import heapq

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled_beyond
from paceline.comm._problem import WireProblem
from paceline.comm._wire import Wire, wire_of

MAX_SLICES = 200_000


def slices_of(
    num_bytes: NDArray[np.float64], slice_bytes: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cut tensors into equal slices of at most `slice_bytes`; return tensor and bytes of each.

    Slices are larger where there would be more than `MAX_SLICES`, so that planning for hundreds
    of gigabytes does not take minutes.
    """
    slice_bytes = max(slice_bytes, float(num_bytes.sum()) / MAX_SLICES)
    counts = np.maximum(np.ceil(num_bytes / slice_bytes), 1).astype(np.int64)
    tensor = np.repeat(np.arange(len(num_bytes)), counts)
    return tensor, np.repeat(num_bytes / counts, counts)


def priority_order(
    problem: WireProblem, tensor: NDArray[np.int64], num_bytes: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the order in which slices are sent if the wire always takes the most urgent one.

    Urgent is what an earlier layer needs; ties go to the lower slice. A slice that
    is being sent is not interrupted.
    """
    by_ready = np.argsort(problem.ready_s[tensor], kind="stable")
    return _priority_order(wire_of(problem), tensor, num_bytes, by_ready)


@compiled_beyond(50_000)
def _priority_order(
    wire: Wire,
    tensor: NDArray[np.int64],
    num_bytes: NDArray[np.float64],
    by_ready: NDArray[np.int64],
) -> NDArray[np.int64]:
    ready_s, layer = wire.ready_s[tensor], wire.layer[tensor]
    order = np.empty(len(by_ready), dtype=np.int64)
    slot_s = np.zeros(wire.num_in_flight)
    wire_s, following = 0.0, 0
    urgent = [(0, 0) for _ in range(0)]
    for position in range(len(order)):
        slot = position % wire.num_in_flight
        now_s = slot_s[slot]
        if not urgent:
            now_s = max(now_s, ready_s[by_ready[following]])
        while following < len(order) and ready_s[by_ready[following]] <= now_s:
            heapq.heappush(urgent, (layer[by_ready[following]], by_ready[following]))
            following += 1
        index = heapq.heappop(urgent)[1]
        order[position] = index
        begin_s = max(wire_s, now_s + wire.alpha_s)
        wire_s = begin_s + wire.block_cost_s + num_bytes[index] / wire.bytes_per_s
        slot_s[slot] = wire_s
    return order
