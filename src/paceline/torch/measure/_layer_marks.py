"""Mark when each layer's forward pass ends, and when its gradients are ready."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch

from paceline.torch.model import Clock


class LayerMark(NamedTuple):
    """A layer's forward pass has ended, or one of its gradients is ready.

    Attributes:
        layer: Index into the layers.
        gradient_bytes: Of the gradient; 0 for a forward pass.
        mark: Of the clock.
    """

    layer: int
    gradient_bytes: int
    mark: object


class LayerMarks:
    """Hooks on the layers of a model: the modules that own parameters.

    Args:
        model: Without a data-parallel wrapper.
        clock: Takes the marks.
        on_call: Called with the index of a layer before its forward pass.

    Attributes:
        names: Of the layers.
        taken: Marks since it was emptied last.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        clock: Clock,
        on_call: Callable[[int], object] = lambda layer: None,
    ) -> None:
        owners = {
            name: module
            for name, module in model.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        }
        self.names = list(owners)
        self._modules = list(owners.values())
        self._clock, self._on_call = clock, on_call
        self.taken: list[LayerMark] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Take marks inside the block; a shared parameter belongs to its first owner."""
        handles = []
        seen: set[torch.nn.Parameter] = set()
        for layer, module in enumerate(self._modules):
            handles.append(module.register_forward_pre_hook(partial(self._before, layer)))
            handles.append(module.register_forward_hook(partial(self._after, layer)))
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad and parameter not in seen:
                    seen.add(parameter)
                    hook = partial(self._on_gradient, layer)
                    handles.append(parameter.register_post_accumulate_grad_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, layer: int, *_: object) -> None:
        self._on_call(layer)

    def _after(self, layer: int, *_: object) -> None:
        self.taken.append(LayerMark(layer, 0, self._clock.mark()))

    def _on_gradient(self, layer: int, parameter: torch.Tensor) -> None:
        num_bytes = parameter.numel() * parameter.element_size()
        self.taken.append(LayerMark(layer, num_bytes, self._clock.mark()))
