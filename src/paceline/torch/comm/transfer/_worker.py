"""One thread beside the main one: its tasks, its error and its end."""

import threading
from collections import deque
from collections.abc import Callable

import torch

from paceline.torch.model import StreamOrder

CLOSE_TIMEOUT_S = 10.0
Task = Callable[[], None]


class Worker:
    """A thread that runs one task after another while the main thread computes.

    An exception in a task ends the thread; every later `wait` raises it.

    Args:
        device: Where tasks queue their work, on a stream beside the main one.
        name: Name of the thread.
        condition: That of another worker, to wait for both at once; unset for its own.

    Attributes:
        condition: To be held where state is read or written that tasks change, too. All who
            wait for it are notified at the end of each task.
        streams: Orders work of this thread and of the main one on the device.
        error: What ended the thread; None if nothing did.
    """

    def __init__(
        self,
        device: torch.device,
        name: str = "paceline",
        condition: threading.Condition | None = None,
    ) -> None:
        self.condition = threading.Condition() if condition is None else condition
        self.streams = StreamOrder(device)
        self.error: BaseException | None = None
        self._tasks: deque[Task] = deque()
        self._choose: Callable[[], Task | None] = self._first
        self._before_error: Task = lambda: None
        self._is_busy = self._is_closed = False
        # Threads that are new to OpenMP use all cores, whatever the main thread was told.
        num_threads = torch.get_num_threads()
        self._thread = threading.Thread(
            target=self._run, args=(num_threads,), daemon=True, name=name
        )

    def start(
        self,
        choose: Callable[[], Task | None] | None = None,
        before_error: Task = lambda: None,
    ) -> None:
        """Start the thread.

        Args:
            choose: Returns the task to run next, or None to wait until `condition` is
                notified; called with the condition held. Unset for what `submit` brings,
                first in, first out.
            before_error: Called in the thread before its error is shown to others.
        """
        self._choose, self._before_error = choose or self._first, before_error
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Run `task` after those that were submitted before."""
        with self.condition:
            self._tasks.append(task)
            self.condition.notify_all()

    @property
    def is_idle(self) -> bool:
        """Whether all submitted tasks are done."""
        return not self._tasks and not self._is_busy

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Wait until `is_done()`; raise the thread's error, or `RuntimeError` once it is closed."""
        with self.condition:
            self.condition.wait_for(lambda: is_done() or self._has_ended)
            done = is_done()
        if self.error is not None:
            raise self.error
        if not done:
            raise RuntimeError("the model is closed; wrap it anew to train on")

    def wait_idle(self) -> None:
        """Wait until all submitted tasks are done, but at most 10 s."""
        with self.condition:
            self.condition.wait_for(lambda: self.is_idle or self._has_ended, CLOSE_TIMEOUT_S)

    def close(self, is_done: Callable[[], bool]) -> None:
        """End and join the thread once `is_done()`, after an error, or after 10 s.

        May be called again, and from any thread: a model may be collected, and so closed,
        in this one, which then ends after its present task.
        """
        with self.condition:
            if not self.is_current:
                self.condition.wait_for(lambda: self._has_ended or is_done(), CLOSE_TIMEOUT_S)
            self._is_closed = True
            self._tasks.clear()
            self.condition.notify_all()
        if not self.is_current and self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)

    @property
    def _has_ended(self) -> bool:
        return self.error is not None or self._is_closed

    def _run(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        try:
            with torch.no_grad(), self.streams.side():
                while (task := self._next()) is not None:
                    task()
        except BaseException as error:  # Raised in the main thread, by `wait`.
            self._before_error()
            with self.condition:
                self.error = error
                self.condition.notify_all()

    def _next(self) -> Task | None:
        with self.condition:
            self._is_busy = False
            self.condition.notify_all()
            while not self._is_closed:
                if (task := self._choose()) is not None:
                    self._is_busy = True
                    return task
                self.condition.wait()
        return None

    def _first(self) -> Task | None:
        return self._tasks.popleft() if self._tasks else None
