"""What both executors wait with: one condition, which an error or closing ends, too."""

import threading
from collections.abc import Callable


class Waiting:
    """Base of the executors, whose main thread waits for what their own thread does."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._error: BaseException | None = None
        self._is_closed = False

    @property
    def _has_ended(self) -> bool:
        return self._error is not None or self._is_closed

    def _wait(self, is_done: Callable[[], bool]) -> None:
        """Wait until `is_done()`; raise what the thread raised, or that it was closed."""
        with self._condition:
            self._condition.wait_for(lambda: is_done() or self._has_ended)
            done = is_done()
        if self._error is not None:
            raise self._error
        if not done:
            raise RuntimeError("the model is closed; wrap it anew to train on")
