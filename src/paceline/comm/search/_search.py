"""Our planner: block lengths that shrink towards the end of the backward pass, then deadlines.

While the backward pass lasts the wire only has to be busy, so blocks may be large;
but a block that is under way when the first layers' gradients appear delays just what
is needed first. So a block lasts at most a share of the time that is left, like the
chunks of guided self-scheduling [1]. After the backward pass tensors are sent in the
order in which they are needed, in the largest blocks that meet every layer's
deadline for a given step time, and the least such step time is found by bisection.
From the best of these plans a local search goes on: it changes the length or the start of
one block at a time, lets the deadlines do the rest, and keeps what the judge finds no worse.

References:
    [1] C. Polychronopoulos and D. Kuck, "Guided self-scheduling: a practical scheduling
    scheme for parallel supercomputers", IEEE Transactions on Computers C-36(12), 1987.
"""

import numpy as np

from paceline.comm._baselines import (
    plan_bytescheduler,
    plan_ddp,
    plan_dear,
    plan_merged,
    plan_p3,
    plan_prophet,
    plan_wait_free,
)
from paceline.comm._blocks import BlockPlan
from paceline.comm._judge import step_time_s
from paceline.comm._problem import WireProblem
from paceline.comm._wire import Parts, wire_of
from paceline.comm.search._refine import Found, Task, aimed, form, refined
from paceline.comm.search._send import Pace, Room

BUCKET_MEBIBYTES = (1, 2, 4, 8, 16, 25, 50, 100)
PARTITION_BYTES = tuple(2.5e5 * 2**exponent for exponent in range(8))
# Share of the rest of the backward pass that one block may last, and its least length in
# start-up times: both are tried over a grid.
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
LEAST_START_UPS = (1.0, 2.0, 4.0, 8.0, 16.0)
MOST_BACKWARD_BLOCKS = 1024
# Trials of the local search: per tensor, at most, and at most over tensors, which bounds its time.
TRIALS_PER_TENSOR, MOST_TRIALS, TRIALS_TIMES_TENSORS = 600, 30_000, 5_000_000
# Rounds of it; the last one has a single start.
NUM_ROUNDS = 4


def baseline_plans(problem: WireProblem) -> list[BlockPlan]:
    """Return the plans of all other policies, those with a size for several sizes."""
    return [
        *(plan_ddp(problem, bucket_bytes=size << 20) for size in BUCKET_MEBIBYTES),
        plan_wait_free(problem),
        plan_merged(problem),
        plan_p3(problem),
        *(plan_bytescheduler(problem, partition_bytes=size) for size in PARTITION_BYTES),
        plan_prophet(problem),
        *(plan_dear(problem, bucket_bytes=size << 20) for size in BUCKET_MEBIBYTES),
    ]


def plan_blocks(problem: WireProblem, *, in_halves: bool = True) -> BlockPlan:
    """Search for the blocks with the least simulated step time.

    Never worse than the best of `baseline_plans` on the same problem: if one of those
    wins, it is returned under its own name. Ties go to the plan with fewer blocks.
    Deterministic: the search is bounded by trials, not by a clock.

    Args:
        problem: One step, seen from the wire.
        in_halves: Whether a plan of reduce-scatters and all-gathers may be returned.

    Returns:
        The best plan that was found.
    """
    candidates = [plan for plan in baseline_plans(problem) if in_halves or not plan.in_halves]
    if len(problem.num_bytes):
        candidates.append(_searched(problem))
    return min(candidates, key=lambda plan: (step_time_s(problem, plan), plan.num_blocks))


def _searched(problem: WireProblem) -> BlockPlan:
    """Try all starts, then the better half of them, and so on; each round as long as another."""
    task = _task(problem)
    found = _guided(problem, task)[: 2 ** (NUM_ROUNDS - 1)]
    per_round = _num_trials(len(problem.num_bytes)) // NUM_ROUNDS
    for number in range(NUM_ROUNDS):
        first, share = 1 + number * per_round, per_round // len(found)
        found = _best_first([refined(task, each, first, share) for each in found])
        found = found[: max(len(found) // 2, 1)]
    _, num_parts, _ = form(task, found[0].pace, found[0].aim_s)
    tensor, num_bytes, block = (column[:num_parts] for column in task.room.parts)
    return BlockPlan.from_parts("paceline", problem, tensor, num_bytes, block)


def _num_trials(num_tensors: int) -> int:
    return min(
        TRIALS_PER_TENSOR * num_tensors, MOST_TRIALS, TRIALS_TIMES_TENSORS // num_tensors + 1
    )


def _guided(problem: WireProblem, task: Task) -> list[Found]:
    """Return the best plan of each share, the best first."""
    # A link without latency would take ever smaller blocks towards the end.
    shortest_s = problem.backward_s / MOST_BACKWARD_BLOCKS
    lengths_s = [max(least * problem.start_up_s, shortest_s) for least in LEAST_START_UPS]
    found = [
        [aimed(task, _pace(share, least_s), problem.bound_s) for least_s in lengths_s]
        for share in SHARES
    ]
    return _best_first([_best_first(each)[0] for each in found])


def _best_first(found: list[Found]) -> list[Found]:
    return sorted(found, key=lambda each: each.price_s)


def _pace(share: float, least_s: float) -> Pace:
    return Pace(share, least_s, np.empty(0), np.empty(0))


def _task(problem: WireProblem) -> Task:
    num_parts = 2 * len(problem.num_bytes) + 4 * MOST_BACKWARD_BLOCKS
    parts = Parts(
        np.empty(num_parts, dtype=np.int64),
        np.empty(num_parts),
        np.empty(num_parts, dtype=np.int64),
    )
    # A layer's parameters must have landed this long before the step ends.
    tail_s = np.cumsum(problem.forward_s[::-1])[::-1]
    tail_s = np.append(tail_s, -problem.backward_s)[problem.layer]
    room = Room(parts, np.empty(num_parts), np.empty(num_parts))
    return Task(wire_of(problem), problem.by_readiness(), tail_s, room)
