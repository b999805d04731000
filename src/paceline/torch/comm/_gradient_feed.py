"""Hooks that tell when gradients come and when the backward pass begins and ends."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from paceline.torch.comm.transfer import Trained
from paceline.torch.model import tensors_in


class Listener(Protocol):
    """Who is told, once per backward pass that is averaged over ranks."""

    def begin(self) -> None:
        """Note that a backward pass begins."""

    def note_ready(self, tensor: int) -> None:
        """Take the gradient of one parameter."""

    def finish(self) -> None:
        """Note that the backward pass has ended."""

    def abandon(self) -> None:
        """Note that it will not end, because it raised; other ranks may wait for its rest."""


class GradientFeed:
    """Tells `listener` of each backward pass, from hooks on outputs and parameters.

    The backward pass begins with the gradient of the model's output, or of the first
    parameter where that is not seen; autograd says when it ends.

    Args:
        trained: The parameters that get hooks.
        listener: Who is told.

    Attributes:
        came: Which parameters autograd has reached in this backward pass.
    """

    def __init__(self, trained: Trained, listener: Listener) -> None:
        self._trained, self._listener = trained, listener
        self.came = [False] * len(trained.parameters)
        self._takes_gradients = False
        self._in_backward = False
        self._is_syncing = True
        self._handles: list[RemovableHandle] = []
        self.attach()

    def attach(self, *, takes_gradients: bool = True) -> None:
        """Put hooks on the parameters; without `takes_gradients` nobody gets a `note_ready`."""
        if self._handles and self._takes_gradients is takes_gradients:
            return
        self.detach()
        self._takes_gradients = takes_gradients
        for tensor, parameter in enumerate(self._trained.parameters):
            self._handles.append(parameter.register_hook(self._before(tensor)))
            if takes_gradients:
                after = parameter.register_post_accumulate_grad_hook(self._after(tensor))
                self._handles.append(after)

    def detach(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def watch_output(self, output: Any, *, is_syncing: bool) -> None:
        """Expect a backward pass through `output`; averaged over ranks if `is_syncing`."""
        self._is_syncing = is_syncing
        for tensor in tensors_in(output):
            # A leaf, such as a weight that is handed out, would keep its hook for good.
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(self._on_output_grad)

    def end_backward(self) -> None:
        """End a backward pass that has raised."""
        if self._in_backward:
            try:
                self._listener.abandon()
            finally:
                self._in_backward = False

    def _before(self, tensor: int) -> Callable[[torch.Tensor | None], None]:
        def hook(gradient: torch.Tensor | None) -> None:
            self._begin()
            # None: the gradient was computed on another lane and is there already.
            if self._is_syncing and gradient is not None and self.came[tensor]:
                raise RuntimeError(
                    f"{self._trained.names[tensor]!r} must get its gradient once per backward "
                    "pass, but it came again; use checkpoint(..., use_reentrant=False)"
                )
            self.came[tensor] = True

        return hook

    def _after(self, tensor: int) -> Callable[[torch.Tensor], None]:
        def hook(_parameter: torch.Tensor) -> None:
            if self._is_syncing:
                self._listener.note_ready(tensor)

        return hook

    def _on_output_grad(self, _gradient: torch.Tensor) -> None:
        self._begin()

    def _begin(self) -> None:
        if self._in_backward or not self._is_syncing:
            return
        self._in_backward = True
        self.came = [False] * len(self.came)
        Variable._execution_engine.queue_callback(self._end)
        self._listener.begin()

    def _end(self) -> None:
        try:
            self._listener.finish()
        finally:
            self._in_backward = False
