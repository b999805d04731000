"""Update parameters on the assist lane, block by block, while the training loop goes on."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from paceline.errors import TaskError
from paceline.overlap import Lane
from paceline.timeline import Kind, Timeline
from paceline.torch.comm import ScheduledDataParallel
from paceline.torch.model import ParamUse, PartialUpdate, Trial, clock_of, is_compiled
from paceline.torch.overlap._lanes import ASSIST, Lanes
from paceline.torch.overlap._task import Handle

# Parameters of about this size make one task: small, so that the first is done soon.
BLOCK_BYTES = 1 << 20
NUM_ROUNDS, NUM_UNTIMED, NUM_TIMED = 5, 1, 4


class LaneOptimizer:
    """Updates a model's parameters while the training loop goes on.

    `step()` takes the place of `optimizer.step()`: it hands the update to lane `assist`, in the
    order in which the forward pass uses the parameters, and returns. The next forward pass waits,
    module by module, for the parameters that it uses; on a CPU, a thread that would wait runs a
    block itself. Results are bit for bit those of `optimizer.step()`: gradients are complete
    before it begins, so clipping, accumulation and learning rate schedules work as usual.

    The order is recorded in the first forward pass. Unless `always`, plain and deferred steps
    then take turns, and deferring is kept only if it was measured to be faster; see `explain()`.

    State dicts of model and optimizer wait for the update. Other code that reads parameters
    outside of the model's forward pass calls `flush()` first. `step()` clears the gradients.
    A `GradScaler` calls the optimizer itself and cannot be used.

    Args:
        model: Its `forward` must be called through the module.
        optimizer: Any of `torch.optim` except LBFGS.
        lanes: With lane `assist`; unset for lanes of its own.
        always: Defer from the first step on, whether or not it pays.

    Raises:
        ValueError: If the optimizer is LBFGS; if the model is compiled, whose code does not see
            hooks; or a ScheduledDataParallel, which overlaps updates by itself.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with LaneOptimizer(model, optimizer, always=True) as update:
        ...     for _ in range(3):
        ...         model(torch.ones(2, 4)).sum().backward()
        ...         update.step()
        ...     update.flush()
        ...     len(update.timeline())  # one block in each step
        3
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        lanes: Lanes | None = None,
        always: bool = False,
    ) -> None:
        _check_model(model)
        self._update = PartialUpdate(optimizer)
        self._optimizer = optimizer
        self._uses = ParamUse(model)
        self._blocks: list[list[torch.Tensor]] = []
        self._pending: dict[torch.Tensor, Handle] = {}
        turns = {"num_rounds": NUM_ROUNDS, "num_untimed": NUM_UNTIMED, "num_timed": NUM_TIMED}
        self._trial = None if always else Trial(2, **turns)
        self._clock = clock_of(model)
        self._marks: list[object] = []
        self._defers, self._verdict = True, "asked to defer always"
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._lanes = lanes or Lanes({ASSIST: Lane()}, device=device)
        self._owns_lanes = lanes is None
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._on_first_pass),
            *_state_hooks(model, optimizer, weakref.WeakMethod(self.flush)),
        ]

    def step(self) -> None:
        """Hand the update to the lane, clear the gradients, and return.

        Raises:
            TaskError: If an update of the step before failed.
        """
        self.flush()
        self._lanes.step += 1
        if self._blocks and (self._trial.current if self._trial else self._defers):
            self._defer_update()
        else:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._trial is not None and self._blocks:
            self._note_step(self._trial)

    def flush(self) -> None:
        """Wait until all parameters are updated.

        Raises:
            TaskError: If an update failed.
        """
        self._wait_for(list(self._pending))

    def explain(self) -> str:
        """Say whether updates are deferred, and why."""
        if not self._blocks:
            return "watching the first forward pass"
        if self._trial is not None:
            return "trying: plain and deferred updates take turns"
        deferred = f"{len(self._blocks)} blocks are updated on lane assist"
        return f"{deferred if self._defers else 'nothing is deferred'}: {self._verdict}"

    def timeline(self) -> Timeline:
        """Return the spans of the lanes' tasks, as measured."""
        return self._lanes.timeline()

    def close(self) -> None:
        """Finish what is under way, remove the hooks, and end the lanes unless they were given."""
        try:
            self.flush()
        finally:
            while self._handles:
                self._handles.pop().remove()
            if self._owns_lanes:
                self._lanes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_first_pass(self, _model: nn.Module, _args: Any) -> None:
        if torch.is_grad_enabled():
            self._handles.pop(0).remove()
            self._uses.record_pass(self._make_blocks)

    def _make_blocks(self) -> None:
        """Divide the used parameters into blocks, and let modules wait for theirs."""
        own = {p for group in self._optimizer.param_groups for p in group["params"]}
        used = [parameter for parameter in self._uses.order if parameter in own]
        self._blocks = list(_blocks(used))
        self._marks = [self._clock.mark()]
        waits: dict[nn.Module, list[torch.Tensor]] = {}
        for parameter in used:
            for module in self._uses.users[parameter]:
                waits.setdefault(module, []).append(parameter)
        for module, parameters in waits.items():
            hook = partial(self._wait_before, parameters)
            self._handles.append(module.register_forward_pre_hook(hook, prepend=True))

    def _defer_update(self) -> None:
        self._update.begin()
        self._update.run_hooks(before=True)
        rest = list(self._update.rest({p for block in self._blocks for p in block}))
        self._update.apply(rest, [parameter.grad for parameter in rest])
        for number, block in enumerate(self._blocks):
            handle = self._lanes.submit(
                self._update.apply,
                block,
                [parameter.grad for parameter in block],
                lane=ASSIST,
                kind=Kind.OPTIMIZER,
                name=f"update block {number}",
            )
            self._pending.update(dict.fromkeys(block, handle))
        self._update.run_hooks(before=False)

    def _wait_before(self, parameters: list[torch.Tensor], _module: nn.Module, _args: Any) -> None:
        if self._pending:
            self._wait_for(parameters)

    def _wait_for(self, parameters: Iterable[torch.Tensor]) -> None:
        for parameter in parameters:
            handle = self._pending.pop(parameter, None)
            if handle is None:
                continue
            while not handle.is_done and self._lanes.help(ASSIST, most=1):
                pass
            try:
                handle.wait()
            except TaskError:
                # Raised once for all parameters of the block.
                self._pending = {p: h for p, h in self._pending.items() if h is not handle}
                raise

    def _note_step(self, trial: Trial) -> None:
        """Mark the end of a step; at the end of a turn, let the trial know of its steps."""
        self._marks.append(self._clock.mark())
        if len(self._marks) <= trial.steps_per_turn:
            return
        ends_s, self._marks = self._clock.seconds(self._marks), self._marks[-1:]
        has_ended = [trial.note(after_s - before_s) for before_s, after_s in pairwise(ends_s)]
        if has_ended[-1]:
            trial.end_round()
        if trial.is_over:
            self._defers, self._verdict = bool(trial.winner()), trial.explain(1)
            self._trial = None


def _blocks(parameters: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    block: list[torch.Tensor] = []
    for parameter in parameters:
        block.append(parameter)
        if sum(member.nbytes for member in block) >= BLOCK_BYTES:
            yield block
            block = []
    if block:
        yield block


def _state_hooks(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    flush: "weakref.WeakMethod[Callable[[], None]]",
) -> list[RemovableHandle]:
    """Make saving and loading of state wait for the update."""

    def hook(*_: Any) -> None:
        if (method := flush()) is not None:
            method()

    return [
        register(hook)
        for part in (model, optimizer)
        for register in (part.register_state_dict_pre_hook, part.register_load_state_dict_pre_hook)
    ]


def _check_model(model: nn.Module) -> None:
    if isinstance(model, ScheduledDataParallel):
        raise ValueError("ScheduledDataParallel overlaps updates by itself; call its step()")
    if is_compiled(model):
        raise ValueError(
            "compiled code does not see the hooks that wait for updates; leave the model "
            "uncompiled, or call optimizer.step()"
        )
