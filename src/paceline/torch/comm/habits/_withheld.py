"""Gradients that are still this rank's own are not shown to whoever asks for `.grad`."""

import sys
from collections.abc import Callable, Sequence
from inspect import unwrap
from typing import Any

import torch
from torch.nn import Parameter

_GRAD: Any = torch.Tensor.grad
# They ask for `.grad` only to drop it.
_DROPPERS = {
    unwrap(torch.optim.Optimizer.zero_grad).__code__,
    unwrap(torch.nn.Module.zero_grad).__code__,
}


class WithheldGradients:
    """Calls `before_use` before Python code reads or replaces a gradient on its way.

    Meanwhile parameters are of a class of their own, whose `.grad` is a property. Autograd, which
    adds to gradients in C++, does not see it. Parameters of a class other than `Parameter` are
    left alone.

    Args:
        parameters: Those that are trained.
        before_use: Lets go of all of them, or raises.
        may_drop: Whether `zero_grad` passes without `before_use`, and replacing too.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        before_use: Callable[[], None],
        *,
        may_drop: bool = False,
    ) -> None:
        self._parameters = [one for one in parameters if is_withholdable(one)]
        self._type = _withheld_type(before_use, may_drop)
        self._is_holding = False

    def hold(self) -> None:
        """Withhold from now on."""
        self._is_holding = True
        for parameter in self._parameters:
            parameter.__class__ = self._type

    def let_go(self) -> None:
        """Show gradients as they are."""
        if self._is_holding:
            self._is_holding = False
            for parameter in self._parameters:
                parameter.__class__ = Parameter


def is_withholdable(parameter: torch.Tensor) -> bool:
    """Whether reads of its gradient are noticed."""
    return type(parameter) is Parameter


def _withheld_type(before_use: Callable[[], None], may_drop: bool) -> type[Parameter]:
    def read(parameter: torch.Tensor) -> Any:
        if not (may_drop and sys._getframe(1).f_code in _DROPPERS):
            before_use()
        return _GRAD.__get__(parameter)

    def replace(parameter: torch.Tensor, gradient: torch.Tensor | None) -> None:
        if not may_drop:
            before_use()
        _GRAD.__set__(parameter, gradient)

    def copied(parameter: Parameter, memo: dict[int, Any]) -> Parameter:
        # The copy's gradient is on no way.
        if id(parameter) not in memo:
            data = parameter.data.clone(memory_format=torch.preserve_format)
            memo[id(parameter)] = Parameter(data, parameter.requires_grad)
        found: Parameter = memo[id(parameter)]
        return found

    members = {
        "grad": property(read, replace, lambda parameter: replace(parameter, None)),
        "__deepcopy__": copied,
    }
    return type("Parameter", (Parameter,), members)
