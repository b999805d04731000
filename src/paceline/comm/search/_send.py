"""Form blocks by running the wire once: at a given pace, then as late as deadlines allow."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.comm._wire import Parts, Wire


class Urgency(NamedTuple):
    """Tensors in the order of readiness, and when each must have landed. Shape `(num_tensors,)`."""

    by_ready: NDArray[np.int64]
    due_s: NDArray[np.float64]


class Pace(NamedTuple):
    """How long blocks last that start in the backward pass.

    Block `i` is issued at `hold_s[i]` at the earliest and lasts `budget_s[i]` seconds at most;
    past the end of these columns a block lasts `share` of what is left of the backward pass.
    No block lasts less than `least_s` only because a tensor was cut.
    """

    share: float
    least_s: float
    hold_s: NDArray[np.float64]
    budget_s: NDArray[np.float64]


class Room(NamedTuple):
    """Where `send` writes: the parts, and the pace that the blocks of the backward pass took."""

    parts: Parts
    hold_s: NDArray[np.float64]
    budget_s: NDArray[np.float64]


class State(NamedTuple):
    """What is left of each tensor and which are ready; shape `(num_tensors,)`."""

    left: NDArray[np.float64]
    is_ready: NDArray[np.bool_]


class Begin(NamedTuple):
    """Where a block begins: its first part, its number, its bytes' start and latest end."""

    part: int
    block: int
    start_s: float
    limit_s: float
    least_s: float


@compiled
def send(wire: Wire, urgency: Urgency, pace: Pace, room: Room) -> tuple[int, int]:
    """Fill `room`; tensors are numbered by urgency, parts are cut off their front.

    Returns the numbers of parts and of blocks of the backward pass.
    """
    num_tensors = len(wire.num_bytes)
    state = State(wire.num_bytes.copy(), np.zeros(num_tensors, dtype=np.bool_))
    slot_s = np.zeros(wire.num_in_flight)
    wire_s, following, count, number, num_paced, num_sent = 0.0, 0, 0, 0, 0, 0
    while num_sent < num_tensors:
        slot = number % wire.num_in_flight
        now_s = slot_s[slot]
        if number < len(pace.hold_s):
            now_s = max(now_s, pace.hold_s[number])
        following = _admit(wire, urgency, state, following, now_s)
        if following == num_sent:
            now_s = wire.ready_s[urgency.by_ready[following]]
            following = _admit(wire, urgency, state, following, now_s)
        start_s = max(wire_s, now_s + wire.alpha_s) + wire.block_cost_s
        budget_s = _budget_s(wire, pace, number, now_s)
        begin = Begin(count, number, start_s, start_s + budget_s, pace.least_s)
        count, wire_s = _fill(wire, urgency, state, room.parts, begin)
        for part in range(begin.part, count):
            num_sent += state.left[room.parts.tensor[part]] == 0.0
        if budget_s < np.inf:
            room.hold_s[number], room.budget_s[number] = now_s, wire_s - start_s
            num_paced += 1
        slot_s[slot] = wire_s
        number += 1
    return count, num_paced


@compiled
def _admit(wire: Wire, urgency: Urgency, state: State, following: int, now_s: float) -> int:
    """Mark what is ready by `now_s`; return how many tensors are."""
    by_ready = urgency.by_ready
    while following < len(by_ready) and wire.ready_s[by_ready[following]] <= now_s:
        state.is_ready[by_ready[following]] = True
        following += 1
    return following


@compiled
def _budget_s(wire: Wire, pace: Pace, number: int, now_s: float) -> float:
    """Return how long a block may last that is issued now; after the backward pass, for ever."""
    if now_s >= wire.backward_s:
        return np.inf
    if number < len(pace.budget_s):
        return float(pace.budget_s[number])
    return max(pace.least_s, pace.share * (wire.backward_s - now_s))


@compiled
def _fill(
    wire: Wire, urgency: Urgency, state: State, parts: Parts, begin: Begin
) -> tuple[int, float]:
    """Write one block's parts, the most urgent first; return their end and when they landed."""
    count, end_s, latest_s = begin.part, begin.start_s, np.inf
    # Room is kept for one part of every tensor; once only that is left, none is cut.
    most = len(parts.tensor) - len(state.left)
    for tensor in range(len(state.left)):
        if not state.is_ready[tensor] or state.left[tensor] <= 0:
            continue
        piece_s = state.left[tensor] / wire.bytes_per_s
        is_cut = count < most and end_s + piece_s - begin.limit_s >= begin.least_s
        if is_cut:
            piece_s = begin.limit_s - end_s
        latest_s = min(latest_s, urgency.due_s[tensor])
        # The block lands as a whole, so it must land in time for its most urgent part.
        if count > begin.part and begin.limit_s == np.inf and end_s + piece_s > latest_s:
            break
        cut = piece_s * wire.bytes_per_s if is_cut else state.left[tensor]
        parts.tensor[count], parts.num_bytes[count], parts.block[count] = tensor, cut, begin.block
        state.left[tensor] = state.left[tensor] - cut if is_cut else 0.0
        end_s += piece_s
        count += 1
        if is_cut or end_s >= begin.limit_s or count >= most:
            break
    return count, end_s
