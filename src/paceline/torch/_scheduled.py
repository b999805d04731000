"""Data-parallel training whose gradients travel behind the backward and the next forward pass."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Self
from warnings import warn

import numpy as np
import torch
from torch import distributed as dist
from torch.utils.hooks import RemovableHandle

from paceline.torch._block_executor import BlockExecutor
from paceline.torch._block_layout import payloads_of
from paceline.torch._block_update import PartialUpdate
from paceline.torch._gather import _all_gather_bytes
from paceline.torch._gradient_feed import GradientFeed
from paceline.torch._measure import measure_link
from paceline.torch._plan_choice import Choice, Planner, choose_plan, first_plan
from paceline.torch._round import Route
from paceline.torch._same_model import (
    broadcast_from_rank_0,
    check_same_model,
    check_same_plan,
    new_group_like,
)
from paceline.torch._step_probe import StepCost, StepProbe

NUM_TIMES = 50


class ScheduledDataParallel(torch.nn.Module):
    """Data-parallel training in which the next forward pass hides the wire too.

    The first steps run as with DistributedDataParallel and are measured. Then a plan is
    made of which gradients travel when: a thread sends them while the backward pass and
    the next forward pass compute, updates each parameter as soon as its gradient has
    landed, and each module waits only for the parameters that it was seen to use. Where
    that is not predicted to win by 1 %, gradients travel behind the backward pass only,
    in the best bucket size; `explain` tells.

    Results are those of DistributedDataParallel: bit for bit on two ranks, within the
    rounding of another summation order on more. `step()` takes the place of
    `optimizer.step()` and clears the gradients.

    Reading through this wrapper (`parameters()`, `state_dict()`, `module`, `eval()`),
    `optimizer.state_dict()` and forward passes without gradients first finish what is
    under way. Code that keeps its own reference to a parameter must call `flush()` before
    it reads it. A parameter that is used by a module that never used it in the first
    three measured steps, in a forward pass where none of its known users ran before, may
    be used before its update: run such models with `num_measure_steps` large enough to
    see every branch, or with `plan=plan_ddp`. Optimizer step hooks run once per step, but
    while updates may still be under way.

    Args:
        module: The model, on the device where it is to train.
        optimizer: Any of `torch.optim` except LBFGS, over the model's parameters.
        group: Ranks that train together; unset for the default group. The model makes a
            group of its own of the same ranks, so your collectives do not meet its.
        plan: Makes the plan from the measured problem, for example
            `paceline.comm.plan_p3`; unset for the best that is found.
        num_measure_steps: Steps that are measured, at least 2.
        num_in_flight: Collectives that may be under way at once.
        broadcast_buffers: Whether buffers, such as BatchNorm's, are rank 0's in each
            forward pass.

    Raises:
        ValueError: If there is no process group, nothing to train, or a bad number.
        PlanMismatchError: If a rank built another model.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        group: dist.ProcessGroup | None = None,
        plan: Planner | None = None,
        num_measure_steps: int = 20,
        num_in_flight: int = 2,
        broadcast_buffers: bool = True,
    ) -> None:
        super().__init__()
        _check(num_measure_steps, num_in_flight)
        check_same_model(module, group)
        trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError("the model has no parameter that requires a gradient")
        self._bare = (module,)  # In a tuple, so that it is registered once, as `module`.
        self._names, self._trained = [n for n, _ in trained], [p for _, p in trained]
        self._optimizer, self._group, self._planner = optimizer, group, plan
        self._num_measure_steps, self._num_in_flight = num_measure_steps, num_in_flight
        self._broadcasts = broadcast_buffers
        self._is_syncing = self._is_stale = True
        self._choice: Choice | None = None
        self._overlaps = False
        self._fallen_back = ""
        self._step_times_s: dict[bool, list[float]] = {False: [], True: []}
        self._last_step_s: float | None = None
        broadcast_from_rank_0([*module.parameters(), *module.buffers()], group)
        self._connect(new_group_like(group))
        self.module = module

    def _connect(self, own_group: dist.ProcessGroup) -> None:
        self._update = PartialUpdate(self._optimizer)
        self._executor = BlockExecutor(
            self._trained,
            self._names,
            self._update,
            own_group,
            num_in_flight=self._num_in_flight,
        )
        sizes = [(i, p.nbytes) for i, p in enumerate(self._trained) if p.numel()]
        order = [index for index, _ in sizes]
        payloads = payloads_of(first_plan([size for _, size in sizes]), self._trained, order)
        route = Route(payloads, self._trained)
        self._executor.use(route, route, order)
        self._feed = GradientFeed(self._trained, self._names, self._executor)
        self._feed.probe = StepProbe(self._bare[0], self._trained, self._num_measure_steps)
        flush = weakref.WeakMethod(self.flush)
        self._optimizer.register_state_dict_pre_hook(lambda _: _call(flush))
        self._optimizer.register_load_state_dict_pre_hook(lambda *_: _call(flush))
        self._handles = self._feed.handles
        self._finalizer = weakref.finalize(self, _close, self._executor, self._handles)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; with gradients, each module waits for its own parameters only."""
        module = self._bare[0]
        is_training = self.training and torch.is_grad_enabled()
        if not is_training:
            self.flush()
        if self._broadcasts and self._is_stale:
            broadcast_from_rank_0(list(module.buffers()), self._group)
        self._is_stale = torch.is_grad_enabled() and self._is_syncing
        probe = self._feed.probe
        if probe is None or not is_training:
            output = module(*args, **kwargs)
        else:
            with probe.forward():
                output = module(*args, **kwargs)
        if torch.is_grad_enabled():
            self._feed.watch_output(output, is_syncing=self._is_syncing)
        return output

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Update the parameters and clear the gradients; takes the place of `optimizer.step()`.

        Args:
            scaler: Calls the optimizer in place of this method if gradients are finite;
                needs all of them, so the forward pass hides nothing then.
        """
        if scaler is not None:
            self._fall_back("a GradScaler needs all gradients before the first update")
        self._feed.finish()
        if self._overlaps:
            self._step_behind()
        else:
            self._step_now(scaler)
        self._note_step()
        probe = self._feed.probe
        if probe is not None:
            probe.end_step()
            if probe.num_steps >= self._num_measure_steps and probe.has_times:
                self._plan(probe)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        """Clip the averaged gradients as `torch.nn.utils.clip_grad_norm_` does; return the norm.

        Call it between `backward()` and `step()`, on all ranks. Needs all gradients, so
        from now on the forward pass hides nothing.
        """
        self._fall_back("clip_grad_norm_ needs all gradients before the first update")
        self._feed.finish()
        self._executor.deliver()
        return torch.nn.utils.clip_grad_norm_(self._trained, max_norm, norm_type)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only add gradients up: forward and backward passes inside send nothing."""
        before, self._is_syncing = self._is_syncing, False
        try:
            yield
        finally:
            self._is_syncing = before

    def flush(self) -> None:
        """Wait until all gradients have landed and all parameters are updated."""
        self._executor.flush()

    def close(self) -> None:
        """Finish what is under way, end the thread and remove all hooks from the model.

        Call it before the process group is destroyed; the wrapper cannot train any more.
        """
        try:
            if self._finalizer.alive:
                self.flush()
        finally:
            self._finalizer()

    def explain(self) -> str:
        """Say what was chosen and why; predicted times are simulated, the others measured."""
        choice = self._choice
        if choice is None:
            probe = self._feed.probe
            done = 0 if probe is None else probe.num_steps
            return f"measuring: step {done} of {self._num_measure_steps}, as plain data parallel"
        lines = [
            f"plan: {choice.plan.name}, {choice.plan.num_blocks} blocks per step",
            f"overlap: {self._reason(choice)}",
            f"predicted (simulated): {choice.predicted_s * 1e3:.4g} ms per step, best DDP "
            f"({choice.fallback.name}) {choice.fallback_s * 1e3:.4g} ms, lower bound "
            f"{choice.bound_s * 1e3:.4g} ms",
        ]
        for planned, name in ((False, "first steps, as plain data parallel"), (True, "since then")):
            if times_s := self._step_times_s[planned]:
                lines.append(f"measured: {np.median(times_s) * 1e3:.4g} ms per step, {name}")
        return "\n".join(lines)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """Flush, then list the parameters."""
        self.flush()
        return super().named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Flush, then return the state; keys begin with `module.`, as DDP's."""
        self.flush()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Flush, then load."""
        self.flush()
        return super().load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Flush when leaving training."""
        if not mode:
            self.flush()
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:
        if name == "module":
            self.flush()
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self.flush()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _step_now(self, scaler: torch.amp.GradScaler | None) -> None:
        self._executor.deliver()
        self._executor.retire()
        if scaler is not None:
            scaler.step(self._optimizer)
        else:
            self._optimizer.step()
        self._clear()

    def _step_behind(self) -> None:
        self._update.begin()
        self._update.run_hooks(before=True)
        rest = list(self._update.rest(set(self._trained)))
        self._executor.release()
        self._update.apply(rest, [parameter.grad for parameter in rest])
        self._clear()
        self._update.run_hooks(before=False)

    def _clear(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for parameter in self._trained:
            parameter.grad = None

    def _note_step(self) -> None:
        now_s = perf_counter()
        times_s = self._step_times_s[self._choice is not None]
        if self._last_step_s is not None:
            times_s.append(now_s - self._last_step_s)
            del times_s[:-NUM_TIMES]
        self._last_step_s = now_s

    def _plan(self, probe: StepProbe) -> None:
        """Agree on rank 0's numbers, plan, compare, and use the plan from the next step on."""
        used = np.array(probe.got_gradient, dtype=np.uint8).tobytes()
        of_ranks = [np.frombuffer(b, np.uint8) for b in _all_gather_bytes(used, self._group)]
        is_used = np.any(of_ranks, axis=0) & np.array([p.numel() > 0 for p in self._trained])
        cost = StepCost.from_bytes(_all_gather_bytes(probe.cost().to_bytes(), self._group)[0])
        order = cost.order(is_used.tolist())
        link = measure_link(self._group)
        problem = cost.problem(self._trained, order, link, self._num_in_flight)
        choice = self._choice = choose_plan(problem, self._planner)
        check_same_plan(choice.plan.digest() + choice.fallback.digest(), self._group)
        route = Route(payloads_of(choice.plan, self._trained, order), self._trained)
        fallback = Route(payloads_of(choice.fallback, self._trained, order), self._trained)
        self._executor.use(route, fallback, order)
        self._feed.probe = self._last_step_s = None
        if choice.overlaps and not self._fallen_back and not _is_compiled(self._bare[0]):
            self._wait_per_module(probe.waits())
        elif choice.overlaps:
            self._fallen_back = self._fallen_back or "compiled code cannot wait for parameters"
            self._executor.fall_back()

    def _wait_per_module(self, waits: dict[torch.nn.Module, list[int]]) -> None:
        self._overlaps, self._feed.is_blocking = True, False
        for module, tensors in waits.items():
            hook = _waiting(self._executor, tensors)
            self._handles.append(module.register_forward_pre_hook(hook, prepend=True))

    def _fall_back(self, reason: str) -> None:
        self._fallen_back = self._fallen_back or reason
        if self._overlaps:
            self._overlaps, self._feed.is_blocking = False, True
            self._executor.fall_back()
            warn(
                f"{reason}; from now on gradients travel behind the backward pass only",
                stacklevel=3,
            )

    def _reason(self, choice: Choice) -> str:
        if self._overlaps:
            return "the backward pass and the next forward pass"
        if self._fallen_back and choice.overlaps:
            return f"the backward pass only, because {self._fallen_back}"
        if self._planner is not None:
            return "the backward pass only, because the given plan waits for all"
        return "the backward pass only, because no plan was predicted to win by 1 %"


def _waiting(executor: BlockExecutor, tensors: list[int]) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, _args: Any) -> None:
        executor.wait_updated(tensors)

    return hook


def _close(executor: BlockExecutor, handles: list[RemovableHandle]) -> None:
    executor.close()
    while handles:
        handles.pop().remove()


def _call(method: "weakref.WeakMethod[Callable[[], None]]") -> None:
    if (flush := method()) is not None:
        flush()


def _is_compiled(module: torch.nn.Module) -> bool:
    """Compiled code does not see hooks that come later."""
    return any(type(part).__module__ == "torch._dynamo.eval_frame" for part in module.modules())


def _check(num_measure_steps: int, num_in_flight: int) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("there is no process group; call torch.distributed.init_process_group")
    if num_measure_steps < 2:
        raise ValueError(f"num_measure_steps must be at least 2, got {num_measure_steps}")
    if num_in_flight < 1:
        raise ValueError(f"num_in_flight must be at least 1, got {num_in_flight}")
