"""The same step as the judge's, laid out as tasks for the simulator."""

import numpy as np
from numpy.typing import NDArray

from paceline.comm._blocks import BlockPlan
from paceline.comm._problem import WireProblem
from paceline.timeline import Kind, TaskGraph

Tasks = NDArray[np.int64]


def wire_graph(problem: WireProblem, plan: BlockPlan, *, num_steps: int = 1) -> TaskGraph:
    """Lay out backward passes, the blocks and the next forward passes for `simulate`.

    Lanes: `main` for compute, `slot` per collective in flight for latencies, `wire` for
    bytes and what a block costs the host, `order` to issue blocks in plan order. Spans of
    the wire are collectives of one rank: all ranks are taken to be alike.

    Raises:
        ValueError: If `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    num_layers, num_blocks = len(problem.forward_s), plan.num_blocks
    # Backward pass in stretches that end where gradients become ready.
    cuts = np.unique(np.append(problem.ready_s, problem.backward_s))
    kinds = [Kind.BACKWARD, Kind.COPY, Kind.COLLECTIVE, Kind.COLLECTIVE, Kind.FORWARD]
    counts = [len(cuts), num_blocks, num_blocks, num_blocks, num_layers]
    tasks = np.arange(num_steps * sum(counts)).reshape(num_steps, -1)
    backward, issue, latency, wire, forward = np.split(tasks, np.cumsum(counts)[:-1], axis=1)
    seconds = [
        np.diff(cuts, prepend=0.0),
        np.zeros(num_blocks),
        np.full(num_blocks, problem.link.alpha_s * plan.latency_share),
        problem.block_cost_s + plan.block_bytes / problem.link.bytes_per_s,
        problem.forward_s,
    ]
    lane = np.repeat([0, 1, 3, 2, 0], counts) + np.zeros((num_steps, 1), dtype=np.int64)
    apart = problem.num_in_flight
    lane[:, latency[0]] += (np.arange(issue.size) % apart).reshape(issue.shape)
    gradient = np.searchsorted(cuts, problem.ready_s)[plan.tensor]
    edges = [
        (backward[:, gradient], issue[:, plan.block]),
        (issue, latency),
        (latency, wire),
        (wire.ravel()[:-apart], issue.ravel()[apart:]),
        *_waits(problem, plan, wire, forward),
    ]
    if plan.in_halves:
        edges.append(_gathers(plan, wire, issue))
    return TaskGraph.from_columns(
        np.tile(np.concatenate(seconds), num_steps),
        edges=np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in edges]),
        lane=lane.ravel(),
        kind=np.tile(np.repeat(kinds, counts), num_steps),
        step=np.repeat(np.arange(num_steps), sum(counts)),
        lanes=("main", "order", "wire", *(f"slot {slot}" for slot in range(apart))),
    )


def _waits(
    problem: WireProblem, plan: BlockPlan, wire: Tasks, forward: Tasks
) -> list[tuple[Tasks, Tasks]]:
    """Return what forward passes wait for; carried gradients delay the one after the next."""
    layer = problem.layer[plan.tensor]
    now, later = np.flatnonzero(layer < forward.shape[1]), layer == forward.shape[1]
    carried = wire[:-1, plan.block[later]]
    edges = [
        (wire[:, plan.block[now]], forward[:, layer[now]]),
        (carried, np.broadcast_to(forward[1:, :1], carried.shape)),
    ]
    if plan.waits_for_all and plan.num_blocks:
        edges.append((wire[:, -1], forward[:, 0]))
    return edges


def _gathers(plan: BlockPlan, wire: Tasks, issue: Tasks) -> tuple[Tasks, Tasks]:
    """Each part after a tensor's first waits for the one before it."""
    order = np.argsort(plan.tensor, kind="stable")
    before, after = order[:-1], order[1:]
    same = plan.tensor[before] == plan.tensor[after]
    return wire[:, plan.block[before[same]]], issue[:, plan.block[after[same]]]
