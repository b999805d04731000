"""Our planner: block sizes that shrink towards the end of the backward pass, then deadlines.

While the backward pass lasts the wire only has to be busy, so blocks may be large;
but a block that is under way when the first layers' gradients appear delays just what
is needed first. So a block lasts at most a share of the time that is left, like the
chunks of guided self-scheduling [1]. After the backward pass tensors travel in the
order in which they are needed, in the largest blocks that meet every layer's
deadline for a given step time, and the least such step time is found by bisection.

References:
    [1] C. Polychronopoulos and D. Kuck, "Guided self-scheduling: a practical scheduling
    scheme for parallel supercomputers", IEEE Transactions on Computers C-36(12), 1987.
"""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
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

BUCKET_MEBIBYTES = (1, 2, 4, 8, 16, 25, 50, 100)
PARTITION_BYTES = tuple(2.5e5 * 2**exponent for exponent in range(8))
# Share of the rest of the backward pass that one block may last, and its least length in
# latencies: both are tried over a grid.
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
LEAST_LATENCIES = (1.0, 2.0, 4.0, 8.0, 16.0)
NUM_BISECTIONS = 20
MOST_BACKWARD_BLOCKS = 1024


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


def plan_blocks(problem: WireProblem) -> BlockPlan:
    """Search for the blocks with the least simulated step time.

    Never worse than the best of `baseline_plans` on the same problem: if one of those
    wins, it is returned under its own name. Ties go to the plan with fewer blocks.
    Deterministic.

    Args:
        problem: One step, seen from the wire.

    Returns:
        The best plan that was found.
    """
    candidates = [*baseline_plans(problem)]
    # A link without latency would take ever smaller blocks towards the end.
    shortest_s = problem.backward_s / MOST_BACKWARD_BLOCKS
    for share in SHARES:
        for least in LEAST_LATENCIES:
            candidates.append(
                _guided(problem, share, max(least * problem.link.alpha_s, shortest_s))
            )
    return min(candidates, key=lambda plan: (step_time_s(problem, plan), plan.num_blocks))


def _guided(problem: WireProblem, share: float, least_s: float) -> BlockPlan:
    """Return the plan for one choice of block lengths."""
    low = problem.bound_s
    best = _with_deadlines(problem, share, least_s, low)
    high = best_s = step_time_s(problem, best)
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        plan = _with_deadlines(problem, share, least_s, middle)
        price_s = step_time_s(problem, plan)
        if price_s < best_s:
            best, best_s = plan, price_s
        if price_s <= middle * (1 + 1e-9):
            high = middle
        else:
            low = middle
    return best


def _with_deadlines(problem: WireProblem, share: float, least_s: float, step_s: float) -> BlockPlan:
    # A layer's parameters must have landed this long before the step ends.
    tail_s = np.cumsum(problem.forward_s[::-1])[::-1]
    room = 2 * len(problem.num_bytes) + 4096
    tensor, num_bytes, block, count = _send(
        problem.by_readiness(),
        problem.ready_s,
        step_s - tail_s[problem.layer],
        problem.num_bytes,
        problem.backward_s,
        problem.link.alpha_s,
        problem.link.bytes_per_s,
        problem.num_in_flight,
        share,
        least_s,
        room,
    )
    return BlockPlan.from_parts(
        "paceline", problem, tensor[:count], num_bytes[:count], block[:count]
    )


@compiled
def _send(
    by_ready: NDArray[np.int64],
    ready_s: NDArray[np.float64],
    due_s: NDArray[np.float64],
    num_bytes: NDArray[np.float64],
    backward_s: float,
    alpha_s: float,
    bytes_per_s: float,
    num_in_flight: int,
    share: float,
    least_s: float,
    room: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], int]:
    """Run the wire once, forming blocks as it becomes free; tensors are numbered by urgency."""
    tensor = np.empty(room, dtype=np.int64)
    length = np.empty(room)
    block = np.empty(room, dtype=np.int64)
    left = num_bytes.copy()
    is_ready = np.zeros(len(left), dtype=np.bool_)
    slot_s = np.zeros(num_in_flight)
    wire_s, following, count, number = 0.0, 0, 0, 0
    num_sent = 0
    while num_sent < len(left):
        slot = number % num_in_flight
        now_s = slot_s[slot]
        while following < len(left) and ready_s[by_ready[following]] <= now_s:
            is_ready[by_ready[following]] = True
            following += 1
        if not (is_ready & (left > 0)).any():
            now_s = ready_s[by_ready[following]]
            while following < len(left) and ready_s[by_ready[following]] <= now_s:
                is_ready[by_ready[following]] = True
                following += 1
        start_s = max(wire_s, now_s + alpha_s)
        is_backward = now_s < backward_s
        budget_s = max(least_s, share * (backward_s - now_s)) if is_backward else np.inf
        latest_s, taken_s, begun = np.inf, 0.0, False
        for index in range(len(left)):
            if not is_ready[index] or left[index] <= 0:
                continue
            whole_s = left[index] / bytes_per_s
            piece_s = min(whole_s, budget_s - taken_s)
            # Room is kept for one part of every tensor; once only that is left, none is cut.
            if count >= room - len(left) or (is_backward and whole_s - piece_s < least_s):
                piece_s = whole_s
            end_s = start_s + taken_s + piece_s
            latest_s = min(latest_s, due_s[index])
            # The block lands as a whole, so it must land in time for its most urgent part.
            if begun and end_s > latest_s and not is_backward:
                break
            tensor[count], block[count] = index, number
            length[count] = left[index] if piece_s == whole_s else piece_s * bytes_per_s
            left[index] = 0.0 if piece_s == whole_s else left[index] - length[count]
            num_sent += left[index] == 0.0
            count += 1
            taken_s += piece_s
            begun = True
            if taken_s >= budget_s or count >= room - len(left):
                break
        wire_s = start_s + taken_s
        slot_s[slot] = wire_s
        number += 1
    return tensor, length, block, count
