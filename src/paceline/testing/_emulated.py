"""A model whose compute is emulated: it sleeps for given times, with gradients of true size."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

ELEMENT_BYTES = 4


class EmulatedModel(nn.Module):
    """Layers that sleep instead of computing; *emulated*, and to be called so in every report.

    On a machine with few cores, real compute and the threads of the wire share the cores, so
    a schedule's gain is hidden by that contention. Sleeping leaves the cores to the
    wire, as an accelerator does. Parameters are real float32 tensors and every backward pass
    gives each a constant gradient of its full size; the output is the input.

    Args:
        forward_s: Seconds that each layer's forward pass sleeps, in forward order.
        backward_s: The same for its backward pass; the gradient is there afterwards.
        gradient_bytes: Bytes of its parameters, rounded down to whole float32 values; a layer
            with less than one value has no parameter.

    Raises:
        ValueError: If lengths differ, or a value is negative.
    """

    def __init__(
        self, forward_s: Sequence[float], backward_s: Sequence[float], gradient_bytes: Sequence[int]
    ) -> None:
        super().__init__()
        names = ("forward_s", "backward_s", "gradient_bytes")
        for name, column in zip(names, (forward_s, backward_s, gradient_bytes), strict=True):
            if len(column) != len(forward_s):
                raise ValueError(
                    f"{name} must hold one value per layer ({len(forward_s)} in forward_s), "
                    f"got {len(column)}"
                )
            if any(value < 0 for value in column):
                raise ValueError(f"{name} must not be negative, got {min(column)}")
        self.layers = nn.Sequential(
            *map(_EmulatedLayer, forward_s, backward_s, map(int, gradient_bytes))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sleep through all layers; return `x`, of any shape."""
        # So that layers without parameters before the first gradient sleep backwards, too.
        result: torch.Tensor = self.layers(x.detach().requires_grad_())
        return result


class _EmulatedLayer(nn.Module):
    def __init__(self, forward_s: float, backward_s: float, gradient_bytes: int) -> None:
        super().__init__()
        num_values = gradient_bytes // ELEMENT_BYTES
        self.weight = nn.Parameter(torch.zeros(num_values)) if num_values else None
        # Neither parameter nor buffer: DistributedDataParallel would send it.
        self.gradient = torch.full((num_values,), 1e-3)
        self.forward_s, self.backward_s = forward_s, backward_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        arguments = (x, self.weight, self.gradient, self.forward_s, self.backward_s)
        # torch leaves `apply` of a custom function untyped.
        result: torch.Tensor = _Sleep.apply(*arguments)  # type: ignore[no-untyped-call]
        return result


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        gradient: torch.Tensor,
        forward_s: float,
        backward_s: float,
    ) -> torch.Tensor:
        ctx.gradient = None if weight is None else gradient
        ctx.backward_s = backward_s
        time.sleep(forward_s)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        time.sleep(ctx.backward_s)
        # The constant itself, not a view: the layer holds it too, so autograd copies it.
        return grad_outputs[0], ctx.gradient, None, None, None
