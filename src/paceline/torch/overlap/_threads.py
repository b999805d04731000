"""A lane that is a thread of its own, with its own number of intra-op threads."""

import os
import sys
import threading
from collections import deque
from queue import Empty, SimpleQueue

import torch

from paceline.overlap import Lane
from paceline.timeline import Kind, Span
from paceline.torch.overlap._task import Board, LaneTask, TaskInfo, now_s, span_of


class ThreadLane:
    """Runs its tasks in the order of submission. The thread ends with `close`."""

    def __init__(self, name: str, lane: Lane, board: Board, rank: int, max_spans: int) -> None:
        self._lane, self._board, self._rank = lane, board, rank
        self._mark_info = TaskInfo("", name, Kind.COMPUTE, 0, 0, _mark.__code__, 0)
        self._queue: SimpleQueue[LaneTask | None] = SimpleQueue()
        self._window: deque[LaneTask] = deque()
        self._spans: deque[tuple[TaskInfo, float, float]] = deque(maxlen=max_spans)
        self.is_unused = True
        self.has_begun = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"paceline-{name}")
        self._thread.start()

    def accept(self, task: LaneTask) -> None:
        """Queue the task."""
        self.is_unused = False
        self._queue.put(task)

    def make_room(self, task: LaneTask) -> None:
        """Wait until at most `max_pending` tasks, this one included, have not ended."""
        if self._lane.max_pending is None or threading.get_ident() in self._board.workers:
            return
        self._window.append(task)
        if len(self._window) > self._lane.max_pending:
            self._board.wait_for(self._window.popleft())

    def marker(self) -> LaneTask:
        """Return a task that ends when the thread has done all before it."""
        mark = LaneTask(_mark, (), self._mark_info)
        self._queue.put(mark)
        return mark

    def help(self) -> bool:
        """Run the next queued task in the calling thread; tell whether there was one."""
        task = self._next()
        if task is not None:
            self._execute(task)
        return task is not None

    def cancel(self) -> int:
        """Cancel all that has not begun; return how many."""
        num_cancelled = 0
        while (task := self._next()) is not None:
            if task.function is _mark:
                self._board.end(task)
            else:
                num_cancelled += self._board.cancel(task)
        return num_cancelled

    def spans(self) -> list[Span]:
        """Return what it did, oldest first."""
        return [
            span_of(self._rank, info, begin_s, end_s - begin_s)
            for info, begin_s, end_s in list(self._spans)
        ]

    def close(self) -> None:
        """Run what is queued, then end the thread."""
        self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _next(self) -> LaneTask | None:
        """Take the next task off the queue, if there is one."""
        try:
            task = self._queue.get_nowait()
        except Empty:
            return None
        if task is None:  # Meant for the thread, which it ends.
            self._queue.put(None)
        return task

    def _run(self) -> None:
        set_own_threads(self._lane.num_threads)
        torch.set_grad_enabled(False)
        if self._lane.niceness and sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _niceness(self._lane))
        self._board.workers.add(threading.get_ident())
        self.has_begun.set()
        try:
            while (task := self._queue.get()) is not None:
                self._execute(task)
        finally:
            self._board.workers.discard(threading.get_ident())

    def _execute(self, task: LaneTask) -> None:
        board = self._board
        for earlier in task.before:
            if not earlier.is_done:
                board.wait_for(earlier)
            if earlier.event is not None:
                earlier.event.synchronize()
        if task.function is _mark:
            board.end(task)
            return
        if not board.claim(task):
            return
        begin_s = now_s()
        task.call()
        self._spans.append((task.info, begin_s, now_s()))
        board.end(task)


def set_own_threads(num_threads: int) -> None:
    """Set the intra-op threads of the calling thread, for good.

    A thread takes over what any thread set last when it first asks, so it must have asked.
    """
    torch.get_num_threads()
    torch.set_num_threads(num_threads)


def _niceness(lane: Lane) -> int:
    return min(19, os.getpriority(os.PRIO_PROCESS, 0) + lane.niceness)


def _mark() -> None:
    """Stand for no work in a marker."""
