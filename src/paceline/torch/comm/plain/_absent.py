"""Let DistributedDataParallel cope with gradients that do not come, and with any backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class AbsentGradients(nn.Module):
    """Wraps what DistributedDataParallel is to run, and completes each of its backward passes.

    DDP waits for a gradient of every parameter, once after each forward pass. Here each
    parameter without one gets zeros at the end of the backward pass, and DDP is made ready before
    each backward pass, whichever forward pass it follows. One flag per parameter travels with
    the gradients: a gradient that no rank has stays None.

    Args:
        module: The bare model.
        parameters: Those that are trained.

    Attributes:
        flags: What DDP sends with the gradients.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__()
        first = parameters[0]
        # Registered first, so DDP puts it into its last bucket.
        self.flags = nn.Parameter(torch.ones(len(parameters), dtype=first.dtype).to(first.device))
        self.module = module
        self._ones = self.flags.detach().clone()
        self._trained = parameters
        self._active = _active(parameters)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.module(*args, **kwargs)

    @property
    def has_changed(self) -> bool:
        """Whether other parameters require a gradient than those that DDP was built for."""
        return self._active != _active(self._trained)

    def complete(self, came: Sequence[bool]) -> None:
        """Give zeros to parameters that did not get a gradient; then all means are there."""
        missing = [
            tensor for tensor, has_come in enumerate(came) if self._active[tensor] and not has_come
        ]
        blank = [tensor for tensor in missing if self._trained[tensor].grad is None]
        flags = self._ones
        if blank:
            flags = flags.clone()
            flags[blank] = 0.0
        roots = [self._trained[tensor] for tensor in missing]
        zeros = [torch.zeros_like(root) for root in roots]
        torch.autograd.backward([self.flags, *roots], [flags, *zeros])
        if blank:
            self._drop_unused(blank)
        self.flags.grad = None

    def _drop_unused(self, blank: list[int]) -> None:
        assert self.flags.grad is not None, "DDP has averaged the flags"
        is_used = (self.flags.grad > 0).tolist()
        for tensor in blank:
            if not is_used[tensor]:
                self._trained[tensor].grad = None


def _active(parameters: Sequence[torch.Tensor]) -> list[bool]:
    """Return which parameters require a gradient now."""
    return [parameter.requires_grad for parameter in parameters]
