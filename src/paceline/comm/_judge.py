"""The price of a block plan: the steady-state step time, simulated."""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.comm._blocks import BlockPlan
from paceline.comm._problem import WireProblem
from paceline.timeline import Kind, TaskGraph


def step_time_s(problem: WireProblem, plan: BlockPlan) -> float:
    """Return the simulated seconds per step of `plan`, once steps repeat.

    Runs the backward pass, the wire and the next forward pass once, which is exact: the
    wire is idle again when that forward pass ends. Equal to the makespan that `simulate`
    gives for `wire_graph`, and a hundred times as fast. O(num_parts) time.
    """
    return float(
        _cycle(
            plan.tensor,
            plan.num_bytes,
            plan.block,
            plan.waits_for_all,
            problem.ready_s,
            problem.layer,
            problem.forward_s,
            problem.backward_s,
            problem.link.alpha_s * plan.latency_share,
            problem.link.bytes_per_s,
            problem.num_in_flight,
        )
    )


@compiled
def _cycle(
    tensor: NDArray[np.int64],
    num_bytes: NDArray[np.float64],
    block: NDArray[np.int64],
    waits_for_all: bool,
    ready_s: NDArray[np.float64],
    layer: NDArray[np.int64],
    forward_s: NDArray[np.float64],
    backward_s: float,
    alpha_s: float,
    bytes_per_s: float,
    num_in_flight: int,
) -> float:
    landed_s = np.zeros(len(forward_s))
    slot_s = np.zeros(num_in_flight)
    wire_s, issued_s = 0.0, 0.0
    part = 0
    while part < len(tensor):
        number, first, payload, gradient_s = block[part], part, 0.0, 0.0
        while part < len(tensor) and block[part] == number:
            payload += num_bytes[part]
            gradient_s = max(gradient_s, ready_s[tensor[part]])
            part += 1
        # Blocks are issued in plan order, so one that is not ready holds up the next.
        slot = number % num_in_flight
        issued_s = max(issued_s, gradient_s, slot_s[slot])
        wire_s = max(wire_s, issued_s + alpha_s) + payload / bytes_per_s
        slot_s[slot] = wire_s
        for index in range(first, part):
            here = layer[tensor[index]]
            landed_s[here] = max(landed_s[here], wire_s)
    time_s = max(backward_s, wire_s) if waits_for_all else backward_s
    for here in range(len(forward_s)):
        time_s = max(time_s, landed_s[here]) + forward_s[here]
    return time_s


def wire_graph(problem: WireProblem, plan: BlockPlan) -> TaskGraph:
    """Lay out one backward pass, the blocks and the next forward pass for `simulate`.

    Lanes: `main` for compute, `slot` per collective in flight for latencies, `wire` for
    bytes, `order` to issue blocks in plan order. Spans of the wire are collectives of one
    rank: all ranks are taken to be alike.
    """
    num_layers, num_blocks = len(problem.forward_s), plan.num_blocks
    # Backward pass in stretches that end where gradients become ready.
    cuts = np.unique(np.append(problem.ready_s, problem.backward_s))
    stretch_s = np.diff(cuts, prepend=0.0)
    gradient_s = np.zeros(num_blocks)
    np.maximum.at(gradient_s, plan.block, problem.ready_s[plan.tensor])
    blocks = np.arange(num_blocks)
    issue = len(cuts) + blocks
    latency, wire = issue + num_blocks, issue + 2 * num_blocks
    forward = len(cuts) + 3 * num_blocks + np.arange(num_layers)
    edges = [
        np.stack([np.searchsorted(cuts, gradient_s), issue], axis=1),
        np.stack([issue, latency], axis=1),
        np.stack([latency, wire], axis=1),
    ]
    apart = problem.num_in_flight
    edges.append(np.stack([wire[:-apart], issue[apart:]], axis=1))
    if plan.waits_for_all:
        edges.append(np.stack([wire[-1:], forward[: min(num_blocks, 1)]], axis=1))
    edges.append(np.stack([wire[plan.block], forward[problem.layer[plan.tensor]]], axis=1))
    lanes = ("main", "order", "wire", *(f"slot {slot}" for slot in range(apart)))
    return TaskGraph.from_columns(
        np.concatenate(
            [
                stretch_s,
                np.zeros(num_blocks),
                np.full(num_blocks, problem.link.alpha_s * plan.latency_share),
                plan.block_bytes / problem.link.bytes_per_s,
                problem.forward_s,
            ]
        ),
        edges=np.concatenate(edges),
        lane=np.concatenate(
            [
                np.zeros(len(cuts)),
                np.ones(num_blocks),
                3 + blocks % apart,
                np.full(num_blocks, 2),
                np.zeros(num_layers),
            ]
        ).astype(np.int64),
        kind=np.repeat(
            [Kind.BACKWARD, Kind.COPY, Kind.COLLECTIVE, Kind.COLLECTIVE, Kind.FORWARD],
            [len(cuts), num_blocks, num_blocks, num_blocks, num_layers],
        ),
        lanes=lanes,
    )
