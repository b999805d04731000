"""Walk a block plan in shards: reduce-scatter, update the own part, all-gather."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from queue import SimpleQueue

import torch
from torch import distributed as dist

from paceline.errors import TransferError
from paceline.torch.comm.sharded._layout import ShardLayout, ShardPayload
from paceline.torch.comm.sharded._round import ShardFlight, ShardRound, ShardRoute
from paceline.torch.comm.sharded._rows import own_parts, packed, unpack
from paceline.torch.comm.sharded._update import ShardedUpdate
from paceline.torch.comm.whole import Route, Waiting, dense_gradient, transfer_failure
from paceline.torch.model import StreamOrder

CLOSE_TIMEOUT_S = 10.0
# Renamed in torch 2.13, which warns at the old name.
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class ShardedExecutor(Waiting):
    """Takes the place of `BlockExecutor` where each rank updates only its own parts.

    One thread does everything in one order, the same on all ranks: blocks are
    reduce-scattered as the plan says, then ranks tell each other which parameters have a
    gradient; after `step()` each block is updated and gathered, those that the forward
    pass needs first in front. `num_in_flight` collectives may be under way at once.

    gloo has no reduce-scatter of its own: there whole blocks are all-reduced, so a step moves
    one and a half times the bytes of an all-reduce. Averaged gradients exist only in parts,
    so `.grad` keeps the local ones.

    Attributes:
        update: Updates the own parts.
        wire: None; gradients travel in their own type.
        on_must_wait: Called once any rank asked to wait for all gradients, on all ranks
            before the same backward pass.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        names: Sequence[str],
        update: ShardedUpdate,
        layout: ShardLayout,
        group: dist.ProcessGroup,
        *,
        num_in_flight: int,
    ) -> None:
        super().__init__()
        self._parameters, self._names = parameters, names
        self.update, self._layout = update, layout
        self.wire: torch.dtype | None = None
        self._group, self._rank = group, dist.get_rank(group)
        self._num_ranks = dist.get_world_size(group)
        self._is_gloo = "gloo" in dist.get_backend(group)
        self._num_in_flight = num_in_flight
        self._streams = StreamOrder(parameters[0].device)
        self._urgency = list(range(len(parameters)))
        self._route = ShardRoute(Route([], parameters), layout, parameters, self._urgency)
        self._round: ShardRound | None = None
        self._must_wait = self._all_must_wait = False
        self.on_must_wait: Callable[[], None] = lambda: None
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._num_tasks = 0
        self._pending = [False] * len(parameters)
        self._num_pending = 0
        self._updated: torch.cuda.Event | None = None
        self._flying: deque[tuple[int, ShardFlight]] = deque()
        self._thread = threading.Thread(
            target=self._run, args=(torch.get_num_threads(),), daemon=True, name="paceline"
        )
        self._thread.start()

    # What the main thread calls.

    def use(self, route: Route, order: Sequence[int]) -> None:
        """Take `route` from the next backward pass on; tensors in `order` come back so."""
        for place, tensor in enumerate(order):
            self._urgency[tensor] = place - len(order)
        self._route = ShardRoute(route, self._layout, self._parameters, self._urgency)

    def ask_to_wait(self) -> None:
        """Ask all ranks to wait for all gradients; it travels behind the next backward pass."""
        self._must_wait = True

    @property
    def has_open_round(self) -> bool:
        """Whether a backward pass has begun whose gradients no step has taken yet."""
        return self._round is not None and not self._round.is_released

    def is_ready(self, tensor: int) -> bool:
        """Whether the gradient has come in this backward pass."""
        return self._round is not None and self._round.is_ready[tensor]

    def begin(self) -> None:
        """Open a backward pass; what an earlier one still has under way is finished first.

        Gradients that no step has taken are still in `.grad`, and travel again with the new.
        """
        if self._round is not None and not self._round.is_over:
            self.finish()
        self.flush()
        if self._all_must_wait:
            self._must_wait = self._all_must_wait = False
            self.on_must_wait()
        self._round = ShardRound(self._route)

    def note_ready(self, tensor: int) -> None:
        """Take the gradient of one parameter."""
        gradient = dense_gradient(self._parameters[tensor], self._names[tensor])
        current = self._open_round()
        current.note_ready(tensor, gradient, self._streams.mark())
        for number in current.sendable():
            self._submit(partial(self._send, current, number))

    def finish(self) -> None:
        """End the backward pass: gradients that did not come will not come."""
        current = self._open_round()
        for tensor, is_ready in enumerate(current.is_ready):
            if not is_ready:
                current.note_ready(tensor, self._parameters[tensor].grad, self._streams.mark())
        for number in current.sendable():
            self._submit(partial(self._send, current, number))
        current.is_over = True
        self._submit(partial(self._agree, current))

    def deliver(self) -> None:
        """Wait until the means have landed; they stay in parts, `.grad` is left alone."""
        self._wait(lambda: not self._num_tasks)

    def clip(self, max_norm: float, norm_type: float) -> torch.Tensor:
        """Scale the means so that their norm is at most `max_norm`; return the norm.

        All ranks must call it between backward pass and step.
        """
        self.deliver()
        current = self._open_round()
        self._streams.wait(self._updated)
        parts = (
            own_parts(current.route.payloads[number], row, self._rank)
            for number, row in current.parts.items()
        )
        used = [part for found in parts for one, part in found if current.is_used[one.tensor]]
        norm = _norm_over_ranks(used, norm_type, self._parameters[0].device, self._group)
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for part in current.parts.values():
            part.mul_(scale.to(part.dtype))
        return norm

    def release(self) -> None:
        """Let updates begin, with the optimizer's settings of this moment."""
        current = self._open_round()
        for tensor, parameter in enumerate(self._parameters):
            if current.has_changed(tensor, parameter.grad):
                raise ValueError(
                    f"the gradient of {self._names[tensor]!r} was changed between backward() and "
                    "step(), but with sharded=True only parts of the averaged gradients exist; "
                    "clip with model.clip_grad_norm_(), or pass sharded=False"
                )
        self.update.begin()
        with self._condition:
            current.local = [None] * len(current.local)
            self._pending = [parameter.numel() > 0 for parameter in self._parameters]
            self._num_pending = sum(self._pending)
            current.release_event = self._streams.mark()
            current.is_released = True
        self._submit(partial(self._update_and_gather, current))

    def retire(self) -> None:
        """Close the round without updates."""
        self._round = None

    def wait_updated(self, tensors: Collection[int]) -> None:
        """Wait until `tensors` are updated on all ranks and are here."""
        if self._error is not None or self._num_pending:
            self._wait(lambda: not any(self._pending[tensor] for tensor in tensors))
        self._streams.wait(self._updated)

    def flush(self) -> None:
        """Finish what is under way: updates after a step, else gradients after a backward pass."""
        current = self._round
        if current is not None and (current.is_over or current.is_released):
            self._wait(lambda: not self._num_tasks and not self._num_pending)
            self._streams.wait(self._updated)

    def close(self) -> None:
        """Finish what other ranks may wait for, within 10 s, and end the thread."""
        is_own_thread = threading.current_thread() is self._thread
        with self._condition:
            if not is_own_thread:
                self._condition.wait_for(
                    lambda: self._has_ended or not self._num_tasks, CLOSE_TIMEOUT_S
                )
            self._is_closed = True
            self._condition.notify_all()
        self._tasks.put(None)
        if not is_own_thread:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _open_round(self) -> ShardRound:
        if self._round is None:
            raise AssertionError("no backward pass has begun")
        return self._round

    def _submit(self, task: Callable[[], None]) -> None:
        with self._condition:
            self._num_tasks += 1
        self._tasks.put(task)

    # What the thread does.

    def _run(self, num_threads: int) -> None:
        # Threads that are new to OpenMP take all cores, whatever the main thread was told.
        torch.set_num_threads(num_threads)
        with torch.no_grad(), self._streams.side():
            while (task := self._tasks.get()) is not None:
                try:
                    task()
                except BaseException as error:  # Raised by the main thread at its next wait.
                    with self._condition:
                        self._error = error
                        self._condition.notify_all()
                    return
                with self._condition:
                    self._num_tasks -= 1
                    self._condition.notify_all()

    def _send(self, current: ShardRound, number: int) -> None:
        """Reduce-scatter one payload, once there is room on the wire."""
        payload = current.route.payloads[number]
        for tensor in payload.tensors:
            self._streams.wait(current.events[tensor])
        like = self._parameters[payload.segments[0].tensor]
        rows = packed(payload, current.sources, like, self._num_ranks)
        self._make_room(current)
        try:
            if self._is_gloo:
                row = rows[self._rank]
                work = dist.all_reduce(rows, group=self._group, async_op=True)
            else:
                row = rows.new_empty(payload.width)
                work = _reduce_scatter(row, rows.view(-1), group=self._group, async_op=True)
        except RuntimeError as error:
            raise self._failure(current, payload, error) from error
        self._flying.append((number, ShardFlight(payload, rows, row, work)))

    def _make_room(self, current: ShardRound) -> None:
        while len(self._flying) >= self._num_in_flight:
            self._land(current)

    def _land(self, current: ShardRound) -> None:
        """Wait for the oldest reduce-scatter and keep the own part of the means."""
        number, flight = self._flying.popleft()
        self._end(current, flight)
        # On gloo the row is a part of all rows, which are not to be kept.
        current.parts[number] = flight.row.clone() if self._is_gloo else flight.row

    def _end(self, current: ShardRound, flight: ShardFlight) -> None:
        try:
            flight.work.wait()
        except RuntimeError as error:
            raise self._failure(current, flight.payload, error) from error

    def _agree(self, current: ShardRound) -> None:
        """Learn which parameters have a gradient anywhere, and whether a rank asks to wait."""
        flags = [float(source is not None) for source in current.sources]
        flags.append(float(self._must_wait))
        device = self._parameters[0].device
        try:
            total = torch.tensor(flags, device=device)
            dist.all_reduce(total, group=self._group)
        except RuntimeError as error:
            raise self._failure(current, current.route.payloads[-1], error) from error
        *current.is_used, asked = (flag > 0 for flag in total.tolist())
        self._all_must_wait |= asked
        if any(current.is_used[tensor] for tensor in current.route.outside):
            for number in range(current.route.num_planned, len(current.route.payloads)):
                self._send(current, number)
        while self._flying:
            self._land(current)
        current.sources = [None] * len(current.sources)
        self._updated = self._streams.mark()

    def _update_and_gather(self, current: ShardRound) -> None:
        """Update and gather all payloads, in the order in which they are needed."""
        self._streams.wait(current.release_event)
        for number in current.route.by_need:
            if number not in current.parts:
                self._mark_here(current, number)
                continue
            if len(self._flying) >= self._num_in_flight:
                self._come_back(current)
            self._flying.append((number, self._gather(current, number)))
        while self._flying:
            self._come_back(current)

    def _gather(self, current: ShardRound, number: int) -> ShardFlight:
        """Update the own parts of a payload and send them to all ranks."""
        payload, row = current.route.payloads[number], current.parts.pop(number)
        means = dict(own_parts(payload, row, self._rank))
        own = [segment for segment in means if segment in self.update.part_of]
        self.update.apply(own, [means[one] if current.is_used[one.tensor] else None for one in own])
        # The means are used up, so the new values take their place.
        for segment in own:
            means[segment].copy_(self.update.part_of[segment])
        rows = row.new_empty((self._num_ranks, payload.width))
        try:
            work = _all_gather(rows.view(-1), row, group=self._group, async_op=True)
        except RuntimeError as error:
            raise self._failure(current, payload, error) from error
        return ShardFlight(payload, rows, row, work)

    def _come_back(self, current: ShardRound) -> None:
        """Take in the oldest all-gather."""
        number, flight = self._flying.popleft()
        self._end(current, flight)
        unpack(flight.payload, flight.rows, self._parameters)
        self._updated = self._streams.mark()
        self._mark_here(current, number)

    def _mark_here(self, current: ShardRound, number: int) -> None:
        with self._condition:
            for tensor in current.route.payloads[number].tensors:
                current.num_left[tensor] -= 1
                if not current.num_left[tensor]:
                    self._pending[tensor] = False
                    self._num_pending -= 1
            self._condition.notify_all()

    def _failure(
        self, current: ShardRound, payload: ShardPayload, error: Exception
    ) -> TransferError:
        names = (self._names[tensor] for tensor in payload.tensors)
        return transfer_failure(self._rank, payload.block, current.route.num_blocks, names, error)


def _norm_over_ranks(
    parts: Sequence[torch.Tensor],
    norm_type: float,
    device: torch.device,
    group: dist.ProcessGroup,
) -> torch.Tensor:
    powers = [torch.zeros((), device=device)]
    for part in parts:
        if part.numel():
            norm = torch.linalg.vector_norm(part, norm_type, dtype=torch.float32)
            powers.append(norm if norm_type == torch.inf else norm**norm_type)
    stacked = torch.stack(powers)
    is_max = norm_type == torch.inf
    total = stacked.max() if is_max else stacked.sum()
    op = dist.ReduceOp.MAX if is_max else dist.ReduceOp.SUM
    dist.all_reduce(total, op=op, group=group)
    return total if is_max else total ** (1.0 / norm_type)
