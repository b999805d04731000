"""End a run between two steps when it is asked to, on all ranks alike."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from parallel import World
from torch import distributed as dist


class Stopping:
    """Turns SIGTERM into a wish that all ranks learn of.

    Each step, the ranks send what they know and read what was sent in the step before, so they
    agree without waiting for each other. The handler that was there comes back at the end.
    """

    def __init__(self, world: World) -> None:
        self._is_shared = world.num_ranks > 1
        self._is_asked = False
        self._sent: tuple[torch.Tensor, Any] | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if error is None:
            self._received()

    def is_due(self) -> bool:
        """Tell whether to end now; all ranks must ask, once per step, and get the same answer."""
        if not self._is_shared:
            return self._is_asked
        was_asked = self._received()
        wish = torch.tensor(float(self._is_asked))
        self._sent = wish, dist.all_reduce(wish, op=dist.ReduceOp.MAX, async_op=True)
        return was_asked

    def _received(self) -> bool:
        if self._sent is None:
            return False
        (wish, work), self._sent = self._sent, None
        work.wait()
        return bool(wish)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._is_asked = True
