"""Decide over a training run which plan is walked: measure, try, keep, watch for drift."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.utils.hooks import RemovableHandle

from paceline.torch.comm._candidates import Candidate, Planner, candidates, first_plan
from paceline.torch.comm._drift import DriftMonitor
from paceline.torch.comm._executor import Executor
from paceline.torch.comm._gradient_feed import GradientFeed
from paceline.torch.comm._plain_parallel import PlainParallel
from paceline.torch.comm._plan_trial import PlanTrial
from paceline.torch.comm._step_probe import StepCost, StepProbe
from paceline.torch.comm.sharded import ShardedExecutor
from paceline.torch.comm.whole import Route, link_per_gradient_byte, payloads_of
from paceline.torch.measure import measure_link
from paceline.torch.model import is_compiled
from paceline.torch.ranks import all_gather_bytes, check_same_plan, from_rank_0

NUM_TIMES = 50


class PlanControl:
    """Takes a model through its phases: measuring, trying, then training and watching.

    What one rank knows alone, that it must clip, travels with its last block, and all
    ranks act on it before the same backward pass. Times are rank 0's.

    Args:
        module: The bare model.
        parameters: Those that are trained.
        executor: Walks the plans.
        feed: Tells it of gradients.
        plain: Takes over from both where a plan of DDP's buckets is kept.
        group: Ranks that train together.
        planner: Makes the plan; unset to choose among the promising ones.
        num_measure_steps: Steps that are measured.
        num_trial_steps: Timed steps per plan and turn; 0 to trust the simulation.
        num_in_flight: Collectives that may be under way at once.

    Attributes:
        overlaps: Whether the next forward pass hides what is left of the wire, on this rank.
        chosen: The plan that is kept; None while measuring or trying.
        tried: All plans of the last choice with their measured medians, `inf` if untimed.
        bound_s: Seconds that no schedule beats, on what was measured.
        reason: Why the forward pass may not be used, empty if it may.
        first_s: Step times while measuring, the last 50.
        kept_s: Step times of the plan that is kept, the last 50.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        parameters: Sequence[torch.Tensor],
        executor: Executor,
        feed: GradientFeed,
        plain: PlainParallel,
        group: dist.ProcessGroup | None,
        *,
        planner: Planner | None,
        num_measure_steps: int,
        num_trial_steps: int,
        num_in_flight: int,
    ) -> None:
        self._module, self._parameters, self._group = module, parameters, group
        self._executor, self._feed, self._plain = executor, feed, plain
        self._num_in_flight, self._num_trial_steps = num_in_flight, num_trial_steps
        self.planner, self.num_measure_steps = planner, num_measure_steps
        self._order: list[int] = []
        self._trial: PlanTrial | None = None
        self._monitor = DriftMonitor()
        self._waits: dict[torch.nn.Module, set[int]] = {}
        self.handles: list[RemovableHandle] = []
        self._must_wait = self._gets_all = self.overlaps = False
        self.chosen: Candidate | None = None
        self.tried: list[tuple[Candidate, float]] = []
        self.bound_s, self.reason = 0.0, ""
        self.first_s: list[float] = []
        self.kept_s: list[float] = []
        self._last_step_s = perf_counter()
        executor.on_must_wait = self._on_must_wait
        self._measure()

    @property
    def phase(self) -> str:
        """What is going on, in words."""
        probe = self._feed.probe
        if probe is not None:
            done = f"step {probe.num_steps} of {self.num_measure_steps}"
            return f"measuring: {done}, as plain data parallel"
        if self._trial is not None:
            return f"trying: {self._trial.current.plan.name} takes its turn"
        plan = self.chosen.plan if self.chosen else None
        return f"plan: {plan.name}, {plan.num_blocks} blocks per step" if plan else "no plan yet"

    def forward(self) -> AbstractContextManager[None]:
        """Watch or time one training forward pass, if that is due."""
        probe = self._feed.probe
        return nullcontext() if probe is None else probe.forward()

    def end_step(self) -> None:
        """Note the end of `step()`, and move on to what comes next."""
        now_s = perf_counter()
        step_s, self._last_step_s = now_s - self._last_step_s, now_s
        if self._feed.probe is not None:
            self._note_measured(self._feed.probe, step_s)
        elif self._trial is not None:
            self._note_tried(self._trial, step_s)
        else:
            self._note_kept(step_s)

    def must_wait(self, reason: str) -> bool:
        """Use the backward pass only: this rank at once, all soon; tell if it was otherwise."""
        if not self.reason:
            self._executor.ask_to_wait()
        self.reason = self.reason or reason
        was_overlapping, self.overlaps = self.overlaps, False
        self._feed.is_blocking = True
        return was_overlapping

    def _measure(self) -> None:
        """Begin to measure, as plain data parallel trains."""
        self._trial = self.chosen = None
        self._gets_all = False
        sizes = [(i, p.nbytes) for i, p in enumerate(self._parameters) if p.numel()]
        self._order = [index for index, _ in sizes]
        self.first_s, self.kept_s = [], []
        self._walk(Candidate(first_plan([size for _, size in sizes]), 0.0))
        self._feed.probe = StepProbe(self._module, self._parameters, self.num_measure_steps)

    def _note_measured(self, probe: StepProbe, step_s: float) -> None:
        self.first_s.append(step_s)
        probe.end_step()
        if probe.num_steps >= self.num_measure_steps and probe.has_times:
            self._plan(probe)

    def _note_tried(self, trial: PlanTrial, step_s: float) -> None:
        before = trial.current
        if trial.note(step_s):
            medians_s = from_rank_0(np.array(trial.medians_s()), self._group).tolist()
            trial.agree(medians_s)
            if trial.is_over:
                self._keep(trial, medians_s)
                return
        if trial.current is not before:
            self._walk(trial.current)

    def _note_kept(self, step_s: float) -> None:
        self.kept_s = [*self.kept_s[1 - NUM_TIMES :], step_s]
        if self.chosen is not None and self._is_plain(self.chosen) and not self._plain.is_on:
            self._walk(self.chosen)  # Overlap was given up within a backward pass.
        median_s = self._monitor.note(step_s)
        if median_s is not None:
            median_s = float(from_rank_0(np.array([median_s]), self._group)[0])
            if self._monitor.has_drifted(median_s):
                self._measure()

    def _plan(self, probe: StepProbe) -> None:
        """Agree on rank 0's numbers, plan, compare; try the plans from the next step on."""
        used = np.array([probe.got_gradient, probe.always_got], dtype=np.uint8).tobytes()
        blobs = all_gather_bytes(used, self._group)
        got, always = (
            np.stack([np.frombuffer(blob, np.uint8) for blob in blobs])
            .reshape(len(blobs), 2, -1)
            .transpose(1, 0, 2)
        )
        is_used = got.any(axis=0) & np.array([p.numel() > 0 for p in self._parameters])
        self._gets_all = bool(always.all() and is_used.all())
        cost = StepCost.from_bytes(all_gather_bytes(probe.cost().to_bytes(), self._group)[0])
        self._order = cost.order(is_used.tolist())
        link = link_per_gradient_byte(
            measure_link(self._group), self._parameters, self._executor.wire
        )
        problem = cost.problem(self._parameters, self._order, link, self._num_in_flight)
        found = candidates(problem, self.planner)
        check_same_plan("".join(one.plan.digest() for one in found), self._group)
        self.bound_s, self._feed.probe = problem.bound_s, None
        self._wait_per_module(probe.waits())
        if is_compiled(self._module):
            self.must_wait("compiled code cannot wait for parameters")
        self._try(found)

    def _try(self, found: list[Candidate]) -> None:
        trial = PlanTrial(found, self._num_trial_steps)
        if self._must_wait:
            trial.keep_waiting()
        if self.planner is not None:
            self._keep(trial, [np.inf] * len(found), winner=trial.current)
        elif not self._num_trial_steps or trial.is_over:
            self._keep(trial, [np.inf] * len(found))
        else:
            self._trial = trial
            self._walk(trial.current)

    def _keep(
        self, trial: PlanTrial, medians_s: list[float], winner: Candidate | None = None
    ) -> None:
        """End the trial; what won is walked from the next step on."""
        self._trial = None
        self.tried = list(zip(trial.candidates, medians_s, strict=True))
        self.chosen = winner or trial.winner(medians_s, overlapping=not self._must_wait)
        self._walk(self.chosen)
        self._monitor.restart()

    def _walk(self, one: Candidate) -> None:
        """Take a plan from the next forward and backward pass on."""
        if one.bucket_mb is not None and self._is_plain(one):
            self._executor.flush()
            self._feed.detach()
            self._plain.enter(one.bucket_mb)
            self.overlaps = False
        else:
            self._plain.leave()
            self._feed.attach()
            self._use(one)

    def _is_plain(self, one: Candidate) -> bool:
        """Whether DistributedDataParallel itself can do this."""
        is_whole = not isinstance(self._executor, ShardedExecutor)
        return one.bucket_mb is not None and self._gets_all and is_whole

    def _use(self, one: Candidate) -> None:
        """Let the executor take a plan from the next backward pass on."""
        payloads = payloads_of(one.plan, self._parameters, self._order)
        self._executor.use(Route(payloads, self._parameters), self._order)
        self.overlaps = one.overlaps and not self.reason
        self._feed.is_blocking = not self.overlaps

    def _wait_per_module(self, waits: dict[torch.nn.Module, list[int]]) -> None:
        for module, tensors in waits.items():
            if module not in self._waits:
                self._waits[module] = set()
                hook = _waiting(self._executor, self._waits[module])
                self.handles.append(module.register_forward_pre_hook(hook, prepend=True))
            self._waits[module].update(tensors)

    def _on_must_wait(self) -> None:
        """Give up overlap: a rank asked for it; called on all of them between two rounds."""
        self._must_wait = True
        self.reason = self.reason or "another rank needs all gradients before the first update"
        if self._trial is not None:
            self._trial.keep_waiting()
            self._use(self._trial.current)
        elif self.chosen is not None and self.chosen.overlaps:
            waiting = [pair for pair in self.tried if not pair[0].overlaps]
            self.chosen = min(waiting, key=lambda pair: (pair[1], pair[0].predicted_s))[0]
            self._use(self.chosen)


def _waiting(executor: Executor, tensors: set[int]) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, _args: Any) -> None:
        executor.wait_updated(tensors)

    return hook
