"""One task of a lane: what is known of it until it has run, and how others wait for it."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from paceline.errors import TaskError
from paceline.timeline import Kind, Span

MAX_ERRORS = 16
# The time of spans on the host.
now_s = perf_counter


class _CancelledError(TaskError):
    """Raised where the task itself is waited for, and nowhere else."""


class TaskInfo(NamedTuple):
    """What a task is called, for its span, and who submitted it, for messages."""

    name: str
    lane: str
    kind: Kind
    step: int
    thread: int
    code: CodeType
    line: int


def span_of(rank: int, info: TaskInfo, begin_s: float, duration_s: float) -> Span:
    """Return the span of a task that has run."""
    return Span(rank, info.lane, info.kind, info.name, begin_s, duration_s, info.step)


@dataclass(slots=True, eq=False)
class LaneTask:
    """What a lane runs. After it has run it holds no tensor, so that tables may keep it."""

    function: Callable[..., Any]
    args: Sequence[Any]
    info: TaskInfo
    before: list["LaneTask"] = field(default_factory=list)
    cell: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    event: torch.cuda.Event | None = None
    is_done: bool = False
    is_claimed: bool = False
    is_awaited: bool = False

    def __str__(self) -> str:
        name, lane, *_, code, line = self.info
        return f"{name!r} (lane {lane!r}, submitted at {code.co_filename}:{line})"

    def call(self) -> None:
        """Run the function; what it raises is kept."""
        failed = next((earlier for earlier in self.before if earlier.error is not None), None)
        try:
            if failed is not None:
                kind = type(failed.error) if isinstance(failed.error, TaskError) else TaskError
                raise kind(f"not run, because {failed} failed")
            self.cell.append(self.function(*map(_value, self.args)))
        except BaseException as error:  # Raised where the task is waited for.
            self.error = error

    def forget(self) -> None:
        """Let go of all that it held; handles keep the result."""
        self.function, self.args, self.before, self.cell = _nothing, (), [], []


class Board:
    """How the lanes of one executor wait for each other, and where errors are kept.

    A task carries the flag whether anybody waits for it, so that ending a task that nobody
    waits for costs no lock.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workers: set[int] = set()
        self._condition = threading.Condition(threading.Lock())
        self._failed: deque[LaneTask] = deque(maxlen=MAX_ERRORS)

    def wait_for(self, task: LaneTask) -> None:
        """Block until `task` has ended, on the host."""
        if task.is_done:
            return
        # Set before the check below, and read after `is_done` is set: one of both sees the other.
        task.is_awaited = True
        with self._condition:
            while not task.is_done:
                self._condition.wait()

    def claim(self, task: LaneTask) -> bool:
        """Tell whether the caller, and nobody else, is to run or cancel the task."""
        with self.lock:
            was_claimed, task.is_claimed = task.is_claimed, True
        return not was_claimed

    def cancel(self, task: LaneTask) -> bool:
        """Keep the task from running, if it has not begun; tell whether."""
        if not self.claim(task):
            return False
        task.error = _CancelledError("cancelled before it ran")
        self.end(task)
        return True

    def end(self, task: LaneTask) -> None:
        """Note that the task has ended, and wake those who wait for it."""
        if task.error is not None and not isinstance(task.error, _CancelledError):
            self._failed.append(task)
        task.forget()
        task.is_done = True
        if task.is_awaited:
            with self._condition:
                self._condition.notify_all()

    def raise_error(self, task: LaneTask | None = None) -> None:
        """Raise what `task`, or else the first task that failed, raised; then it is forgotten."""
        if task is None:
            if not self._failed:
                return
            task = self._failed[0]
            self._failed.clear()
        elif task in self._failed:
            self._failed.remove(task)
        if task.error is None:
            return
        error = task.error
        raise TaskError(f"task {task}: {type(error).__name__}: {error}") from error


class Handle:
    """A submitted task; pass it to `submit` in place of its result."""

    __slots__ = ("_board", "_cell", "task")

    def __init__(self, task: LaneTask, board: Board) -> None:
        self.task, self._board, self._cell = task, board, task.cell

    def __repr__(self) -> str:
        state = "done" if self.task.is_done else "pending"
        return f"Handle({self.task.info.name!r}, lane={self.task.info.lane!r}, {state})"

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.info.name

    @property
    def lane(self) -> str:
        """Lane that it runs on."""
        return self.task.info.lane

    @property
    def is_done(self) -> bool:
        """Whether it has ended; for a CUDA stream, whether it was launched."""
        return self.task.is_done

    @property
    def value(self) -> Any:
        """What it returned; only where the order makes sure that it has run."""
        return self._cell[0]

    def wait(self) -> Any:
        """Wait for the task and return its result.

        On a CUDA stream the current stream waits, the host does not.

        Raises:
            TaskError: If it raised, was cancelled, or a task that it needs failed.
            RuntimeError: If called inside a task, which could wait for itself.
        """
        if threading.get_ident() in self._board.workers:
            raise RuntimeError(
                f"a task must not wait for {self.task}; pass its handle to `submit` instead"
            )
        self._board.wait_for(self.task)
        self._board.raise_error(self.task)
        if self.task.event is not None:
            torch.cuda.current_stream().wait_event(self.task.event)
            keep_on_stream(self._cell)
        return self._cell[0]

    def cancel(self) -> bool:
        """Keep the task from running; tell whether that was still possible.

        Tasks that need its result are cancelled, too.
        """
        return self._board.cancel(self.task)


def keep_on_stream(values: Any, stream: torch.cuda.Stream | None = None) -> None:
    """Tell the allocator that `stream`, or else the current one, uses the tensors in `values`."""
    for value in tree_leaves(values):
        if isinstance(value, Handle):
            keep_on_stream(value._cell, stream)
        elif isinstance(value, torch.Tensor) and value.is_cuda:
            value.record_stream(stream or torch.cuda.current_stream(value.device))


def _value(argument: Any) -> Any:
    return argument.value if type(argument) is Handle else argument


def _nothing() -> None:
    return None
