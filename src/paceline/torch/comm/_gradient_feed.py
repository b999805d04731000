"""Hooks that tell the executor when gradients come and when the backward pass ends."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from paceline.torch.comm._executor import Executor
from paceline.torch.comm._step_probe import StepProbe
from paceline.torch.model import tensors_in


class GradientFeed:
    """Feeds each backward pass to the executor, from hooks on outputs and parameters.

    The backward pass begins with the gradient of the model's output, or of the first
    parameter where that is not seen; autograd says when it ends.

    Attributes:
        is_syncing: Whether the next backward pass is to be averaged over ranks.
        is_blocking: Whether `backward()` returns only when all gradients are averaged,
            as with DistributedDataParallel.
        handles: Of the hooks on parameters; empty while somebody else averages gradients.
        probe: Where to note times, while the first steps are measured.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        names: Sequence[str],
        executor: Executor,
    ) -> None:
        self._executor = executor
        self._names = names
        self._in_backward = False
        self.is_syncing = True
        self.is_blocking = True
        self.probe: StepProbe | None = None
        self._parameters = parameters
        self.handles: list[RemovableHandle] = []
        self.attach()

    def attach(self) -> None:
        """Put hooks on the parameters, unless they are there."""
        if self.handles:
            return
        for tensor, parameter in enumerate(self._parameters):
            self.handles.append(parameter.register_hook(self._before(tensor)))
            after = parameter.register_post_accumulate_grad_hook(self._after(tensor))
            self.handles.append(after)

    def detach(self) -> None:
        """Remove the hooks."""
        while self.handles:
            self.handles.pop().remove()

    def watch_output(self, output: Any, *, is_syncing: bool) -> None:
        """Expect a backward pass through `output`."""
        self.is_syncing = is_syncing
        self._in_backward = False  # The last backward pass may have raised on its way.
        for tensor in tensors_in(output):
            # A leaf, such as a weight that is handed out, would keep its hook for good.
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(self._on_output_grad)

    def finish(self) -> None:
        """End the backward pass if autograd did not: no parameter took part."""
        if not self._executor.has_open_round:
            self._executor.begin()
            self._executor.finish()

    def _before(self, tensor: int) -> Callable[[torch.Tensor | None], None]:
        def hook(gradient: torch.Tensor | None) -> None:
            self._begin()
            # None: the gradient was computed on another lane and is there already.
            is_again = gradient is not None and self._executor.is_ready(tensor)
            if self.is_syncing and is_again:
                raise RuntimeError(
                    f"{self._names[tensor]!r} must get its gradient once per backward pass, but "
                    "it came again; use checkpoint(..., use_reentrant=False)"
                )

        return hook

    def _after(self, tensor: int) -> Callable[[torch.Tensor], None]:
        def hook(_parameter: torch.Tensor) -> None:
            if self.is_syncing:
                if self.probe is not None:
                    self.probe.mark_gradient(tensor)
                self._executor.note_ready(tensor)

        return hook

    def _on_output_grad(self, _gradient: torch.Tensor) -> None:
        self._begin()

    def _begin(self) -> None:
        if self._in_backward or not self.is_syncing:
            return
        self._in_backward = True
        Variable._execution_engine.queue_callback(self._end)
        self._executor.begin()
        if self.probe is not None:
            self.probe.mark_backward()

    def _end(self) -> None:
        self._in_backward = False
        if self.probe is not None:
            self.probe.mark_backward_end()
        self._executor.finish()
        if self.is_blocking:
            self._executor.deliver()
