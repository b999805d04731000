"""Run tasks in parallel to the main thread: by threads on a CPU, by streams on CUDA."""

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import distributed as dist

from paceline.overlap import DEFAULT_LANES, Lane
from paceline.timeline import Kind, Span, Timeline
from paceline.torch.overlap._hazards import Hazards
from paceline.torch.overlap._streams import StreamLane
from paceline.torch.overlap._task import Board, Handle, LaneTask, TaskInfo, now_s
from paceline.torch.overlap._threads import ThreadLane

MAX_SPANS = 1 << 17
# The lane of work that main could do as well.
ASSIST = "assist"


class Lanes:
    """Queues of work that run in parallel to the main thread.

    `submit` returns at once. A task waits for the handles among its arguments and, by the order
    of submission, for tasks that write what it reads (read after write) or read or write what
    it writes (write after read, write after write). On one lane, tasks run in that order.

    On a CPU each lane is a thread with its own number of intra-op threads; on CUDA a stream with
    a priority, and tasks are launched when they are submitted. Tasks run without autograd.

    What a task raises is raised by its handle's `wait()` or the next `flush()`, with its name
    and the submitting line; tasks that need its result fail too, others go on.

    Attributes:
        step: Optimizer update that the spans of tasks submitted from now on belong to.

    Args:
        lanes: The lanes there are; unset for `assist`, `comm`, `copy` and `host`.
        device: Where the main work runs.
        max_spans: Spans that each lane keeps; the oldest go first.

    Examples:
        >>> with Lanes() as lanes:
        ...     total = lanes.submit(torch.add, torch.ones(2), 1.0)
        ...     lanes.submit(torch.mul, total, 3.0, lane="copy").wait().tolist()
        [6.0, 6.0]
    """

    def __init__(
        self,
        lanes: Mapping[str, Lane] = DEFAULT_LANES,
        *,
        device: torch.device | str = "cpu",
        max_spans: int = MAX_SPANS,
    ) -> None:
        if not lanes:
            raise ValueError("lanes must hold at least one lane, got none")
        device = torch.device(device)
        num_threads = torch.get_num_threads()
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self.step = 0
        self._rank = rank
        self._main: deque[Span] = deque(maxlen=max_spans)
        self._board = Board()
        self._hazards = Hazards()
        self._submission = threading.Lock()
        self._is_closed = False
        self._lanes: dict[str, ThreadLane | StreamLane] = {
            name: StreamLane(lane, self._board, rank, max_spans, device)
            if device.type == "cuda" and not lane.is_host
            else ThreadLane(name, lane, self._board, rank, max_spans)
            for name, lane in lanes.items()
        }
        for queue in self._lanes.values():
            if isinstance(queue, ThreadLane):
                queue.has_begun.wait()
        # What was set last is what threads that come later take over.
        torch.set_num_threads(num_threads)
        # Threads hold their lane, not this, so that lanes that are forgotten end.
        self._finalizer = weakref.finalize(self, _close, list(self._lanes.values()))

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        lane: str = "assist",
        kind: Kind = Kind.COMPUTE,
        name: str = "",
        reads: Sequence[Any] = (),
        writes: Sequence[Any] = (),
        after: Iterable[Handle] = (),
    ) -> Handle:
        """Queue `function(*args)` and return at once.

        Args:
            function: What to run. It must not wait for handles.
            *args: Passed on; a handle stands for the result of its task.
            lane: Where.
            kind: Of its span.
            name: Of its span; unset for the function's.
            reads: Tensors, or handles, whose values it needs; a view counts as its whole storage.
            writes: Tensors, or handles, that it changes.
            after: Tasks that must end first.

        Returns:
            A handle, usable as an argument of later tasks.

        Raises:
            ValueError: If the lane does not exist.
            RuntimeError: If the lanes are closed.
            GraphError: If two threads submit writers of one tensor that nothing orders.
        """
        queue = self._lanes.get(lane)
        if queue is None:
            raise ValueError(
                f"lane {lane!r} does not exist; the lanes are {', '.join(self._lanes)}"
            )
        frame, thread = sys._getframe(1), threading.get_ident()
        name = name or getattr(function, "__name__", "task")
        info = TaskInfo(name, lane, kind, self.step, thread, frame.f_code, frame.f_lineno)
        task = LaneTask(function, args, info)
        handle = Handle(task, self._board)
        task.before = [argument.task for argument in args if type(argument) is Handle]
        task.before += [earlier.task for earlier in after]
        with self._submission:
            if self._is_closed:
                raise RuntimeError(f"task {task} was submitted after close(); make new Lanes")
            if reads or writes:
                task.before += self._hazards.order(task, reads, writes)
            queue.accept(task)
        queue.make_room(task)
        return handle

    def help(self, lane: str, *, most: int | None = None) -> int:
        """Run queued tasks of `lane` in the calling thread; return how many.

        Args:
            lane: Whose.
            most: At most so many; unset to go on until its queue is empty.
        """
        queue, num_run = self._lanes[lane], 0
        if isinstance(queue, ThreadLane):
            with torch.no_grad():
                while num_run != most and queue.help():
                    num_run += 1
        return num_run

    def flush(self, lane: str | None = None) -> None:
        """Wait for all tasks of `lane`, or of all lanes.

        On CUDA streams the current stream waits, the host does not.

        Raises:
            TaskError: What the first task that failed raised.
            RuntimeError: If called inside a task.
        """
        if threading.get_ident() in self._board.workers:
            raise RuntimeError("a task must not wait; pass handles to `submit` instead")
        markers = []
        for queue in self._lanes.values() if lane is None else (self._lanes[lane],):
            if isinstance(queue, StreamLane):
                queue.join()
            elif not (queue.is_unused or self._is_closed):
                markers.append(queue.marker())
        for marker in markers:
            self._board.wait_for(marker)
        self._board.raise_error()

    @contextmanager
    def span(self, name: str, kind: Kind = Kind.COMPUTE) -> Iterator[None]:
        """Record what the calling thread does in the block, on lane `main`, as the host sees it."""
        begin_s = now_s()
        try:
            yield
        finally:
            duration_s = now_s() - begin_s
            self._main.append(Span(self._rank, "main", kind, name, begin_s, duration_s, self.step))

    def cancel(self) -> int:
        """Cancel every task that has not begun; return how many."""
        queues = [queue for queue in self._lanes.values() if isinstance(queue, ThreadLane)]
        return sum(queue.cancel() for queue in queues)

    def timeline(self) -> Timeline:
        """Return the spans of the tasks that have ended, and of `span`, as measured."""
        spans = [span for queue in self._lanes.values() for span in queue.spans()]
        spans += list(self._main)
        return Timeline.from_spans("measured", sorted(spans, key=lambda span: span.start_s))

    def close(self) -> None:
        """Finish what is queued and end the threads; errors are raised as by `flush`."""
        self._end()
        self._board.raise_error()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[1] is None:
            self.close()
        else:  # Which is the one that the user is to see.
            self.cancel()
            self._end()

    def _end(self) -> None:
        with self._submission:
            self._is_closed = True
        self._finalizer()


def _close(queues: Sequence[ThreadLane | StreamLane]) -> None:
    for queue in queues:
        queue.close()
