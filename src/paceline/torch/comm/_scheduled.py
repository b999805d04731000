"""Data-parallel training whose gradients travel behind the backward and the next forward pass."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, Self
from warnings import warn

import torch
from torch import distributed as dist
from torch.utils.hooks import RemovableHandle

from paceline.torch.comm._candidates import Planner
from paceline.torch.comm._control import PlanControl
from paceline.torch.comm._executor import Executor
from paceline.torch.comm._explain import explain
from paceline.torch.comm._gradient_feed import GradientFeed
from paceline.torch.comm._plain_parallel import PlainParallel
from paceline.torch.comm.sharded import ShardedExecutor, sharded_executor, whole_state_dict
from paceline.torch.comm.whole import BlockExecutor, Compression, wire_dtype
from paceline.torch.model import PartialUpdate
from paceline.torch.ranks import broadcast_from_rank_0, check_same_model, new_group_like


class ScheduledDataParallel(torch.nn.Module):
    """Data-parallel training in which the next forward pass hides the wire too.

    The first steps run as with DistributedDataParallel and are measured. Then plans are
    made of which gradients travel when: a thread sends them while the backward pass and
    the next forward pass compute, updates each parameter as soon as its gradient has
    landed, and each module waits only for the parameters that it was seen to use. The
    promising plans and DDP's bucket sizes take turns on the next steps, and the one that is
    measured fastest stays. Where none wins by 1 %, gradients travel behind the
    backward pass only, in the best bucket size; `explain` tells. When steps later take
    25 % more or less time than at first, measuring begins anew.

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
        num_trial_steps: Steps for which each promising plan is timed in up to three turns; 0
            to trust the simulation.
        num_in_flight: Collectives that may be under way at once.
        compression: `"fp16"` or `"bf16"` to send wider gradients so, at half the bytes; on two
            ranks the numbers are those of torch's `fp16_compress_hook`.
        sharded: Whether each rank updates only its own part of every parameter and keeps only
            that part's optimizer state; see `optimizer_state_dict`.
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
        num_trial_steps: int = 5,
        num_in_flight: int = 2,
        compression: Compression | None = None,
        sharded: bool = False,
        broadcast_buffers: bool = True,
    ) -> None:
        super().__init__()
        _check(num_measure_steps, num_trial_steps, num_in_flight)
        if sharded:
            _check_sharded(compression)
        check_same_model(module, group)
        trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError("the model has no parameter that requires a gradient")
        self._bare = (module,)  # In a tuple, so that it is registered once, as `module`.
        self._names, self._trained = [n for n, _ in trained], [p for _, p in trained]
        self._optimizer, self._group = optimizer, group
        self._broadcasts = broadcast_buffers
        self._is_syncing = self._is_stale = True
        self._update = PartialUpdate(optimizer)
        broadcast_from_rank_0([*module.parameters(), *module.buffers()], group)
        own_group = new_group_like(group)
        wire = wire_dtype(compression, group)
        self._executor = self._make_executor(own_group, num_in_flight, wire, sharded)
        self._feed = GradientFeed(self._trained, self._names, self._executor)
        self._plain = PlainParallel(module, own_group, wire)
        self._control = PlanControl(
            module,
            self._trained,
            self._executor,
            self._feed,
            self._plain,
            group,
            planner=plan,
            num_measure_steps=num_measure_steps,
            num_trial_steps=num_trial_steps,
            num_in_flight=num_in_flight,
        )
        self._finish_before_state_is_read()
        self._finalizer = weakref.finalize(
            self, _close, self._executor, self._plain, self._feed.handles, self._control.handles
        )
        self.module = module

    def _make_executor(
        self,
        group: dist.ProcessGroup,
        num_in_flight: int,
        wire: torch.dtype | None,
        sharded: bool,
    ) -> Executor:
        if sharded:
            return sharded_executor(
                self._optimizer, self._trained, self._names, group, num_in_flight=num_in_flight
            )
        return BlockExecutor(
            self._trained,
            self._names,
            self._update,
            group,
            num_in_flight=num_in_flight,
            wire=wire,
        )

    def _finish_before_state_is_read(self) -> None:
        flush = weakref.WeakMethod(self.flush)
        self._optimizer.register_state_dict_pre_hook(lambda _: _call(flush))
        self._optimizer.register_load_state_dict_pre_hook(lambda *_: _call(flush))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; with gradients, each module waits for its own parameters only."""
        module = self._bare[0]
        is_training = self.training and torch.is_grad_enabled()
        if not is_training:
            self.flush()
        if self._broadcasts and self._is_stale:
            broadcast_from_rank_0(list(module.buffers()), self._group)
        self._is_stale = torch.is_grad_enabled() and self._is_syncing
        if torch.is_grad_enabled() and self._plain.is_on:
            return self._plain.forward(*args, is_syncing=self._is_syncing, **kwargs)
        with self._control.forward() if is_training else nullcontext():
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
        if scaler is not None and isinstance(self._executor, ShardedExecutor):
            raise ValueError(
                "a GradScaler looks at whole gradients, and with sharded=True only parts are "
                "averaged; use bfloat16 autocast without one, or sharded=False"
            )
        if scaler is not None:
            self._must_wait("a GradScaler needs all gradients before the first update")
        self._finish_backward()
        if isinstance(self._executor, BlockExecutor) and not self._control.overlaps:
            self._step_now(scaler)
        else:
            self._step_behind()
        if not self._control.overlaps:
            self.flush()
        self._control.end_step()

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        """Clip the averaged gradients as `torch.nn.utils.clip_grad_norm_` does; return the norm.

        Call it between `backward()` and `step()`, on all ranks. Needs all gradients, so
        from now on the forward pass hides nothing.
        """
        if isinstance(self._executor, ShardedExecutor):
            self._feed.finish()
            return self._executor.clip(max_norm, norm_type)
        self._must_wait("clip_grad_norm_ needs all gradients before the first update")
        self._finish_backward()
        return torch.nn.utils.clip_grad_norm_(self._trained, max_norm, norm_type)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only add gradients up: forward and backward passes inside send nothing."""
        before, self._is_syncing = self._is_syncing, False
        try:
            yield
        finally:
            self._is_syncing = before

    def optimizer_state_dict(self) -> dict[str, Any]:
        """Return the optimizer's whole state on rank 0, {} on others; all ranks must call it.

        What `optimizer.load_state_dict` takes, with or without sharding.
        """
        self.flush()
        if isinstance(self._executor, ShardedExecutor):
            return whole_state_dict(
                self._optimizer, self._executor.update, self._trained, self._group
            )
        return self._optimizer.state_dict() if dist.get_rank(self._group) == 0 else {}

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
        return explain(self._control)

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

    def _finish_backward(self) -> None:
        """Close the backward pass; unless the forward pass may hide the wire, wait for it."""
        if not self._plain.is_on:
            self._feed.finish()
            if not self._control.overlaps:
                self._executor.deliver()

    def _step_now(self, scaler: torch.amp.GradScaler | None) -> None:
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

    def _must_wait(self, reason: str) -> None:
        if self._control.must_wait(reason):
            warn(
                f"{reason}; from now on gradients travel behind the backward pass only",
                stacklevel=3,
            )


def _close(executor: Executor, plain: PlainParallel, *handles: list[RemovableHandle]) -> None:
    executor.close()
    plain.leave()
    for handle in chain(*handles):
        handle.remove()


def _call(method: "weakref.WeakMethod[Callable[[], None]]") -> None:
    if (flush := method()) is not None:
        flush()


def _check_sharded(compression: Compression | None) -> None:
    if compression is not None:
        raise ValueError(
            f"sharded=True sends gradients as they are, got compression={compression!r}; "
            "leave one of them out"
        )


def _check(num_measure_steps: int, num_trial_steps: int, num_in_flight: int) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("there is no process group; call torch.distributed.init_process_group")
    if num_measure_steps < 2:
        raise ValueError(f"num_measure_steps must be at least 2, got {num_measure_steps}")
    if num_trial_steps < 0:
        raise ValueError(f"num_trial_steps must not be negative, got {num_trial_steps}")
    if num_in_flight < 1:
        raise ValueError(f"num_in_flight must be at least 1, got {num_in_flight}")
