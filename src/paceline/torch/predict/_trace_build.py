"""Make a model without weights: on fake tensors, or for real with weights left unfilled."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from paceline.torch.predict._trace_setup import ExampleInput, build

# Operators that initialise; a parameter of more values than this is left unfilled.
FILLS = frozenset({
    "uniform_", "normal_", "fill_", "zero_", "copy_", "mul_", "add_", "sub_", "div_", "clamp_",
    "erfinv_", "bernoulli_", "exponential_",
})  # fmt: skip
MOST_FILLED_VALUES = 1 << 14


class OneFakeMode(FakeTensorMode):
    """Stays the mode of tensors that a module copies; a copy of it would not know them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "OneFakeMode":
        return self


def build_without_weights(
    model: nn.Module | Callable[[], Any],
    example_input: ExampleInput | None,
    input_shape: tuple[int, ...] | None,
    mode: FakeTensorMode,
) -> tuple[nn.Module, ExampleInput | None]:
    """Return the module on fake tensors, and its example input.

    Where the function fails on fake tensors, because it reads values of tensors (stochastic
    depth reads its rates from one), it is called again for real. Large weights are allocated
    then, but not filled, so that their memory is never touched.

    Raises:
        ValueError: If the function fails on real tensors too, or returns no module.
    """
    if not isinstance(model, nn.Module):
        try:
            with mode:
                return build(model, example_input, input_shape)
        except RuntimeError:
            made, example_input = _built_unfilled(model, example_input, input_shape)
            model = made
    with mode:
        return _without_weights(model), example_input


def _built_unfilled(
    function: Callable[[], Any],
    example_input: ExampleInput | None,
    input_shape: tuple[int, ...] | None,
) -> tuple[nn.Module, ExampleInput | None]:
    with torch.random.fork_rng(devices=[]), _Unfilled():  # type: ignore[no-untyped-call]
        try:
            return build(function, example_input, input_shape)
        except RuntimeError as error:
            raise ValueError(str(error)) from error.__cause__


class _Unfilled(TorchDispatchMode):
    """Skips what fills large tensors in place; small ones may be read by the constructor."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        first = args[0] if args else None
        if (
            isinstance(first, torch.Tensor)
            and first.is_floating_point()
            and first.numel() > MOST_FILLED_VALUES
            and func._overloadpacket.__name__ in FILLS
        ):
            return first
        return func(*args, **(kwargs or {}))


def _without_weights(model: nn.Module) -> nn.Module:
    """Copy a model with fake tensors in place of parameters and buffers."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        fake = torch.empty(parameter.shape, dtype=parameter.dtype)
        memo[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return copy.deepcopy(model, memo)
