"""A lane that is a CUDA stream: the thread that submits a task launches it."""

from collections import deque

import torch

from paceline.overlap import Lane
from paceline.timeline import Span
from paceline.torch.overlap._task import Board, LaneTask, TaskInfo, keep_on_stream, now_s, span_of

Mark = tuple[TaskInfo, torch.cuda.Event, torch.cuda.Event]


class StreamLane:
    """Launches each task on a stream of its own as soon as it is submitted.

    The stream waits for what the submitting stream had queued until then and for the tasks that
    this one needs; the host waits only for needed tasks that run in a thread. Under graph
    capture the same events become edges of the graph, and no spans are taken.
    """

    def __init__(
        self, lane: Lane, board: Board, rank: int, max_spans: int, device: torch.device
    ) -> None:
        self._board, self._rank = board, rank
        self._stream = torch.cuda.Stream(device, priority=lane.priority)
        self._max_pending = lane.max_pending
        self._window: deque[torch.cuda.Event] = deque()
        self._marks: deque[Mark] = deque(maxlen=max_spans)
        self._origin = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        self._origin.record(self._stream)
        self._origin_s = now_s()
        self._last: torch.cuda.Event | None = None

    def accept(self, task: LaneTask) -> None:
        """Launch the task."""
        is_capturing = torch.cuda.is_current_stream_capturing()
        self._stream.wait_stream(torch.cuda.current_stream())
        for earlier in task.before:
            self._board.wait_for(earlier)
            if earlier.event is not None:
                self._stream.wait_event(earlier.event)
        begin = torch.cuda.Event(enable_timing=not is_capturing)
        end = torch.cuda.Event(enable_timing=not is_capturing)
        self._board.claim(task)
        with torch.cuda.stream(self._stream), torch.no_grad():
            begin.record()
            keep_on_stream(task.args, self._stream)
            task.call()
            end.record()
        task.event = self._last = end
        if not is_capturing:
            self._marks.append((task.info, begin, end))
        self._board.end(task)

    def make_room(self, task: LaneTask) -> None:
        """Hold the host back while the device has `max_pending` tasks of this lane to do."""
        if self._max_pending is None or task.event is None:
            return
        if torch.cuda.is_current_stream_capturing():
            return
        self._window.append(task.event)
        if len(self._window) > self._max_pending:
            self._window.popleft().synchronize()

    def join(self) -> None:
        """Let the current stream wait for all that was launched."""
        if self._last is not None:
            torch.cuda.current_stream().wait_event(self._last)

    def spans(self) -> list[Span]:
        """Wait for the device and return what the lane did, oldest first."""
        self._stream.synchronize()
        return [
            span_of(
                self._rank,
                info,
                self._origin_s + self._origin.elapsed_time(begin) / 1e3,
                begin.elapsed_time(end) / 1e3,
            )
            for info, begin, end in self._marks
        ]

    def close(self) -> None:
        """Wait for the device."""
        self._stream.synchronize()
