"""Walk a block plan in a thread of its own: send, take in, update."""

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from queue import SimpleQueue

import torch
from torch import distributed as dist

from paceline.errors import TransferError
from paceline.torch.comm.whole._layout import Payload
from paceline.torch.comm.whole._payload import pack, unpack
from paceline.torch.comm.whole._round import (
    MUST_WAIT,
    NUM_CONTROLS,
    OUTSIDE,
    Flight,
    Round,
    Route,
    dense_gradient,
)
from paceline.torch.comm.whole._transfer_failure import transfer_failure
from paceline.torch.comm.whole._waiting import Waiting
from paceline.torch.model import PartialUpdate, StreamOrder

# One update call takes landed tensors up to this size, so that sending is never held up long.
UPDATE_BYTES = 1 << 20
CLOSE_TIMEOUT_S = 10.0


class BlockExecutor(Waiting):
    """Sends gradients as a plan says, while the main thread computes.

    The thread prefers sending over taking in over updating, so the wire is kept busy.
    Payloads go out in the order of the plan, equal on all ranks; `num_in_flight` of them
    may be under way. Each carries a flag per piece (does this rank have a gradient?), and
    the last one controls that any rank can raise: a tensor outside the plan has a
    gradient, and whether a rank needs all gradients before the first update.

    What fails in the thread is raised by the next call that waits.

    Attributes:
        wire: Type that wider gradients are sent in; None for their own.
        on_must_wait: Called once any rank asked to wait for all gradients, on all ranks
            before the same backward pass.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        names: Sequence[str],
        update: PartialUpdate,
        group: dist.ProcessGroup,
        *,
        num_in_flight: int,
        wire: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._parameters, self._names, self._update = parameters, names, update
        self.wire = wire
        self._group, self._rank = group, dist.get_rank(group)
        self._share = 1.0 / dist.get_world_size(group)
        self._num_in_flight = num_in_flight
        self._streams = StreamOrder(parameters[0].device)
        self._round: Round | None = None
        self._route = Route([], parameters)
        self._must_wait = self._all_must_wait = False
        self.on_must_wait: Callable[[], None] = lambda: None
        self._urgency = list(range(len(parameters)))
        self._pending = [False] * len(parameters)
        self._num_pending = 0
        self._updated: torch.cuda.Event | None = None
        self._thread = threading.Thread(
            target=self._run, args=(torch.get_num_threads(),), daemon=True, name="paceline"
        )
        self._sent: SimpleQueue[Flight | None] = SimpleQueue()
        self._watcher = threading.Thread(target=self._watch_wire, daemon=True, name="paceline-wire")
        self._thread.start()
        self._watcher.start()

    # What the main thread calls.

    def use(self, route: Route, order: Sequence[int]) -> None:
        """Take `route` from the next backward pass on; tensors in `order` are updated so."""
        self._route = route
        for place, tensor in enumerate(order):
            self._urgency[tensor] = place - len(order)

    def ask_to_wait(self) -> None:
        """Ask all ranks to wait for all gradients; it travels with the next last block."""
        self._must_wait = True

    @property
    def has_open_round(self) -> bool:
        """Whether a backward pass has begun whose gradients no step has taken yet."""
        return self._round is not None and not self._round.is_released

    def is_ready(self, tensor: int) -> bool:
        """Whether the gradient has come in this backward pass."""
        return self._round is not None and self._round.is_ready[tensor]

    def begin(self) -> None:
        """Open a backward pass; what an earlier one still has under way is finished first."""
        if self._round is not None and not self._round.is_over:
            self.finish()
        self.flush()
        if self._all_must_wait:
            self._must_wait = self._all_must_wait = False
            self.on_must_wait()
        with self._condition:
            self._round = Round(self._route)

    def note_ready(self, tensor: int) -> None:
        """Take the gradient of one parameter."""
        gradient = dense_gradient(self._parameters[tensor], self._names[tensor])
        current = self._open_round()
        with self._condition:
            if current.note_ready(tensor, gradient, self._streams.mark()):
                self._condition.notify_all()

    def finish(self) -> None:
        """End the backward pass: gradients that did not come will not come."""
        current = self._open_round()
        with self._condition:
            for tensor, is_ready in enumerate(current.is_ready):
                if not is_ready:
                    current.note_ready(tensor, self._parameters[tensor].grad, self._streams.mark())
            current.is_over = True
            self._condition.notify_all()

    def deliver(self) -> None:
        """Wait for all gradients, and put the means where the parameters' own were."""
        current = self._open_round()
        self._wait(lambda: current.is_reduced)
        self._streams.wait(self._updated)
        for tensor, parameter in enumerate(self._parameters):
            self._streams.keep(current.reduced[tensor])
            if parameter.grad is current.local[tensor]:
                parameter.grad = current.local[tensor] = current.reduced[tensor]

    def release(self) -> None:
        """Let updates begin; `.grad` is cleared, and nothing that is put there counts."""
        current = self._open_round()
        with self._condition:
            for tensor, parameter in enumerate(self._parameters):
                if parameter.grad is not current.local[tensor]:
                    current.override[tensor] = parameter.grad
                parameter.grad = current.local[tensor] = None
                self._pending[tensor] = parameter.numel() > 0
            self._num_pending = sum(self._pending)
            current.release_event = self._streams.mark()
            current.is_released = True
            self._condition.notify_all()

    def retire(self) -> None:
        """Close the round without updates: the caller has applied them."""
        with self._condition:
            self._round = None

    def wait_updated(self, tensors: Collection[int]) -> None:
        """Wait until the optimizer has updated `tensors`."""
        if self._error is None and not self._num_pending:
            self._streams.wait(self._updated)
            return
        self._wait(lambda: not any(self._pending[tensor] for tensor in tensors))
        self._streams.wait(self._updated)

    def flush(self) -> None:
        """Finish what is under way: updates after a step, else gradients after a backward pass."""
        current = self._round
        if current is not None and current.is_released:
            self._wait(lambda: not self._num_pending and current.is_reduced)
            self._streams.wait(self._updated)
        elif current is not None and current.is_over:
            self.deliver()

    def close(self) -> None:
        """Finish what other ranks may wait for, within 10 s, and end the thread."""
        current = self._round
        # A wrapper may be collected, and so closed, in any thread.
        is_own_thread = threading.current_thread() in (self._thread, self._watcher)
        with self._condition:
            if current is not None and not is_own_thread:
                self._condition.wait_for(
                    lambda: self._has_ended or not self._is_owed(current), CLOSE_TIMEOUT_S
                )
                self._wait_for_wire()
            self._is_closed = True
            self._condition.notify_all()
        self._sent.put(None)
        if not is_own_thread:
            self._thread.join(CLOSE_TIMEOUT_S)
            self._watcher.join(CLOSE_TIMEOUT_S)

    def _wait_for_wire(self) -> None:
        """Let collectives end: who waits for one cannot return to an interpreter that is gone."""
        flying = [] if self._round is None else self._round.flying
        self._condition.wait_for(lambda: all(flight.done for flight in flying), CLOSE_TIMEOUT_S)

    def _open_round(self) -> Round:
        if self._round is None:
            raise AssertionError("no backward pass has begun")
        return self._round

    def _is_owed(self, current: Round) -> bool:
        return current.is_over and not (current.is_reduced and not self._num_pending)

    # What the thread does.

    def _run(self, num_threads: int) -> None:
        # Threads that are new to OpenMP take all cores, whatever the main thread was told.
        torch.set_num_threads(num_threads)
        try:
            with torch.no_grad(), self._streams.side():
                while (action := self._next_action()) is not None:
                    action()
        except BaseException as error:  # Raised by the main thread at its next wait.
            with self._condition:
                self._wait_for_wire()
                self._error = error
                self._condition.notify_all()

    def _next_action(self) -> Callable[[], None] | None:
        with self._condition:
            while not self._is_closed:
                if (action := self._choose()) is not None:
                    return action
                self._condition.wait()
        return None

    def _choose(self) -> Callable[[], None] | None:
        current = self._round
        if current is None:
            return None
        if len(current.flying) < self._num_in_flight and current.may_send:
            return lambda: self._send(current)
        for flight in current.flying:
            if flight.done:
                return lambda: self._land(current, flight)
        if current.is_released and current.landed:
            return lambda: self._apply(current)
        return None

    def _send(self, current: Round) -> None:
        payload = current.payloads[current.next]
        outside = any(current.sources[tensor] is not None for tensor in current.route.outside)
        controls = [float(outside), float(self._must_wait)] if current.next_is_last else []
        for piece in payload.pieces:
            self._streams.wait(current.events[piece.tensor])
        buffer = pack(payload, self._parameters, current.sources, self._share, controls, self.wire)
        try:
            work = dist.all_reduce(buffer, group=self._group, async_op=True)
        except RuntimeError as error:
            raise self._failure(current, payload, error) from error
        flight = Flight(payload, buffer, work)
        with self._condition:
            current.next += 1
            current.flying.append(flight)
        self._sent.put(flight)

    def _watch_wire(self) -> None:
        """Tell the other thread when a collective has ended.

        A callback on its future would run in a thread of gloo, and abort the interpreter if
        that goes down just then.
        """
        while (flight := self._sent.get()) is not None:
            with suppress(RuntimeError):  # Raised again where it lands.
                flight.work.wait()
            with self._condition:
                flight.done = True
                self._condition.notify_all()

    def _land(self, current: Round, flight: Flight) -> None:
        try:
            flight.work.wait()
        except RuntimeError as error:
            raise self._failure(current, flight.payload, error) from error
        landed, controls = unpack(flight, current, self._parameters)
        self._updated = self._streams.mark()
        with self._condition:
            current.flying.remove(flight)
            current.landed.extend(landed)
            if len(controls) == NUM_CONTROLS:
                self._all_must_wait |= controls[MUST_WAIT] > 0
                if controls[OUTSIDE] > 0:
                    current.take_detour()
                else:
                    current.landed.extend(current.route.outside)
            self._condition.notify_all()

    def _apply(self, current: Round) -> None:
        batch = self._most_urgent(current)
        parameters = [self._parameters[tensor] for tensor in batch]
        self._streams.wait(current.release_event)
        self._update.apply(parameters, [current.gradient_of(tensor) for tensor in batch])
        self._updated = self._streams.mark()
        with self._condition:
            for tensor in batch:
                current.reduced[tensor] = None
                self._pending[tensor] = False
            self._num_pending -= len(batch)
            self._condition.notify_all()

    def _most_urgent(self, current: Round) -> list[int]:
        """Take landed tensors off the round, those that the forward pass needs first."""
        batch, num_bytes = [], 0
        current.landed.sort(key=lambda tensor: -self._urgency[tensor])
        while current.landed and num_bytes < UPDATE_BYTES:
            tensor = current.landed.pop()
            num_bytes += self._parameters[tensor].nbytes
            batch.append(tensor)
        return batch

    def _failure(self, current: Round, payload: Payload, error: Exception) -> TransferError:
        names = (self._names[piece.tensor] for piece in payload.pieces)
        return transfer_failure(self._rank, payload.block, current.route.num_blocks, names, error)
