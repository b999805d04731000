"""Deferred gradients: add up a parameter's parts and put the sum where autograd would."""

from collections.abc import Callable

import torch
from torch import Tensor

Hook = Callable[[Tensor], None]


class Slot:
    """What a parameter's gradient is waiting for.

    A gradient is complete when autograd is done with all uses of the parameter, which a hook on
    it notes, and all deferred parts are computed. The hook or the lane, whichever is last, adds
    it to `.grad` and runs the hooks that autograd would run.

    Each count is written by one thread only, so they need no lock.

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
        """Expect nothing."""
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

        Where there are plain ones, `join` waits for the deferred parts, and autograd goes
        on with the sum that is returned.
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
        """Put the gradient in place as soon as all parts are there.

        Runs where autograd runs hooks after accumulation, so after all other hooks that come
        before it; called again, it does nothing.
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
