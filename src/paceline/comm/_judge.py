"""The price of a block plan: the steady-state step time, simulated."""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.comm._blocks import BlockPlan
from paceline.comm._problem import WireProblem
from paceline.comm._wire import Parts, Wire, wire_of

# When each became free: the wire, the issuing of blocks, and what was carried over has landed;
# then one entry per collective in flight.
WIRE, ISSUE, CARRIED, SLOTS = 0, 1, 2, 3
MOST_STEPS = 64
SETTLED = 1e-12


def step_time_s(problem: WireProblem, plan: BlockPlan) -> float:
    """Return the simulated seconds per step of `plan`, once steps repeat.

    Runs a backward pass, the wire and the next forward pass. Where that pass waits for
    everything that is sent, one such run is exact, because the wire is idle again when it
    ends. Gradients that no layer of it waits for (`WireProblem.layer`) may still be sent
    while the next backward pass runs, and occupy the wire; then steps are repeated until
    they are alike. Each step is a max-plus linear map of the moments in which the lanes
    become free, so if they are not alike after 64 steps, the largest increment of any of
    these moments is returned, which the steady state never exceeds [1].

    The wire takes blocks in plan order: latencies overlap while fewer than
    `num_in_flight` blocks are under way, bytes and `block_cost_s` do not. A gather of
    `plan.in_halves` starts when its scatter has landed. O(num_parts) time per step.

    References:
        [1] F. Baccelli et al., "Synchronization and Linearity", Wiley 1992, section 3.2: the
        cycle time lies between the least and the largest increment of any vector.
    """
    wire = wire_of(problem, latency_share=plan.latency_share)
    parts = Parts(plan.tensor, plan.num_bytes, plan.block)
    return float(settled_step_s(wire, parts, plan.waits_for_all, plan.in_halves))


@compiled_beyond(20_000)
def settled_step_s(wire: Wire, parts: Parts, waits_for_all: bool, in_halves: bool) -> float:
    """Repeat `run_step` until steps are alike."""
    free_s = np.zeros(SLOTS + wire.num_in_flight)
    step_s = run_step(wire, parts, waits_for_all, in_halves, free_s)
    is_carried = False
    for tensor in parts.tensor:
        is_carried = is_carried or wire.layer[tensor] == len(wire.forward_s)
    if not is_carried:
        return step_s
    before_s, growth_s = np.empty_like(free_s), 0.0
    for _ in range(MOST_STEPS):
        for lane in range(len(free_s)):
            free_s[lane] -= step_s
            before_s[lane] = free_s[lane]
        step_s = run_step(wire, parts, waits_for_all, in_halves, free_s)
        change_s, growth_s = 0.0, step_s
        for lane in range(len(free_s)):
            change_s = max(change_s, abs(free_s[lane] - step_s - before_s[lane]))
            growth_s = max(growth_s, free_s[lane] - before_s[lane])
        if change_s <= SETTLED * step_s:
            return step_s
    return growth_s


@compiled
def run_step(
    wire: Wire, parts: Parts, waits_for_all: bool, in_halves: bool, free_s: NDArray[np.float64]
) -> float:
    """Return when the forward pass ends, counted from the start of the backward pass.

    `free_s` holds when the lanes become free, and is brought up to date.
    """
    landed_s = np.zeros(len(wire.forward_s) + 1)
    scattered_s = np.zeros(len(wire.num_bytes))
    time_s = max(wire.backward_s, free_s[CARRIED])
    part = 0
    while part < len(parts.tensor):
        first, payload = part, 0.0
        while part < len(parts.tensor) and parts.block[part] == parts.block[first]:
            tensor = parts.tensor[part]
            payload += parts.num_bytes[part]
            # Blocks are issued in plan order, so one that is not ready holds up the next.
            free_s[ISSUE] = max(free_s[ISSUE], wire.ready_s[tensor], scattered_s[tensor])
            part += 1
        _send(wire, payload, free_s)
        for index in range(first, part):
            here = wire.layer[parts.tensor[index]]
            landed_s[here] = free_s[WIRE]
            if in_halves:
                scattered_s[parts.tensor[index]] = free_s[WIRE]
    if landed_s[-1] > 0:
        free_s[CARRIED] = landed_s[-1]
    if waits_for_all:
        time_s = max(time_s, free_s[WIRE])
    for here in range(len(wire.forward_s)):
        time_s = max(time_s, landed_s[here]) + wire.forward_s[here]
    return float(time_s)


@compiled
def _send(wire: Wire, payload: float, free_s: NDArray[np.float64]) -> None:
    """Send one block; the slots are kept in the order in which they become free."""
    issued_s = max(free_s[ISSUE], free_s[SLOTS])
    landed_s = max(free_s[WIRE], issued_s + wire.alpha_s)
    landed_s += wire.block_cost_s + payload / wire.bytes_per_s
    for slot in range(SLOTS, len(free_s) - 1):
        free_s[slot] = free_s[slot + 1]
    free_s[ISSUE], free_s[WIRE], free_s[-1] = issued_s, landed_s, landed_s
