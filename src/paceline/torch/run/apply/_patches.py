"""The three places of torch where batches and gradients pass; patched in this process."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from paceline.torch.run.apply._deal import Deal


class Handler(Protocol):
    """What is told of a script's batches."""

    def sampler_of(self, loader: Any, own: Any) -> Any:
        """Return what a loader draws indices from, instead of its `own`."""

    def before_fetch(self, deal: Deal) -> None:
        """The loop asks for a batch."""

    def after_fetch(self, deal: Deal, batch: Any) -> None:
        """It gets one."""

    def before_backward(self, loss: torch.Tensor) -> float:
        """Return what `loss` is to be multiplied by as it is differentiated."""


class Patches:
    """Installed and removed as one.

    Args:
        handler: Whom to tell.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._sampler: Any = DataLoader.__dict__["_index_sampler"]
        # What others have patched before stays below.
        self._fetch: Any = _BaseDataLoaderIter.__next__
        self._backward: Callable[..., None] = torch.autograd.backward

    def install(self) -> None:
        """Patch the classes."""
        handler, own_sampler, own_fetch = self._handler, self._sampler, self._fetch
        own_backward = self._backward

        def sampler(loader: Any) -> Any:
            return handler.sampler_of(loader, own_sampler.fget(loader))

        def fetch(iterator: Any) -> Any:
            deal = iterator._index_sampler
            if not isinstance(deal, Deal):
                return own_fetch(iterator)
            handler.before_fetch(deal)
            batch = own_fetch(iterator)
            handler.after_fetch(deal, batch)
            return batch

        def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
            alone = isinstance(tensors, torch.Tensor)
            factor = handler.before_backward(tensors) if alone else 1.0
            if factor != 1.0:
                seed = torch.ones_like(tensors) if grad_tensors is None else grad_tensors
                grad_tensors = seed * factor
            own_backward(tensors, grad_tensors, *args, **kwargs)

        DataLoader._index_sampler = property(sampler)  # type: ignore[method-assign, assignment]
        _BaseDataLoaderIter.__next__ = fetch  # type: ignore[method-assign, assignment]
        torch.autograd.backward = backward

    def remove(self) -> None:
        """Put everything back."""
        DataLoader._index_sampler = self._sampler  # type: ignore[method-assign]
        _BaseDataLoaderIter.__next__ = self._fetch  # type: ignore[method-assign]
        torch.autograd.backward = self._backward
