"""Execute a block plan beside the main thread: send, take in, update."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import distributed as dist

from paceline.torch.comm.habits import WithheldGradients
from paceline.torch.comm.transfer import PendingUpdates, Route, Trained, WaitRequest, Worker
from paceline.torch.comm.whole._payload import pack, unpack
from paceline.torch.comm.whole._round import (
    MUST_WAIT,
    NUM_CONTROLS,
    OUTSIDE,
    Flight,
    Release,
    Round,
)
from paceline.torch.model import PartialUpdate

# One update call takes landed tensors up to this size, so that sending is never held up long.
UPDATE_BYTES = 1 << 20


class BlockExecutor:
    """Sends gradients as a plan says, while the main thread computes.

    The worker prefers sending over taking in over updating, so the wire is kept busy.
    Payloads go out in the order of the plan, equal on all ranks; `num_in_flight` of them
    may be under way. Each carries a flag per piece (does this rank have a gradient?), and
    the last one controls that any rank can raise: a tensor outside the plan has a
    gradient, and whether a rank needs all gradients before the first update.

    What fails in the worker is raised by the next call that waits.

    Args:
        trained: The parameters, and the ranks that average their gradients.
        update: Updates some of them at a time.
        worker: Not started yet.
        num_in_flight: Collectives that may be under way at once.
        wire: Type that wider gradients are sent in; None for their own.
    """

    has_whole_gradients = True

    def __init__(
        self,
        trained: Trained,
        update: PartialUpdate,
        worker: Worker,
        *,
        num_in_flight: int,
        wire: torch.dtype | None = None,
    ) -> None:
        self.wire = wire
        self._trained, self._update, self._worker = trained, update, worker
        self._num_in_flight = num_in_flight
        self._round: Round | None = None
        self._route = Route([], trained.parameters)
        self._request = WaitRequest()
        self._pending = PendingUpdates(trained, worker)
        self._urgency = list(range(len(trained.parameters)))
        self._withheld = WithheldGradients(trained.parameters, self.flush)
        self._watcher = Worker(trained.device, "paceline-wire", worker.condition)
        self._watcher.start()
        worker.start(self._choose, self._wait_for_wire)

    # What the main thread calls.

    def use(self, route: Route, order: Sequence[int]) -> None:
        """Take `route` from the next backward pass on; tensors in `order` are updated so."""
        self._route = route
        for place, tensor in enumerate(order):
            self._urgency[tensor] = place - len(order)

    def ask_to_wait(self) -> None:
        """Ask all ranks to wait for all gradients; sent with the next last block."""
        self._request.is_asked = True

    @property
    def has_open_round(self) -> bool:
        """Whether a backward pass has begun whose gradients no step has taken yet."""
        return self._round is not None and self._round.release is None

    def end_round(self) -> bool:
        """Finish what was begun; tell once, on all ranks alike, whether one asked to wait."""
        if self._round is not None and not self._round.is_over:
            self.finish()
        self.flush()
        return self._request.take()

    def begin(self) -> None:
        """Open a backward pass; `end_round` comes first."""
        self._withheld.let_go()
        with self._worker.condition:
            self._round = Round(self._route)

    def note_ready(self, tensor: int) -> None:
        """Take the gradient of one parameter."""
        gradient, current = self._trained.gradient(tensor), self._open_round()
        with self._worker.condition:
            if current.note_ready(tensor, gradient, self._worker.streams.mark()):
                self._worker.condition.notify_all()

    def finish(self) -> None:
        """End the backward pass: gradients that did not come will not come."""
        current, streams = self._open_round(), self._worker.streams
        with self._worker.condition:
            for tensor, is_ready in enumerate(current.is_ready):
                if not is_ready:
                    gradient = self._trained.parameters[tensor].grad
                    current.note_ready(tensor, gradient, streams.mark())
            current.is_over = True
            self._worker.condition.notify_all()
        self._withheld.hold()

    def deliver(self) -> None:
        """Wait for all gradients, and put the means where the parameters' own were."""
        current, streams = self._open_round(), self._worker.streams
        self._withheld.let_go()
        self._worker.wait(lambda: current.is_reduced)
        streams.wait(self._pending.event)
        for tensor, parameter in enumerate(self._trained.parameters):
            streams.keep(current.reduced[tensor])
            if parameter.grad is current.local[tensor]:
                parameter.grad = current.local[tensor] = current.reduced[tensor]

    def clip(self, max_norm: float, norm_type: float) -> torch.Tensor:
        """Clip the averaged gradients as `torch.nn.utils.clip_grad_norm_` does."""
        if self.has_open_round:
            self.deliver()
        return torch.nn.utils.clip_grad_norm_(self._trained.parameters, max_norm, norm_type)

    def release(self) -> None:
        """Let updates begin; `.grad` is cleared, and nothing that is put there counts."""
        current, override = self._open_round(), {}
        self._withheld.let_go()
        with self._worker.condition:
            for tensor, parameter in enumerate(self._trained.parameters):
                if parameter.grad is not current.local[tensor]:
                    override[tensor] = parameter.grad
                parameter.grad = current.local[tensor] = None
            self._pending.begin()
            current.release = Release(self._worker.streams.mark(), override)
            self._worker.condition.notify_all()

    def retire(self) -> None:
        """Close the round without updates: the caller has applied them."""
        with self._worker.condition:
            self._round = None

    def wait_updated(self, tensors: Collection[int]) -> None:
        """Wait until the optimizer has updated `tensors`."""
        self._pending.wait(tensors)

    def flush(self) -> None:
        """Finish what is under way: updates after a step, else gradients after a backward pass."""
        current = self._round
        if current is not None and current.release is not None:
            self._worker.wait(lambda: not self._pending.num and current.is_reduced)
            self._worker.streams.wait(self._pending.event)
        elif current is not None and current.is_over:
            self.deliver()

    def optimizer_state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's state on rank 0, {} on others."""
        return optimizer.state_dict() if self._trained.rank == 0 else {}

    def give_back(self) -> None:
        """Do nothing: the optimizer has its whole state."""

    def close(self) -> None:
        """Finish what other ranks may wait for, within 10 s, and end the threads."""
        self._withheld.let_go()
        current = self._round
        is_own = self._worker.is_current or self._watcher.is_current
        self._worker.close(lambda: is_own or current is None or not self._is_owed(current))
        self._watcher.close(lambda: is_own or self._watcher.is_idle)

    def _open_round(self) -> Round:
        if self._round is None:
            raise AssertionError("no backward pass has begun")
        return self._round

    def _is_owed(self, current: Round) -> bool:
        return current.is_over and not (current.is_reduced and not self._pending.num)

    # What the worker does.

    def _choose(self) -> Callable[[], None] | None:
        current = self._round
        if current is None:
            return None
        if len(current.flying) < self._num_in_flight and current.may_send:
            return partial(self._send, current)
        for flight in current.flying:
            if flight.done:
                return partial(self._land, current, flight)
        if current.release is not None and current.landed:
            return partial(self._apply, current, current.release)
        return None

    def _send(self, current: Round) -> None:
        payload, trained = current.payloads[current.next], self._trained
        outside = any(current.sources[tensor] is not None for tensor in current.route.outside)
        is_last = current.next_is_last
        controls = [float(outside), float(self._request.is_asked)] if is_last else []
        for tensor in payload.tensors:
            self._worker.streams.wait(current.events[tensor])
        share = 1.0 / trained.num_ranks
        buffer = pack(payload, trained.parameters, current.sources, share, controls, self.wire)
        with trained.sending(payload, current.route.num_blocks):
            work = dist.all_reduce(buffer, group=trained.group, async_op=True)
        flight = Flight(payload, buffer, work)
        with self._worker.condition:
            current.next += 1
            current.flying.append(flight)
        self._watcher.submit(partial(_watch, flight))

    def _wait_for_wire(self) -> None:
        """Let collectives end: who waits for one cannot return to an interpreter that is gone."""
        self._watcher.wait_idle()

    def _land(self, current: Round, flight: Flight) -> None:
        with self._trained.sending(flight.payload, current.route.num_blocks):
            flight.work.wait()
        landed, controls = unpack(flight, current, self._trained.parameters)
        self._pending.event = self._worker.streams.mark()
        with self._worker.condition:
            current.flying.remove(flight)
            current.landed.extend(landed)
            if len(controls) == NUM_CONTROLS:
                self._request.is_heard |= controls[MUST_WAIT] > 0
                if controls[OUTSIDE] > 0:
                    current.take_detour()
                else:
                    current.landed.extend(current.route.outside)

    def _apply(self, current: Round, release: Release) -> None:
        batch = self._most_urgent(current)
        parameters = [self._trained.parameters[tensor] for tensor in batch]
        self._worker.streams.wait(release.event)
        self._update.apply(parameters, [current.gradient_of(tensor) for tensor in batch])
        self._pending.event = self._worker.streams.mark()
        with self._worker.condition:
            for tensor in batch:
                current.reduced[tensor] = None
            self._pending.end(batch)

    def _most_urgent(self, current: Round) -> list[int]:
        """Take landed tensors off the round, those that the forward pass needs first."""
        batch, num_bytes = [], 0
        current.landed.sort(key=lambda tensor: -self._urgency[tensor])
        while current.landed and num_bytes < UPDATE_BYTES:
            tensor = current.landed.pop()
            num_bytes += self._trained.parameters[tensor].nbytes
            batch.append(tensor)
        return batch


def _watch(flight: Flight) -> None:
    """Note when a collective has ended.

    A callback on its future would run in a thread of gloo, and abort the interpreter if
    that goes down just then.
    """
    with suppress(RuntimeError):  # Raised again where it lands.
        flight.work.wait()
    flight.done = True
