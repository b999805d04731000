"""Notice a call of `optimizer.step()` where `model.step()` would take its place."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle


class Listener(Protocol):
    """Who is told."""

    def before_outside_step(self, *, has_closure: bool) -> None:
        """Make gradients right, before the optimizer looks at them."""

    def after_outside_step(self) -> None:
        """Note that the optimizer has updated its parameters."""


class OutsideSteps:
    """Tells `listener` of each `optimizer.step()` that is not made inside `own`.

    Args:
        optimizer: Gets two hooks.
        listener: Held weakly.

    Attributes:
        handles: Remove the hooks.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, listener: Listener) -> None:
        self._listener = weakref.ref(listener)
        self._is_own = False
        self.handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @contextmanager
    def own(self) -> Iterator[None]:
        """Tell nobody of the steps inside."""
        before, self._is_own = self._is_own, True
        try:
            yield
        finally:
            self._is_own = before

    def _before(self, _optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        listener = self._listener()
        if listener is not None and not self._is_own:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            listener.before_outside_step(has_closure=closure is not None)

    def _after(self, *_: Any) -> None:
        listener = self._listener()
        if listener is not None and not self._is_own:
            listener.after_outside_step()
