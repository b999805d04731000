"""Where the gradients of one step are: in the backward pass, on the wire, landed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed as dist

from paceline.torch.comm.transfer import Payload, Route

# The last block's controls: does a tensor outside the plan have a gradient, and does a rank
# need all gradients before the first update?
NUM_CONTROLS = 2
OUTSIDE, MUST_WAIT = range(NUM_CONTROLS)


@dataclass(slots=True, eq=False)
class Flight:
    """A collective under way."""

    payload: Payload
    buffer: torch.Tensor
    work: dist.Work
    done: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """What `step()` found.

    Attributes:
        event: What the device has to do before updates may begin.
        override: Gradients that the user put in place between backward pass and step.
    """

    event: torch.cuda.Event | None
    override: dict[int, torch.Tensor | None]


class Round:
    """The gradients of one step.

    Attributes:
        local: What `.grad` held when it became ready.
        reduced: Mean over ranks, once landed; None where no rank has a gradient.
        next: Payload to be sent next.
        landed: Tensors that have landed and are not updated yet.
        is_over: Whether this rank's backward pass has ended.
        release: Since `step()` was called, so that updates may begin; None before.
    """

    def __init__(self, route: Route) -> None:
        num_tensors = len(route.payloads_of)
        self.route = route
        self.payloads = list(route.payloads)
        self.local: list[torch.Tensor | None] = [None] * num_tensors
        self.sources: list[torch.Tensor | None] = [None] * num_tensors
        self.reduced: list[torch.Tensor | None] = [None] * num_tensors
        self.events: list[torch.cuda.Event | None] = [None] * num_tensors
        self.is_ready = [False] * num_tensors
        self.num_unready = [len(payload.tensors) for payload in self.payloads]
        self.pieces_left = [0] * num_tensors
        self._expect(self.payloads)
        self.next = 0
        self.flying: list[Flight] = []
        self.landed: list[int] = []
        self.is_over = False
        self.release: Release | None = None

    @property
    def is_reduced(self) -> bool:
        """Whether everything has landed."""
        return self.is_over and self.next == len(self.payloads) and not self.flying

    @property
    def next_is_last(self) -> bool:
        """Whether the payload to be sent next carries the controls."""
        return self.next == len(self.route.payloads) - 1

    @property
    def may_send(self) -> bool:
        """Whether the next payload is complete; the last needs the end of the backward pass."""
        if self.next == len(self.payloads):
            return False
        if self.next >= len(self.num_unready):
            return self.is_over
        return self.num_unready[self.next] == 0 and (self.is_over or not self.next_is_last)

    def note_ready(
        self, tensor: int, gradient: torch.Tensor | None, event: torch.cuda.Event | None
    ) -> bool:
        """Take the gradient; tell whether a payload is complete now."""
        self.is_ready[tensor] = True
        self.local[tensor] = self.sources[tensor] = gradient
        self.events[tensor] = event
        is_complete = False
        for number in self.route.payloads_of[tensor]:
            self.num_unready[number] -= 1
            is_complete |= self.num_unready[number] == 0
        return is_complete

    def take_detour(self) -> None:
        """Send what the plan left out too: some rank has a gradient for it."""
        self.payloads.extend(self.route.detour)
        self._expect(self.route.detour)

    def gradient_of(self, tensor: int) -> torch.Tensor | None:
        """Return what the optimizer is to see."""
        mean = self.reduced[tensor]
        return mean if self.release is None else self.release.override.get(tensor, mean)

    def _expect(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            for piece in payload.pieces:
                self.pieces_left[piece.tensor] += 1
