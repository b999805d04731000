"""The search itself, compiled: the least step time of one pace, and better paces near it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.comm._judge import settled_step_s
from paceline.comm._wire import Parts, Wire
from paceline.comm.search._send import Pace, Room, Urgency, send

NUM_BISECTIONS = 20
# A trial aims below the best price by up to this share.
AIM = 2e-3
# While it goes on, prices up to this share above the best are let pass.
PATIENCE = 1e-3
# The fractional parts of its multiples fill [0, 1) evenly, so no generator is needed.
GOLDEN = 0.6180339887498949


Seconds = NDArray[np.float64]


class Task(NamedTuple):
    """What stays the same while searching.

    Attributes:
        wire: The problem.
        by_ready: Tensors in the order of readiness.
        tail_s: How long before the end of the step each tensor must have landed.
        room: Where plans are written.
    """

    wire: Wire
    by_ready: NDArray[np.int64]
    tail_s: NDArray[np.float64]
    room: Room


class Found(NamedTuple):
    """A simulated step time, the one that deadlines were set for, and the pace."""

    price_s: float
    aim_s: float
    pace: Pace


@compiled
def form(task: Task, pace: Pace, aim_s: float) -> tuple[float, int, int]:
    """Write the plan into `task.room`; return its price and the two numbers of `send`."""
    due_s = np.empty_like(task.tail_s)
    for tensor in range(len(due_s)):
        due_s[tensor] = aim_s - task.tail_s[tensor]
    num_parts, num_paced = send(task.wire, Urgency(task.by_ready, due_s), pace, task.room)
    parts = task.room.parts
    made = Parts(parts.tensor[:num_parts], parts.num_bytes[:num_parts], parts.block[:num_parts])
    return settled_step_s(task.wire, made, False, False), num_parts, num_paced


@compiled
def aimed(task: Task, pace: Pace, low_s: float) -> Found:
    """Bisect for the least step time that deadlines may be set for at this pace."""
    high_s = form(task, pace, low_s)[0]
    best = Found(high_s, low_s, pace)
    for _ in range(NUM_BISECTIONS):
        aim_s = (low_s + high_s) / 2
        price_s = form(task, pace, aim_s)[0]
        if price_s < best.price_s:
            best = Found(price_s, aim_s, pace)
        if price_s <= aim_s * (1 + 1e-9):
            high_s = aim_s
        else:
            low_s = aim_s
    return best


@compiled
def refined(task: Task, start: Found, first_trial: int, num_trials: int) -> Found:
    """Change block lengths and starts one at a time, and keep what is not worse."""
    num_paced = form(task, start.pace, start.aim_s)[2]
    best = Found(start.price_s, start.aim_s, _taken(task, start.pace, num_paced))
    now = best
    for trial in range(num_trials):
        if not len(now.pace.hold_s):
            break
        number = first_trial + trial
        aim_s = best.price_s * (1 - AIM * _even(5.13 * number))
        pace = _changed(task, now.pace, number)
        price_s, _, num_paced = form(task, pace, aim_s)
        # A little worse is let pass, less and less, to leave what only looks best nearby.
        slack = PATIENCE * (1 - trial / num_trials) ** 2
        if price_s <= now.price_s or price_s <= best.price_s * (1 + slack):
            now = Found(price_s, aim_s, _taken(task, pace, num_paced))
        if price_s < best.price_s:
            best = now
    return best


@compiled
def _taken(task: Task, pace: Pace, num_paced: int) -> Pace:
    """Return the pace that the last plan took in the end."""
    hold_s = np.zeros(num_paced)
    for block in range(min(num_paced, len(pace.hold_s))):
        hold_s[block] = pace.hold_s[block]
    return Pace(pace.share, pace.least_s, hold_s, task.room.budget_s[:num_paced].copy())


@compiled
def _changed(task: Task, pace: Pace, trial: int) -> Pace:
    """Lengthen, shorten, delay, merge or split a block, late ones more often."""
    hold_s, budget_s = pace.hold_s.copy(), pace.budget_s.copy()
    last = len(hold_s) - 1
    index = last - int(len(hold_s) * _even(trial) ** 2)
    kind, amount = int(5 * _even(7.31 * trial + 0.3)), _even(3.77 * trial + 0.71)
    if kind == 0:
        budget_s[index] *= np.exp(1.5 * (2 * amount - 1) ** 3)
    elif kind == 1:
        longest_s = 3 * max(task.wire.alpha_s + task.wire.block_cost_s, task.wire.backward_s / 64)
        issued_s = task.room.hold_s[index]
        hold_s[index] = issued_s + (amount * _even(11.93 * trial + 0.11)) * longest_s
    elif kind == 2 and index < last:
        hold_s, budget_s = _merged(hold_s, budget_s, index)
    elif kind == 3:
        hold_s, budget_s = _halved(hold_s, budget_s, index, 0.1 + 0.8 * amount)
    else:
        factor = np.exp(0.8 * (2 * amount - 1) ** 3)
        for block in range(index, len(hold_s)):
            budget_s[block], hold_s[block] = budget_s[block] * factor, 0.0
    return Pace(pace.share, pace.least_s, hold_s, budget_s)


@compiled
def _merged(hold_s: Seconds, budget_s: Seconds, index: int) -> tuple[Seconds, Seconds]:
    """Join a block with the next one."""
    budget_s[index + 1] += budget_s[index]
    hold_s[index + 1] = hold_s[index]
    return (
        np.concatenate((hold_s[:index], hold_s[index + 1 :])),
        np.concatenate((budget_s[:index], budget_s[index + 1 :])),
    )


@compiled
def _halved(
    hold_s: Seconds, budget_s: Seconds, index: int, share: float
) -> tuple[Seconds, Seconds]:
    """Cut a block in two; `share` of it goes first."""
    hold_s = np.concatenate((hold_s[: index + 1], hold_s[index:]))
    budget_s = np.concatenate((budget_s[: index + 1], budget_s[index:]))
    budget_s[index] *= share
    budget_s[index + 1] *= 1 - share
    hold_s[index + 1] = 0.0
    return hold_s, budget_s


@compiled
def _even(number: float) -> float:
    return (number * GOLDEN) % 1.0
