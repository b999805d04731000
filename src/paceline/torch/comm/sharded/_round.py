"""Where the gradients of one step are, when each rank keeps only its own parts of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed as dist

from paceline.torch.comm.habits import WithheldGradients
from paceline.torch.comm.sharded._layout import ShardLayout, ShardPayload
from paceline.torch.comm.transfer import Route, Trained


class ShardRoute:
    """A plan's payloads cut to segments, and the order in which they come back; fixed over steps.

    Args:
        route: The plan.
        layout: Who owns what.
        parameters: All that are trained.
        urgency: Per parameter, the most urgent lowest.
    """

    def __init__(
        self,
        route: Route,
        layout: ShardLayout,
        parameters: Sequence[torch.Tensor],
        urgency: Sequence[int],
    ) -> None:
        planned = layout.payloads(route.payloads)
        self.num_planned = len(planned)
        self.outside = route.outside
        self.payloads = [*planned, *layout.payloads(route.detour)]
        self.num_blocks = route.num_blocks
        self.payloads_of: list[list[int]] = [[] for _ in parameters]
        for number, payload in enumerate(self.payloads):
            for tensor in payload.tensors:
                self.payloads_of[tensor].append(number)
        first = [min(urgency[tensor] for tensor in payload.tensors) for payload in self.payloads]
        self.by_need = sorted(range(len(first)), key=lambda number: (first[number], number))


@dataclass(slots=True, eq=False)
class ShardFlight:
    """A collective under way."""

    payload: ShardPayload
    rows: torch.Tensor
    row: torch.Tensor
    work: dist.Work


class ShardRound:
    """The gradients of one step.

    Attributes:
        sources: What `.grad` held when it became ready, until it is sent.
        local: The same and its version, to notice when the user changes it.
        next: Payload to be sent next.
        parts: Per payload, the own row of means, once landed.
        is_used: Per parameter, whether any rank has a gradient, once known.
        num_left: Per parameter, payloads that have not come back.
        is_over: Whether this rank's backward pass has ended.
        is_released: Whether updates may begin, because `step()` was called.
    """

    def __init__(self, route: ShardRoute) -> None:
        num_tensors = len(route.payloads_of)
        self.route = route
        self.sources: list[torch.Tensor | None] = [None] * num_tensors
        self.local: list[tuple[torch.Tensor, int] | None] = [None] * num_tensors
        self.events: list[torch.cuda.Event | None] = [None] * num_tensors
        self.is_ready = [False] * num_tensors
        self.num_unready = [len(payload.tensors) for payload in route.payloads]
        self.next = 0
        self.parts: dict[int, torch.Tensor] = {}
        self.is_used: list[bool] = []
        self.num_left = [len(numbers) for numbers in route.payloads_of]
        self.is_over = False
        self.is_released = False
        self.release_event: torch.cuda.Event | None = None

    def note_ready(
        self, tensor: int, gradient: torch.Tensor | None, event: torch.cuda.Event | None
    ) -> None:
        """Take the gradient."""
        self.is_ready[tensor] = True
        self.sources[tensor], self.events[tensor] = gradient, event
        self.local[tensor] = None if gradient is None else (gradient, gradient._version)
        for number in self.route.payloads_of[tensor]:
            self.num_unready[number] -= 1

    def sendable(self) -> list[int]:
        """Take the planned payloads that are complete and next in order."""
        begin = self.next
        while self.next < self.route.num_planned and not self.num_unready[self.next]:
            self.next += 1
        return list(range(begin, self.next))

    def has_changed(self, tensor: int, gradient: torch.Tensor | None) -> bool:
        """Whether `gradient` is not what became ready."""
        local = self.local[tensor]
        if local is None or gradient is None:
            return (local is None) != (gradient is None)
        return gradient is not local[0] or gradient._version != local[1]


def withheld(trained: Trained) -> WithheldGradients:
    """Refuse reads of `.grad`, which would be taken for an average."""

    def refuse() -> None:
        raise ValueError(
            f"rank {trained.rank}: with sharded=True only parts of the averaged gradients exist, "
            "and .grad would be this rank's own; use model.clip_grad_norm_() (it returns the "
            "norm) and no GradScaler, or sharded=False"
        )

    return WithheldGradients(trained.parameters, refuse, may_drop=True)
