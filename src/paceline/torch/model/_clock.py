"""Marks in time, taken without stopping the device, and turned into seconds later."""

import time
from collections.abc import Sequence
from typing import Protocol

import torch


class Clock(Protocol):
    """Takes marks that cost microseconds; their times may be known only later."""

    def mark(self) -> object:
        """Note this moment, after all work that was queued before it."""

    def seconds(self, marks: Sequence[object]) -> list[float]:
        """Return the time of each mark, waiting for the device where it must."""


class CpuClock:
    def mark(self) -> object:
        return time.perf_counter()

    def seconds(self, marks: Sequence[object]) -> list[float]:
        return [mark for mark in marks if isinstance(mark, float)]


class CudaClock:
    """Events on the current stream: work is timed where it runs, not where it is queued."""

    def __init__(self) -> None:
        self._origin = torch.cuda.Event(enable_timing=True)
        self._origin.record()

    def mark(self) -> object:
        """Record an event; the host does not wait."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[object]) -> list[float]:
        """Wait for the last event and return seconds since this clock was made."""
        events = [mark for mark in marks if isinstance(mark, torch.cuda.Event)]
        if events:
            events[-1].synchronize()
        return [self._origin.elapsed_time(event) / 1e3 for event in events]


def clock_of(model: torch.nn.Module) -> Clock:
    """Return the clock for the device that holds the model's parameters."""
    parameter = next(model.parameters(), None)
    return CudaClock() if parameter is not None and parameter.is_cuda else CpuClock()
