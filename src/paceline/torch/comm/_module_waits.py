"""Hooks by which each module waits, before it runs, for the parameters that it uses."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from paceline.torch.comm._executor import Executor


class ModuleWaits:
    """Lets modules wait for the updates of their parameters.

    Args:
        executor: Updates them.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._tensors_of: dict[torch.nn.Module, set[int]] = {}
        self._handles: list[RemovableHandle] = []

    def add(self, uses: Mapping[torch.nn.Module, Sequence[int]]) -> None:
        """Let each module wait for these parameters, too."""
        for module, tensors in uses.items():
            if module not in self._tensors_of:
                self._tensors_of[module] = set()
                hook = _Wait(self._executor, self._tensors_of[module])
                self._handles.append(module.register_forward_pre_hook(hook, prepend=True))
            self._tensors_of[module].update(tensors)

    def remove(self) -> None:
        """Remove all hooks."""
        while self._handles:
            self._handles.pop().remove()


class _Wait:
    """A hook that waits; copied or pickled with its module, it has nothing to wait for."""

    def __init__(self, executor: Executor, tensors: set[int]) -> None:
        self._executor, self._tensors = executor, tensors

    def __call__(self, _module: torch.nn.Module, _args: Any) -> None:
        self._executor.wait_updated(self._tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        return _NoWait, ()


class _NoWait:
    def __call__(self, _module: torch.nn.Module, _args: Any) -> None:
        pass
