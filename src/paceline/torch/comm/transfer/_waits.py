"""What the main thread waits for, and the wish of a rank that all ranks wait."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch

from paceline.torch.comm.transfer._trained import Trained
from paceline.torch.comm.transfer._worker import Worker


class PendingUpdates:
    """Which parameters are still to be updated after a step.

    `begin` and `end` are called with the worker's condition held.

    Attributes:
        num: How many are.
        event: The last update on the device, for the main stream to wait for.
    """

    def __init__(self, trained: Trained, worker: Worker) -> None:
        self._worker = worker
        self._numels = [parameter.numel() for parameter in trained.parameters]
        self._is_pending = [False] * len(self._numels)
        self.num = 0
        self.event: torch.cuda.Event | None = None

    def begin(self) -> None:
        """Expect an update of every parameter that is not empty."""
        self._is_pending = [numel > 0 for numel in self._numels]
        self.num = sum(self._is_pending)

    def end(self, tensors: Iterable[int]) -> None:
        """Note that `tensors` are updated."""
        for tensor in tensors:
            self._is_pending[tensor] = False
            self.num -= 1

    def wait(self, tensors: Collection[int]) -> None:
        """Wait until `tensors` are updated."""
        if self.num or self._worker.error is not None:
            self._worker.wait(lambda: not any(self._is_pending[tensor] for tensor in tensors))
        self._worker.streams.wait(self.event)


@dataclass(slots=True)
class WaitRequest:
    """The wish of a rank that all ranks wait for all gradients before the first update.

    Attributes:
        is_asked: Whether this rank asks; sent to all with the next gradients.
        is_heard: Whether any rank was heard to ask.
    """

    is_asked: bool = False
    is_heard: bool = False

    def take(self) -> bool:
        """Tell once whether any rank has asked."""
        if not self.is_heard:
            return False
        self.is_asked = self.is_heard = False
        return True
