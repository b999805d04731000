"""Load the next batch during the step, and copy it to the device before it is used."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from paceline.timeline import Kind
from paceline.torch.overlap._lanes import Lanes
from paceline.torch.overlap._task import Handle

LOAD, COPY, WAIT = "load batch", "copy batch", "wait for batch"
_END = object()


class Prefetch:
    """Iterates over a loader and prefetches its batches.

    On a CPU the loader runs on lane `copy`. For a CUDA device it runs on lane `host`, which pins
    its tensors, and the copies to the device on the stream of lane `copy`. How long the
    training loop waits for each batch is a span of kind DATA on lane `main`.

    The loader is `num_ahead` batches ahead of the loop, so do not wrap a loader whose state is
    saved, such as `paceline.DataLoader`: it would count batches that the loop has not seen. What
    the loader raises, `next()` raises as a `TaskError`.

    Args:
        loader: Any iterable of tensors, or of containers of them; each pass iterates it anew.
        lanes: With lane `copy`, and `host` for a CUDA device.
        device: Where to put the batches.
        num_ahead: Batches that are loaded ahead, at least 1.

    Examples:
        >>> with Lanes() as lanes:
        ...     [batch.tolist() for batch in Prefetch([torch.zeros(1), torch.ones(1)], lanes)]
        [[0.0], [1.0]]
    """

    def __init__(
        self,
        loader: Iterable[Any],
        lanes: Lanes,
        *,
        device: torch.device | str = "cpu",
        num_ahead: int = 1,
    ) -> None:
        if num_ahead < 1:
            raise ValueError(f"num_ahead must be at least 1, got {num_ahead}")
        self._loader, self._lanes, self._num_ahead = loader, lanes, num_ahead
        self._device = torch.device(device)
        self._lane = "host" if self._device.type == "cuda" else "copy"

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        loading: deque[Handle] = deque()
        copying: deque[Handle] = deque()
        try:
            for _ in range(self._num_ahead):
                self._load(batches, loading)
            while True:
                with self._lanes.span(WAIT, Kind.DATA):
                    batch = self._take(loading, copying)
                if batch is _END:
                    return
                self._load(batches, loading)
                yield batch
        finally:
            for handle in loading:
                handle.cancel()

    def _load(self, batches: Iterator[Any], loading: deque[Handle]) -> None:
        load = _load_pinned if self._device.type == "cuda" else _load
        handle = self._lanes.submit(load, batches, lane=self._lane, kind=Kind.DATA, name=LOAD)
        loading.append(handle)

    def _take(self, loading: deque[Handle], copying: deque[Handle]) -> Any:
        if self._device.type != "cuda":
            return loading.popleft().wait()
        # A copy is launched when its batch is there; the host waits for the first only.
        while loading and (not copying or loading[0].is_done):
            batch = loading.popleft().wait()
            copying.append(
                self._lanes.submit(
                    _to_device, batch, self._device, lane="copy", kind=Kind.COPY, name=COPY
                )
            )
        return copying.popleft().wait()


def _load(batches: Iterator[Any]) -> Any:
    return next(batches, _END)


def _load_pinned(batches: Iterator[Any]) -> Any:
    return tree_map_only(torch.Tensor, torch.Tensor.pin_memory, next(batches, _END))


def _to_device(batch: Any, device: torch.device) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)
