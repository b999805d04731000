"""Decide over a training run which plan is executed: measure, try, keep, watch for drift."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from warnings import warn

import numpy as np
import torch
from torch import distributed as dist

from paceline.torch.comm._candidates import Candidate, candidates, first_plan
from paceline.torch.comm._drift import StepTimes
from paceline.torch.comm._executor import Executor
from paceline.torch.comm._gradient_feed import GradientFeed
from paceline.torch.comm._mode import Mode, ModeSwitch
from paceline.torch.comm._module_waits import ModuleWaits
from paceline.torch.comm._plan_trial import Choice, PlanTrial
from paceline.torch.comm._settings import Settings
from paceline.torch.comm._step_probe import StepCost, StepProbe
from paceline.torch.comm.habits import is_withholdable
from paceline.torch.comm.plain import PlainParallel
from paceline.torch.comm.transfer import Trained
from paceline.torch.comm.whole import link_per_gradient_byte
from paceline.torch.measure import measure_link
from paceline.torch.model import is_compiled
from paceline.torch.ranks import all_gather_bytes, check_same_plan, from_rank_0


class PlanControl:
    """Takes a model through its modes: measuring, trying, then training and watching.

    What one rank knows alone, that it must clip, is sent with its last block, and all
    ranks act on it before the same backward pass. Times are rank 0's.

    Args:
        module: The bare model.
        trained: Its parameters that are trained.
        executor: Executes the plans.
        plain: Takes over where DistributedDataParallel can do what is kept.
        group: Ranks that train together.
        settings: How a plan is chosen.

    Attributes:
        settings: As passed.
        choice: The last one.
        times: How long steps took.
        probe: What was measured last.
        reason: Why the next forward pass may not be used, empty if it may.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        trained: Trained,
        executor: Executor,
        plain: PlainParallel,
        group: dist.ProcessGroup | None,
        settings: Settings,
    ) -> None:
        self._module, self._trained, self._group = module, trained, group
        self._executor, self.settings = executor, settings
        self._feed = GradientFeed(trained, self)
        self._plain, self._switch = plain, ModeSwitch(trained, executor, self._feed, plain)
        self._waits = ModuleWaits(executor)
        self._trial: PlanTrial | None = None
        self.times = StepTimes()
        self.reason, self._all_wait = "", False
        self._measure()

    @property
    def mode(self) -> Mode:
        """What the model is doing."""
        return self._switch.mode

    @property
    def way(self) -> Mode:
        """How gradients are sent: overlapped, waiting or plain."""
        return self._switch.way

    @property
    def current(self) -> Candidate:
        """The plan that is executed."""
        return self._switch.current

    def end_raised_backward(self) -> None:
        """End the last backward pass if it raised on its way."""
        self._feed.end_backward()

    def forward(self) -> AbstractContextManager[None]:
        """Watch or time one training forward pass, if that is due."""
        return self.probe.forward() if self.mode is Mode.MEASURING else nullcontext()

    def watch_output(self, output: Any, *, is_syncing: bool) -> None:
        """Expect a backward pass through `output`; averaged over ranks if `is_syncing`."""
        self._feed.watch_output(output, is_syncing=is_syncing)

    # What the feed tells.

    def begin(self) -> None:
        """Open a backward pass."""
        if self.way is Mode.PLAIN:
            self._plain.begin()
            return
        self._open_round()
        if self.mode is Mode.MEASURING:
            self.probe.mark_backward()

    def note_ready(self, tensor: int) -> None:
        """Take the gradient of one parameter."""
        if self.mode is Mode.MEASURING:
            self.probe.mark_gradient(tensor)
        self._executor.note_ready(tensor)

    def finish(self) -> None:
        """End the backward pass; unless overlapped, wait for all gradients, as DDP does."""
        if self.way is Mode.PLAIN:
            self._plain.finish(self._feed.came)
            return
        if self.mode is Mode.MEASURING:
            self.probe.mark_backward_end()
        self._executor.finish()
        self._trained.arrive()
        if self.way is not Mode.OVERLAPPED:
            self._executor.deliver()

    def abandon(self) -> None:
        """Leave a backward pass that raised; unless plain, send what there is of it."""
        if self.way is Mode.PLAIN:
            self._plain.renew()
        else:
            self._executor.finish()

    def _open_round(self) -> None:
        if self._executor.end_round():
            self._wait_on_all_ranks()
        self._executor.begin()

    # What `step` and what comes before it tell.

    def end_backward(self) -> None:
        """End the backward pass where autograd did not, and wait for gradients put in since."""
        self._feed.end_backward()
        if self.way is Mode.PLAIN:
            self._plain.end_backward()
            self._trained.arrive()
            return
        if not self._executor.has_open_round:  # No parameter took part.
            self._open_round()
            self._executor.finish()
        if self.way is not Mode.OVERLAPPED:
            self._executor.deliver()

    def end_step(self) -> None:
        """Note the end of `step()`, and go on to what comes next."""
        step_s = self.times.end_step()
        self._plain.end_step()
        if self.mode is Mode.MEASURING:
            self._note_measured(step_s)
        elif self.mode is Mode.TRYING:
            self._note_tried(step_s)
        else:
            self._note_kept(step_s)

    def must_wait(self, reason: str) -> bool:
        """Wait for all gradients: this rank at once, all soon; tell if it was otherwise."""
        if not self.reason:
            self._executor.ask_to_wait()
        self.reason = self.reason or reason
        if self.way is not Mode.OVERLAPPED:
            return False
        self._enter(self.current, is_trial=self.mode is Mode.TRYING, way=Mode.WAITING)
        return True

    def close(self) -> None:
        """End the executor's threads and remove all hooks."""
        self._switch.close()
        self._waits.remove()

    # The modes.

    def _measure(self) -> None:
        """Measure, while training as plain data parallel does."""
        sizes = {i: p.nbytes for i, p in enumerate(self._trained.parameters) if p.numel()}
        self.choice = Choice(list(sizes))
        self.times.restart()
        self.probe = StepProbe(
            self._module, self._trained.parameters, self.settings.num_measure_steps
        )
        first = Candidate(first_plan(list(sizes.values())), 0.0)
        self._switch.enter(Mode.MEASURING, Mode.WAITING, first, self.choice.order)

    def _note_measured(self, step_s: float) -> None:
        self.times.first_s.append(step_s)
        self.probe.end_step()
        if self.probe.num_steps >= self.settings.num_measure_steps and self.probe.has_times:
            self._plan()

    def _plan(self) -> None:
        """Agree on rank 0's numbers, plan, compare; try the plans from the next step on."""
        used = self._agree_on_gradients()
        cost = StepCost.from_bytes(all_gather_bytes(self.probe.cost().to_bytes(), self._group)[0])
        parameters = self._trained.parameters
        self.choice.order = cost.order(used)
        link = link_per_gradient_byte(measure_link(self._group), parameters, self._executor.wire)
        problem = cost.problem(parameters, self.choice.order, link, self.settings.num_in_flight)
        found = candidates(problem, self.settings.planner)
        check_same_plan("".join(one.plan.digest() for one in found), self._group)
        self.choice.bound_s = problem.bound_s
        self._waits.add(self.probe.waits())
        if is_compiled(self._module) and not self.reason:
            self.must_wait("compiled code cannot wait for parameters")
            warn(f"{self.reason}; communication overlaps the backward pass only", stacklevel=5)
        if not all(map(is_withholdable, parameters)):
            self.must_wait("gradients of parameters of another class are seen on their way")
        self._try(found)

    def _agree_on_gradients(self) -> list[bool]:
        """Return which parameters got a gradient on any rank, and note whether all always did."""
        own = np.array([self.probe.got_gradient, self.probe.always_got], dtype=np.uint8)
        blobs = all_gather_bytes(own.tobytes(), self._group)
        flags = np.stack([np.frombuffer(blob, np.uint8).reshape(2, -1) for blob in blobs])
        is_used = flags[:, 0].any(axis=0) & np.array(
            [p.numel() > 0 for p in self._trained.parameters]
        )
        self.choice.gets_all = bool(flags[:, 1].all() and is_used.all())
        return [bool(one) for one in is_used]

    def _try(self, found: list[Candidate]) -> None:
        """Let the plans take turns, unless one is given or the simulation is to be trusted."""
        trial = PlanTrial(found, self.settings.num_trial_steps)
        if self._all_wait:
            trial.keep_waiting()
        if self.settings.planner is not None:
            self._keep(trial, [np.inf] * len(found), winner=trial.current)
        elif self.settings.choose == "simulated" or trial.is_over:
            self._keep(trial, [np.inf] * len(found))
        else:
            self._trial = trial
            self._enter(trial.current, is_trial=True)

    def _note_tried(self, step_s: float) -> None:
        trial, before = self._running_trial(), self.current
        if trial.note(step_s):
            medians_s = from_rank_0(np.array(trial.medians_s()), self._group).tolist()
            trial.agree(medians_s)
            if trial.is_over:
                self._keep(trial, medians_s)
                return
        if trial.current is not before:
            self._enter(trial.current, is_trial=True)

    def _running_trial(self) -> PlanTrial:
        assert self._trial is not None, "no trial runs"
        return self._trial

    def _keep(
        self, trial: PlanTrial, medians_s: list[float], winner: Candidate | None = None
    ) -> None:
        """End the trial; what won is executed from the next step on."""
        self._trial = None
        self.choice.tried = list(zip(trial.candidates, medians_s, strict=True))
        self.choice.chosen = winner or trial.winner(medians_s, overlapping=not self._all_wait)
        self._enter(self.choice.chosen)
        self.times.monitor.restart()

    def _note_kept(self, step_s: float) -> None:
        self.times.kept_s.append(step_s)
        if self._way_of(self.current) is not self.way:
            self._enter(self.current)  # Overlap was given up within a backward pass.
        median_s = self.times.monitor.note(step_s)
        if median_s is not None:
            median_s = float(from_rank_0(np.array([median_s]), self._group)[0])
            if self.times.monitor.has_drifted(median_s):
                self._measure()

    def _enter(self, one: Candidate, *, is_trial: bool = False, way: Mode | None = None) -> None:
        """Execute `one`, for a turn or for good, in the best way that it allows."""
        way = way or self._way_of(one)
        self._switch.enter(Mode.TRYING if is_trial else way, way, one, self.choice.order)

    def _way_of(self, one: Candidate) -> Mode:
        if (
            one.bucket_mb is not None
            and self.choice.gets_all
            and self._executor.has_whole_gradients
        ):
            return Mode.PLAIN
        return Mode.OVERLAPPED if one.overlaps and not self.reason else Mode.WAITING

    def _wait_on_all_ranks(self) -> None:
        """Give up overlap: a rank asked for it; happens on all of them between two rounds."""
        self._all_wait = True
        self.reason = self.reason or "another rank needs all gradients before the first update"
        if self.mode is Mode.TRYING:
            self._running_trial().keep_waiting()
            self._enter(self._running_trial().current, is_trial=True, way=Mode.WAITING)
        elif self.choice.chosen is not None and self.choice.chosen.overlaps:
            waiting = [pair for pair in self.choice.tried if not pair[0].overlaps]
            self.choice.chosen = min(waiting, key=lambda pair: (pair[1], pair[0].predicted_s))[0]
            self._enter(self.choice.chosen, way=Mode.WAITING)
