"""Find out on a live model whether deferring pays: measure, simulate, try, keep."""

import os
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from paceline.overlap import LanePlan, SplitCost, Threads, Way, choose_way
from paceline.torch.model import Trial
from paceline.torch.overlap.split._site import Mode

NUM_WARM = 2
NUM_TIMED = 2
NUM_ROUNDS = 8
# What was simulated to lose by more than this is not even tried.
WORTH_TRYING = -0.1


@dataclass(frozen=True, slots=True)
class PassPlan:
    """How the next pass is to run.

    Attributes:
        mode: Of the layers in `deferred`; the others are plain.
        threads: Per phase; None to leave them as they are.
        deferred: Names of layers; None for all.
        max_pending: Tasks that the assist lane may hold.
        layers_per_task: Layers whose weight gradients make one task.
    """

    mode: Mode = Mode.PLAIN
    threads: Threads | None = None
    deferred: tuple[str, ...] | None = None
    max_pending: int | None = None
    layers_per_task: int = 1

    @classmethod
    def of(cls, plan: LanePlan) -> "PassPlan":
        """Return the pass that `plan` asks for."""
        if not plan.defers:
            return cls()
        return cls(Mode.DEFER, plan.threads, plan.deferred, plan.max_pending, plan.layers_per_task)


@dataclass(frozen=True, slots=True)
class MeasuredPass:
    """What was measured in a pass: forward, loss and backward.

    Attributes:
        start_s: Seconds of: begin, begin of the backward pass, each mark, end.
        names: Of the layers that made the marks, two each: input gradient, weight gradients.
    """

    start_s: Sequence[float]
    names: Sequence[str]

    @property
    def seconds(self) -> float:
        """From begin to end."""
        return self.start_s[-1] - self.start_s[0]

    def cost(self) -> SplitCost:
        """Return the parts of a pass that ran inline."""
        parts = [max(0.0, b - a) for a, b in pairwise(self.start_s)]
        return SplitCost.of(
            forward_s=parts[0],
            input_s=parts[1:-1:2],
            weight_s=parts[2::2],
            tail_s=parts[-1],
            names=list(self.names[::2]),
        )


PlanSearch = Generator[PassPlan, MeasuredPass, LanePlan]


def find_plan(num_cores: int, num_threads: int, overhead_s: float) -> PlanSearch:
    """Yield how each pass is to run, take what was measured, and return the plan to keep.

    First the parts of the backward pass are timed, with each number of threads in question.
    Then each division of the cores is simulated, and those that do not lose clearly take turns
    with the plain way in a `Trial`.

    Args:
        num_cores: That this process may use; 0 where the device has its own.
        num_threads: Intra-op threads of the plain way.
        overhead_s: Seconds that handing a task over costs each lane.
    """
    for _ in range(NUM_WARM):
        yield PassPlan()
    if num_cores == 1:
        return _plain("no core is free beside main", 0)
    divisions = _divisions(num_cores, num_threads)
    own = num_threads if num_cores else 0
    costs: dict[int, SplitCost] = {}
    counts = {own, *(number for threads in divisions for number in _numbers(threads))}
    for count in sorted(counts):
        threads = Threads(forward=count, backward=count, assist=count) if count else None
        for _ in range(NUM_TIMED):
            passed = yield PassPlan(Mode.INLINE, threads)
        costs[count] = passed.cost()
    if not next(iter(costs.values())).num_layers:
        return _plain("no layer that can be split took part in the first passes", 0)
    plain = Way(None, costs[own])
    plans = [_simulated(plain, threads, costs, overhead_s) for threads in divisions]
    tried = [plan for plan in plans if plan.defers]
    if not tried:
        return max(plans, key=lambda plan: plan.gain)
    return (yield from _compare(tried))


def num_cores(device: torch.device, num_threads: int) -> int:
    """Return the cores of this process; 0 for a device that has its own."""
    if device.type != "cpu":
        return 0
    own = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    # Ranks that torchrun starts on one machine share its cores.
    share = own // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(share, max(2, num_threads)))


def _numbers(threads: Threads | None) -> tuple[int, ...]:
    return (threads.forward, threads.backward, threads.assist) if threads is not None else (0,)


def _divisions(num_cores: int, num_threads: int) -> list[Threads | None]:
    """Return ways to share the cores between main and assist."""
    if not num_cores:
        return [None]
    found: list[Threads | None] = []
    for assist in sorted({1, num_cores // 2}):
        backward = max(1, min(num_threads, num_cores - assist))
        for forward in dict.fromkeys((num_threads, backward)):
            found.append(Threads(forward=forward, backward=backward, assist=assist))
    return found


def _simulated(
    plain: Way, threads: Threads | None, costs: dict[int, SplitCost], overhead_s: float
) -> LanePlan:
    forward, backward, assist = _numbers(threads) if threads is not None else (0, 0, 0)
    cost, beside = costs[backward], costs[assist]
    if beside.names == cost.names:
        cost = replace(cost, assist_s=beside.weight_s)
    cost = replace(cost, forward_s=costs[forward].forward_s)
    return choose_way(plain, [Way(threads, cost)], overhead_s=overhead_s, min_gain=WORTH_TRYING)


def _compare(plans: Sequence[LanePlan]) -> PlanSearch:
    """Run all plans in turns with the plain way."""
    ways = [PassPlan(), *map(PassPlan.of, plans)]
    trial = Trial(len(ways), num_rounds=NUM_ROUNDS, num_warm_rounds=1)
    while not trial.is_over:
        measured = yield ways[trial.current]
        if trial.note(measured.seconds):
            trial.end_round()
    kept = trial.winner()
    told = kept or 1 + int(np.argmin(trial.medians_s()[1:]))
    plan = plans[told - 1]
    reason = (
        f"{trial.explain(told, per='pass')}; simulated {plan.predicted_s * 1e3:.4g} ms against "
        f"{plan.plain_s * 1e3:.4g} ms"
    )
    return replace(plan, reason=reason) if kept else _plain(reason, plan.num_layers, plan.plain_s)


def _plain(reason: str, num_layers: int, plain_s: float = 0.0) -> LanePlan:
    return LanePlan(
        deferred=(),
        num_layers=num_layers,
        threads=None,
        max_pending=None,
        plain_s=plain_s,
        predicted_s=plain_s,
        reason=reason,
    )
