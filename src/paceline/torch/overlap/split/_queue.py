"""Deferred weight gradients: computed in tasks of the assist lane, added up, put in place."""

from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from paceline.timeline import Kind
from paceline.torch.overlap._lanes import ASSIST, Lanes
from paceline.torch.overlap._task import Handle, keep_on_stream, now_s
from paceline.torch.overlap.split._ops import OpArgs, SplitOp

NUM_ROUND_TRIPS = 21
Hook = Callable[[Tensor], None]


class Slot:
    """What a parameter's gradient is waiting for.

    A gradient is complete when autograd is done with all uses of the parameter, which a hook notes,
    and all deferred parts are computed. The hook or the lane, whichever is last, adds it to `.grad`
    and runs autograd's hooks. Each count is written by one thread only, so they need no lock.

    Attributes:
        value: Sum of the parts so far.
        num_expected: Parts that are deferred; written by the backward pass.
        num_done: Parts that are computed; written by the lane.
    """

    __slots__ = ("_claim", "_is_closed", "_muted", "num_done", "num_expected", "parameter", "value")

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self._muted: dict[int, Hook] = {}
        self.reset()

    def reset(self) -> None:
        self.value: Tensor | None = None
        self.num_expected = self.num_done = 0
        self._is_closed = False
        self._claim = [self]

    def add(self, part: Tensor) -> None:
        """Add a part; parts of one slot come one after the other."""
        self.value = part if self.value is None else _sum(self.value, part, self.parameter)
        self.num_done += 1
        if self._is_closed and self.num_done == self.num_expected:
            self._settle()

    def close(self, gradient: Tensor | None, join: Callable[[], None]) -> Tensor | None:
        """Take the hook's call: autograd has done all uses, and `gradient` is of the plain ones.

        If there are any, `join` waits for the deferred parts; autograd goes on with the sum.
        """
        self.unmute()
        if not self.num_expected:
            return None
        if gradient is not None:
            join()
            value = self.value
            self.reset()
            return gradient if value is None else gradient + value.to(gradient.dtype)
        self._mute()
        if not self._muted:
            self.finish()
        return None

    def finish(self, _parameter: Tensor | None = None) -> None:
        """Put the gradient in place as soon as all parts are there; called again, do nothing.

        Runs where autograd runs hooks after accumulation, so after all hooks before it.
        """
        if not self._is_closed and self.num_expected:
            self._is_closed = True
            if self.num_done == self.num_expected:
                self._settle()

    def unmute(self) -> None:
        """Put the parameter's hooks back, but for those that were removed meanwhile."""
        hooks = self.parameter._post_accumulate_grad_hooks
        for key, hook in self._muted.items():
            if hooks and key in hooks:
                hooks[key] = hook
        self._muted = {}

    def _mute(self) -> None:
        """Take the place of the hooks, which autograd runs even without a gradient."""
        hooks = self.parameter._post_accumulate_grad_hooks
        if hooks:
            self._muted = dict(hooks)
            hooks.update(dict.fromkeys(hooks, self.finish))

    def _settle(self) -> None:
        try:
            self._claim.pop()  # Both threads may see that it is complete; one of them gets this.
        except IndexError:
            return
        parameter, value = self.parameter, self.value
        self.reset()
        assert value is not None
        with torch.no_grad():
            _accumulate(parameter, value)
        hooks = parameter._post_accumulate_grad_hooks
        for key, hook in list(self._muted.items()):
            if hooks and key in hooks:
                hook(parameter)


def _sum(first: Tensor, second: Tensor, parameter: Tensor) -> Tensor:
    if first.dtype != second.dtype:
        first, second = first.to(parameter.dtype), second.to(parameter.dtype)
    return first + second


def _accumulate(parameter: Tensor, value: Tensor) -> None:
    """Add to `.grad`, and give a new one the strides of the parameter, as autograd does."""
    if value.dtype is not parameter.dtype:
        value = value.to(parameter.dtype)
    if parameter.grad is not None:
        parameter.grad.add_(value)
    elif _has_strides_of(value, parameter):
        parameter.grad = value
    else:
        parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _has_strides_of(value: Tensor, parameter: Tensor) -> bool:
    if value.stride() == parameter.stride():
        return True
    rows = zip(value.shape, value.stride(), parameter.stride(), strict=True)
    return all(own == theirs for size, own, theirs in rows if size != 1)


# Slots of a weight and a bias.
Pair = tuple[Slot | None, Slot | None]
Batch = list[tuple[str, SplitOp, Pair, OpArgs]]


class GradientQueue:
    """Runs what layers defer on the assist lane, and waits for it.

    Attributes:
        layers_per_task: Layers whose weight gradients make one task.
        max_pending: Tasks that the lane may hold; None for no bound.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._slots: dict[int, Slot] = {}
        self._pending: deque[Handle] = deque()
        self._batch: Batch = []
        self.layers_per_task = 1
        self.max_pending: int | None = None

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make slots for `parameters`, unless they have one."""
        for parameter in parameters:
            self._slots.setdefault(id(parameter), Slot(parameter))

    def find(self, tensor: Tensor) -> Slot | None:
        return self._slots.get(id(tensor))

    def defer(self, name: str, op: SplitOp, slots: Pair, args: OpArgs) -> None:
        """Take the weight gradients of a layer; a task has those of `layers_per_task` layers."""
        for slot in slots:
            if slot is not None:
                slot.num_expected += 1
        self._batch.append((name, op, slots, args))
        if len(self._batch) >= self.layers_per_task:
            self._submit()

    def join(self) -> None:
        """Wait for all that is deferred; the calling thread runs tasks, too."""
        if self._batch:
            self._submit()
        self._lanes.help(ASSIST)
        self._lanes.flush(ASSIST)
        self._pending.clear()

    def flush(self) -> None:
        """End a backward pass: all gradients are in place."""
        if not self._pending and not self._batch:
            return
        self.join()
        for slot in self._slots.values():
            slot.finish()
            # Made on the assist stream, and used on this one.
            keep_on_stream(slot.parameter.grad)

    def forget(self) -> None:
        """Drop what is left of a backward pass that raised."""
        self._pending.clear()
        self._batch.clear()
        for slot in self._slots.values():
            slot.unmute()
            if slot.num_expected:
                slot.reset()

    def _submit(self) -> None:
        """Make a task of the batch; at the bound, main runs the oldest task itself."""
        pending = self._pending
        if self.max_pending is not None:
            while pending and pending[0].is_done:
                pending.popleft()
            if len(pending) >= self.max_pending:
                self._lanes.help(ASSIST, most=1)
        batch, self._batch = self._batch, []
        name, after = batch[0][0], self._earlier(batch)
        pending.append(
            self._lanes.submit(_run, batch, lane=ASSIST, kind=Kind.BACKWARD, name=name, after=after)
        )

    def _earlier(self, batch: Batch) -> list[Handle]:
        """Return tasks that may add to the same parameters: two threads may work on the lane."""
        pairs = (slots for *_, slots, _ in batch)
        if not any(slot is not None and slot.num_expected > 1 for pair in pairs for slot in pair):
            return []
        return [handle for handle in self._pending if not handle.is_done]


def overhead_s(lanes: Lanes) -> float:
    """Return the seconds that handing a task over takes: half of going there and back."""
    seconds = []
    for _ in range(NUM_ROUND_TRIPS):
        start_s = now_s()
        lanes.submit(abs, 0, lane=ASSIST).wait()
        seconds.append(now_s() - start_s)
    return sorted(seconds)[NUM_ROUND_TRIPS // 2] / 2


def _run(batch: Batch) -> None:
    for _, op, slots, args in batch:
        parts = op.weight_grads(args, (slots[0] is not None, slots[1] is not None))
        for slot, part in zip(slots, parts, strict=True):
            if slot is not None and part is not None:
                slot.add(part)
