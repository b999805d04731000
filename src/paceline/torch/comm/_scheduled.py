"""Data-parallel training whose communication overlaps the backward and the next forward pass."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from warnings import warn

import torch
from torch import distributed as dist
from torch.utils.hooks import RemovableHandle

from paceline.torch.comm._control import PlanControl
from paceline.torch.comm._executor import Executor, sharded_executor, whole_executor
from paceline.torch.comm._explain import explain
from paceline.torch.comm._flushing import FlushingModule
from paceline.torch.comm._settings import Choose, Settings
from paceline.torch.comm._steps import Steps
from paceline.torch.comm.habits import Ownership, check_bare, check_outermost, refuse_wrapping
from paceline.torch.comm.plain import PlainParallel
from paceline.torch.comm.transfer import (
    Trained,
    check_plain_tensors,
    check_sharded,
    checked_group,
)
from paceline.torch.comm.whole import Compression, wire_dtype
from paceline.torch.model import PartialUpdate
from paceline.torch.ranks import (
    Group,
    RollCall,
    broadcast_from_rank_0,
    check_same_model,
    new_group_like,
)


class ScheduledDataParallel(FlushingModule):
    """Data-parallel training that also overlaps communication with the next forward pass.

    The first steps run as with DistributedDataParallel and are measured. Then plans are
    made of which gradients to send when: a thread sends them while the backward pass and
    the next forward pass compute, updates each parameter as soon as its gradient has
    landed, and each module waits only for the parameters that it was seen to use. The
    promising plans and DDP's bucket sizes take turns on the next steps, and the one that is
    measured fastest stays. Where none wins by 1.25 %, communication overlaps the
    backward pass only, in the best bucket size; `explain` tells. When steps later take
    25 % more or less time than at first, measuring begins anew.

    Results are those of DistributedDataParallel: bit for bit on two ranks, within the
    rounding of another summation order on more, or with `sharded` if gradients are clipped or
    the optimizer is `fused`. `step()` takes the place of `optimizer.step()` and clears the
    gradients.

    Reading through this wrapper (`parameters()`, `state_dict()`, `module`, `eval()`),
    `optimizer.state_dict()` and forward passes without gradients first finish what is
    under way. Code that keeps its own reference to a parameter must call `flush()` before
    it reads it. A parameter that is used by a module that never used it in the first
    three measured steps, in a forward pass where none of its known users ran before, may
    be used before its update: run such models with `num_measure_steps` large enough to
    see every branch, or with `choose=plan_ddp`. Optimizer step hooks run once per step, but
    while updates may still be under way.

    Args:
        module: The model, on the device where it is to train.
        optimizer: Any of `torch.optim` except LBFGS, over the model's parameters and no others;
            a warning names those that it leaves out. Where its `step()` is called in place of the
            model's, that step is right, too, but no communication overlaps the forward pass then.
        process_group: Ranks that train together, or one axis of a device mesh; unset for the
            default group. The model makes a group of its own of the same ranks, so your
            collectives do not meet its.
        choose: `"measured"` keeps the plan that wins a trial on live steps, `"simulated"`
            skips the trial and trusts the simulation. Or a plan for the measured problem,
            or a function that makes one, such as `paceline.comm.plan_p3`.
        num_measure_steps: Steps that are measured, at least 2.
        num_trial_steps: Steps for which each promising plan is timed in up to three turns.
        num_in_flight: Collectives that may be under way at once.
        compression: `"fp16"` or `"bf16"` to send wider gradients so, at half the bytes; on two
            ranks the numbers are those of torch's `fp16_compress_hook`.
        sharded: Whether each rank updates only its own part of every parameter and keeps only
            that part's optimizer state; see `optimizer_state_dict`.
        broadcast_buffers: Whether buffers, such as BatchNorm's, are rank 0's in each
            forward pass.

    Raises:
        ValueError: If there is no process group, nothing to train, a bad number, a parameter
            that is no plain tensor, another wrapper in the model or around it, or an optimizer
            with parameters of another model.
        PlanMismatchError: If a rank built another model.
        TransferError: Later, from any call: names the rank that is missing.

    Examples:
        ```python
        with ScheduledDataParallel(model, optimizer) as model:
            for x, y in loader:
                loss_fn(model(x), y).backward()
                model.step()
        ```
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        process_group: Group | None = None,
        choose: Choose = "measured",
        num_measure_steps: int = 20,
        num_trial_steps: int = 5,
        num_in_flight: int = 2,
        compression: Compression | None = None,
        sharded: bool = False,
        broadcast_buffers: bool = True,
    ) -> None:
        super().__init__()
        group = checked_group(process_group)
        check_plain_tensors(module)
        settings = Settings(
            choose=choose,
            num_measure_steps=num_measure_steps,
            num_trial_steps=num_trial_steps,
            num_in_flight=num_in_flight,
        )
        if sharded:
            check_sharded(compression)
        self._rank = dist.get_rank(group)
        check_bare(module, ScheduledDataParallel, self._rank)
        ownership = Ownership(module, optimizer, self._rank)
        update = PartialUpdate(optimizer)
        check_same_model(module, group)
        names = [name for name, one in module.named_parameters() if one.requires_grad]
        if not names:
            raise ValueError("the model has no parameter that requires a gradient")
        self._bare = (module,)  # In a tuple, so that it is registered once, as `module`.
        self._optimizer, self._group = optimizer, group
        self._broadcasts = broadcast_buffers
        self._is_syncing = self._is_stale = True
        broadcast_from_rank_0([*module.parameters(), *module.buffers()], group)
        parameters = [one for one in module.parameters() if one.requires_grad]
        self._trained = Trained(parameters, names, new_group_like(group), RollCall(group))
        wire = wire_dtype(compression, group)
        self._executor: Executor = (
            sharded_executor(self._trained, optimizer, num_in_flight=num_in_flight)
            if sharded
            else whole_executor(self._trained, update, num_in_flight=num_in_flight, wire=wire)
        )
        self._plain = PlainParallel(module, self._trained, wire)
        self._control = PlanControl(
            module, self._trained, self._executor, self._plain, group, settings
        )
        self._steps = Steps(
            optimizer, ownership, update, self._executor, self._control, self._trained
        )
        handles = [*self.flush_before_state_of(optimizer), *self._steps.outside.handles]
        self._finalizer = weakref.finalize(self, _close, self._control, handles, self._trained)
        self.module = module

    def _abandon(self, error: BaseException) -> None:
        """Close after an error, without waiting for more than 10 s for other ranks."""
        try:
            self._trained.leave(error)
        finally:
            self._finalizer()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; with gradients, each module waits for its own parameters only."""
        module = self._bare[0]
        check_outermost(self._rank)
        is_training = self.training and torch.is_grad_enabled()
        if not is_training:
            self.flush()
        if self._broadcasts and self._is_stale:
            with self._trained.talking("a buffer"):
                broadcast_from_rank_0(list(module.buffers()), self._group)
        self._is_stale = torch.is_grad_enabled() and self._is_syncing
        if self._is_stale:
            self._must_be_open()
            self._trained.arrive()
        self._steps.begin()
        run: Callable[..., Any] = module
        if torch.is_grad_enabled():
            self._control.end_raised_backward()
            run = self._plain.forward if self._plain.is_on else module
        with self._control.forward() if is_training else nullcontext():
            output = run(*args, **kwargs)
        if torch.is_grad_enabled():
            self._control.watch_output(output, is_syncing=self._is_syncing)
        return output

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Update the parameters and clear the gradients; takes the place of `optimizer.step()`.

        Args:
            scaler: Calls the optimizer in place of this method if gradients are finite;
                needs all of them, so no communication overlaps the forward pass then.
        """
        self._must_be_open()
        if scaler is not None:
            if not self._executor.has_whole_gradients:
                raise ValueError(
                    "a GradScaler looks at whole gradients, and with sharded=True only parts are "
                    "averaged; use bfloat16 autocast without one, or sharded=False"
                )
            self._must_wait("a GradScaler needs all gradients before the first update")
        self._steps.take(scaler)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        """Clip the averaged gradients as `torch.nn.utils.clip_grad_norm_` does; return the norm.

        Call it between `backward()` and `step()`, on all ranks. Unless `sharded`, it needs all
        gradients, so from now on communication overlaps the backward pass only.
        """
        if self._executor.has_whole_gradients:
            self._must_wait("clip_grad_norm_ needs all gradients before the first update")
        self._control.end_backward()
        return self._executor.clip(max_norm, norm_type)

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
        return self._executor.optimizer_state_dict(self._optimizer)

    def flush(self) -> None:
        """Finish what is under way: gradients have landed, parameters are updated."""
        self._executor.flush()

    def close(self) -> None:
        """Finish what is under way; end all threads and connections, and remove all hooks.

        All ranks must call it, before the process group is destroyed; the wrapper cannot train
        any more. With `sharded=True` every rank's optimizer gets its whole state back. Leaving a
        `with` block does the same, unless by an error.
        """
        try:
            if self._finalizer.alive:
                self._control.end_raised_backward()
                self.flush()
                self._executor.give_back()
        finally:
            self._finalizer()

    def explain(self) -> str:
        """Say what was chosen and why; predicted times are simulated, the others measured."""
        return explain(self._control)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> None:
        """What DistributedDataParallel asks first of a module that it is to wrap."""
        refuse_wrapping(self._rank)

    def _must_be_open(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("the model is closed; wrap it anew to train on")

    def _must_wait(self, reason: str) -> None:
        if self._control.must_wait(reason):
            warn(
                f"{reason}; from now on communication overlaps the backward pass only",
                stacklevel=3,
            )


def _close(control: PlanControl, handles: list[RemovableHandle], trained: Trained) -> None:
    control.close()
    for handle in handles:
        handle.remove()
    trained.end()
