"""Turn a signal into an answer that all ranks get alike, between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed as dist


class StopRequest:
    """Whether any rank was asked to stop.

    Args:
        group: The ranks that agree; None if there is one.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._is_asked = False
        self._sent: tuple[torch.Tensor, Any] | None = None

    @contextmanager
    def on_signal(self, *numbers: int) -> Iterator[None]:
        """Take `numbers` as the request inside; then the handlers that were there come back."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signals reach the main thread only; call on_signal there")
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
            self._received()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def is_due(self) -> bool:
        """Tell whether to stop; all ranks must ask equally often, and get the same answer.

        With several ranks it is that of the call before, so that no rank waits for another.
        """
        if self._group is None:
            return self._is_asked
        was_asked = self._received()
        device = "cpu" if "gloo" in dist.get_backend(self._group) else "cuda"
        wish = torch.tensor(int(self._is_asked), dtype=torch.int32, device=device)
        work = dist.all_reduce(wish, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._sent = wish, work
        return was_asked

    def _received(self) -> bool:
        if self._sent is None:
            return False
        (wish, work), self._sent = self._sent, None
        work.wait()
        return bool(wish)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._is_asked = True
