"""Order work of two threads on one device: nothing to do on a CPU, events on CUDA."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StreamOrder:
    """A side stream for the executor's thread, and events between it and the main one.

    On a CPU every method does nothing. The CUDA half has not been run on more than one device.
    """

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def side(self) -> Iterator[None]:
        """Queue the work inside on the side stream."""
        if self._side is None:
            yield
            return
        with torch.cuda.stream(self._side):
            yield

    def mark(self) -> torch.cuda.Event | None:
        """Note the work that the current stream has so far."""
        if self._side is None:
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def wait(self, event: torch.cuda.Event | None) -> None:
        """Let the current stream wait for `event`; the host does not."""
        if event is not None:
            torch.cuda.current_stream().wait_event(event)

    def keep(self, tensor: torch.Tensor | None) -> None:
        """Do not reuse the memory of `tensor` before the current stream is done with it."""
        if self._side is not None and tensor is not None:
            tensor.record_stream(torch.cuda.current_stream())
