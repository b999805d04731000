"""When each part of a pass began, and with how many threads it runs."""

from collections import deque

import torch

from paceline.overlap import Threads
from paceline.timeline import Kind, Span, Timeline
from paceline.torch.model import Clock
from paceline.torch.overlap._lanes import ASSIST, MAX_SPANS, Lanes
from paceline.torch.overlap.split._find_plan import MeasuredPass


class PassRecord:
    """Times of the pass that is under way, and the spans on main of those that have ended.

    Attributes:
        is_open: Whether a pass is under way.
        is_foreign: Whether it runs inside DistributedDataParallel.
        num_foreign: Forward passes that did.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[object] = []
        self._names: list[str] = []
        self._spans: deque[Span] = deque(maxlen=MAX_SPANS)
        self.is_open = self.is_foreign = False
        self.num_foreign = 0

    def begin(self, *, is_foreign: bool) -> None:
        """Note that a forward pass begins."""
        self.is_open, self.is_foreign = True, is_foreign
        self._marks, self._names = [self._clock.mark()], []

    def mark(self, name: str | None = None) -> None:
        """Note that the backward pass begins, or that layer `name` is done with one part of it."""
        if self.is_open:
            self._marks.append(self._clock.mark())
            self._names += [name] if name is not None else []

    def end(self, step: int) -> MeasuredPass | None:
        """Note the end of a backward pass; return what was measured since its forward pass."""
        if not self.is_open:
            return None
        self.mark()
        self.is_open = False
        start_s = self._clock.seconds(self._marks)
        self._add_span(Kind.FORWARD, "forward", start_s[0], start_s[1], step)
        self._add_span(Kind.BACKWARD, "backward", start_s[1], start_s[-1], step)
        return MeasuredPass(start_s, self._names)

    def timeline(self) -> Timeline:
        """Return the spans of the passes."""
        return Timeline.from_spans("measured", self._spans)

    def _add_span(self, kind: Kind, name: str, begin_s: float, end_s: float, step: int) -> None:
        self._spans.append(Span(0, "main", kind, name, begin_s, end_s - begin_s, step))


class ThreadCounts:
    """Intra-op threads of main, phase by phase, and of the assist lane."""

    def __init__(self, lanes: Lanes, device: torch.device) -> None:
        self._lanes, self._is_cpu = lanes, device.type == "cpu"
        self._assist = 1
        self.own = torch.get_num_threads()

    def begin_forward(self, threads: Threads | None) -> None:
        """Remember how many main has, and set those of the forward pass."""
        self.own = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads.forward)

    def restore(self) -> None:
        """Give main its own number back."""
        torch.set_num_threads(self.own)

    def set_assist(self, threads: Threads | None) -> None:
        """Set those of the assist lane, for the passes from now on."""
        number = (threads or Threads()).assist
        if self._is_cpu and number != self._assist:
            self._assist = number
            self._lanes.submit(torch.set_num_threads, number, lane=ASSIST)
