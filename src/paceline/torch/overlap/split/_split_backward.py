"""Take weight gradients off the critical path: input gradients on main, the rest on assist."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from paceline.errors import TaskError
from paceline.overlap import Lane, LanePlan
from paceline.timeline import Timeline
from paceline.torch.model import clock_of, tensors_in
from paceline.torch.overlap._lanes import ASSIST, Lanes
from paceline.torch.overlap.split._find_plan import (
    MeasuredPass,
    PassPlan,
    PlanSearch,
    find_plan,
    num_cores,
)
from paceline.torch.overlap.split._ops import SplitOp, op_of
from paceline.torch.overlap.split._pass_record import PassRecord, ThreadCounts
from paceline.torch.overlap.split._queue import GradientQueue, overhead_s
from paceline.torch.overlap.split._site import Mode, Site, has_user_hooks

OpOf = Callable[[Any], SplitOp | None]


def split_backward(
    model: nn.Module,
    *,
    plan: LanePlan | None = None,
    lanes: Lanes | None = None,
    ops: Mapping[type[nn.Module], OpOf] | None = None,
) -> "SplitBackward":
    """Compute weight gradients on a lane of their own while the backward pass goes on.

    The backward pass needs each layer's input gradient at once, its weight gradients only at the
    end. Linear, Conv1d, Conv2d, Embedding, LayerNorm and RMSNorm layers are split, but not those
    inside `nn.MultiheadAttention`. Parameters, `state_dict` and module classes do not change. The
    gradients are those of PyTorch's kernels, added in PyTorch's order: on a CPU bitwise equal with
    equal thread counts, but for parameters that are used three or more times, some of them outside
    of split layers. Hooks that run after a gradient is accumulated run on the assist lane.

    Unless `plan` is given, the first passes (a forward and a backward pass each) are measured:
    the parts of the backward pass, then the plain way and the best simulated plans in turns. The
    plain way is kept unless a plan was measured to be faster; see `explain()`.

    `backward()` returns when all gradients are there. Works with autocast, checkpointing (both
    kinds), accumulation, `inputs=...`, `torch.autograd.grad` and `create_graph=True` (which
    defers nothing), and inside `ScheduledDataParallel`, before or after wrapping. Layers run the
    plain way in compiled modules, function transforms and `DistributedDataParallel`, which must
    see autograd's own accumulation (`ScheduledDataParallel` uses it where no plan of ours wins).

    Args:
        model: Its `forward` must be called through the module, as usual.
        plan: What to defer, by layer name: `paceline.overlap.plan_lanes(job)`, or
            `paceline.overlap.defer_all()`; unset to find out.
        lanes: To run on, with a lane `assist`; unset for lanes of its own.
        ops: How to split layers of your own, by class: from the layer to a `SplitOp`.

    Returns:
        A context manager; leaving it, or `close()`, puts the layers back.

    Raises:
        ValueError: If the model is a DistributedDataParallel, or is split already.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
        >>> from paceline.overlap import defer_all
        >>> with split_backward(model, plan=defer_all()) as split:
        ...     model(torch.ones(2, 4)).sum().backward()
        >>> model[0].weight.grad.shape, len(split.timeline())
        (torch.Size([4, 4]), 4)
    """
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            "split_backward cannot serve DistributedDataParallel, which waits for autograd's own "
            "accumulation; use paceline.ScheduledDataParallel"
        )
    return SplitBackward(model, plan, lanes, ops or {})


class SplitBackward:
    """What `split_backward` returns.

    Attributes:
        plan: What is done now; None while the first passes are measured.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: LanePlan | None,
        lanes: Lanes | None,
        ops: Mapping[type[nn.Module], OpOf],
    ) -> None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.plan = plan
        self._model = model
        self._exit = ExitStack()
        self._lanes = lanes or self._exit.enter_context(Lanes({ASSIST: Lane()}, device=device))
        self._queue = GradientQueue(self._lanes)
        self._sites: list[Site] = []
        self._handles: list[RemovableHandle] = []
        self._record = PassRecord(clock_of(model))
        self._threads = ThreadCounts(self._lanes, device)
        self._in_backward = False
        self._now = PassPlan()
        self._search: PlanSearch | None = None
        self._attach(ops)
        if plan is None:
            num_own = self._threads.own
            cores = num_cores(device, num_own)
            self._search = find_plan(cores, num_own, overhead_s(self._lanes))
            self._now = next(self._search)
        else:
            self._settle(plan)

    # What a user calls.

    def explain(self) -> str:
        """Say what is deferred and why."""
        found = "measuring the first passes" if self.plan is None else str(self.plan)
        num_foreign = self._record.num_foreign
        if not num_foreign:
            return found
        return f"{found}\n{num_foreign} passes ran inside DistributedDataParallel: nothing deferred"

    def timeline(self) -> Timeline:
        """Return the spans of the passes on main and of the tasks on assist, as measured."""
        return Timeline.merge([self._record.timeline(), self._lanes.timeline()])

    def close(self) -> None:
        """Put the layers back, and end the lanes unless they were given."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._detach()
        self._exit.__exit__(*error)

    # What layers call.

    def begin(self) -> None:
        """Note that the backward pass has begun; called many times."""
        if self._in_backward:
            return
        self._in_backward = True
        Variable._execution_engine.queue_callback(_AtEnd(self))
        if self._now.threads is not None and not self._record.is_foreign:
            torch.set_num_threads(self._now.threads.backward)
        self._record.mark()

    def mark(self, site: Site) -> None:
        """Note the time for the layer."""
        self._record.mark(site.name)

    # Hooks.

    def _attach(self, ops: Mapping[type[nn.Module], OpOf]) -> None:
        for name, module in self._model.named_modules():
            op = ops.get(type(module), op_of)(module)
            if op is not None and isinstance(module._parameters.get("weight"), nn.Parameter):
                if isinstance(getattr(module.forward, "__self__", None), Site):
                    raise ValueError(f"layer {name!r} is split already; close that first")
                self._sites.append(Site(name, module, op, self, self._queue))
        for site in self._sites:
            self._queue.add(site.parameters)
        self._handles.append(self._model.register_forward_pre_hook(self._before_forward))
        self._handles.append(self._model.register_forward_hook(self._after_forward))
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                self._watch(parameter)

    def _watch(self, parameter: nn.Parameter) -> None:
        """Add a hook before all others, so that this pass ends before theirs."""
        slot, join = self._queue.find(parameter), self._queue.join

        def hook(gradient: Tensor | None) -> Tensor | None:
            self.begin()
            return None if slot is None else slot.close(gradient, join)

        handle = parameter.register_hook(hook)
        hooks: Any = parameter._backward_hooks
        hooks.move_to_end(handle.id, last=False)
        self._handles.append(handle)

    def _detach(self) -> None:
        self._queue.forget()
        while self._sites:
            self._sites.pop().restore()
        while self._handles:
            self._handles.pop().remove()

    # Passes.

    def _before_forward(self, _module: nn.Module, _args: Any) -> None:
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        # It waits for autograd's own accumulation, so a deferred gradient would be too late.
        is_foreign = DistributedDataParallel._active_ddp_module is not None
        self._record.num_foreign += is_foreign
        self._set_modes(PassPlan() if is_foreign else self._now)
        if not self._record.is_open:
            self._threads.begin_forward(None if is_foreign else self._now.threads)
            self._record.begin(is_foreign=is_foreign)

    def _after_forward(self, _module: nn.Module, _args: Any, output: Any) -> None:
        for tensor in tensors_in(output):
            # A leaf, such as a weight that is handed out, would keep its hook for good.
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(self._on_output_grad)

    def _on_output_grad(self, _gradient: Tensor) -> None:
        if self._handles:
            self.begin()

    def end(self) -> None:
        """Wait for the assist lane; run by autograd at the end of the backward pass."""
        self._in_backward = False
        try:
            self._queue.flush()
        finally:
            self._queue.forget()
            if self._now.threads is not None:
                self._threads.restore()
        measured = self._record.end(self._lanes.step)
        if measured is not None and self._search is not None and not self._record.is_foreign:
            self._go_on(self._search, measured)

    def _go_on(self, search: PlanSearch, measured: MeasuredPass) -> None:
        try:
            self._now = search.send(measured)
            self._threads.set_assist(self._now.threads)
        except StopIteration as found:
            self._search = None
            self._settle(found.value)

    def _settle(self, plan: LanePlan) -> None:
        """Do as planned from now on; where nothing is deferred, leave no trace in the model."""
        self.plan, self._now = plan, PassPlan.of(plan)
        if plan.defers:
            self._set_modes(self._now)
        else:
            self._detach()
        self._threads.set_assist(self._now.threads)

    def _set_modes(self, now: PassPlan) -> None:
        self._queue.layers_per_task = now.layers_per_task
        self._queue.max_pending = now.max_pending
        # Looking at hooks does not count as a use of the parameter.
        with torch._C.DisableTorchFunction():
            for site in self._sites:
                is_chosen = now.deferred is None or site.name in now.deferred
                is_free = not any(map(has_user_hooks, site.parameters))
                site.mode = now.mode if is_chosen and is_free else Mode.PLAIN

    def abort(self) -> None:
        """Clean up after a backward pass that raised, before `.grad` is read."""
        self._in_backward = self._record.is_open = False
        with suppress(TaskError):  # The pass has raised already.
            self._lanes.flush(ASSIST)
        self._queue.forget()
        self._threads.restore()


class _AtEnd:
    """Called by autograd at the end of a backward pass, and dropped if that raised."""

    def __init__(self, split: SplitBackward) -> None:
        self._split: SplitBackward | None = split

    def __call__(self) -> None:
        split, self._split = self._split, None
        if split is not None:
            split.end()

    def __del__(self) -> None:
        if self._split is not None:
            self._split.abort()
