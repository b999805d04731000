"""Execute a block plan in shards: reduce-scatter, update the own part, all-gather."""

from collections import deque
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed as dist

from paceline.torch.comm.sharded._custody import Custody
from paceline.torch.comm.sharded._layout import ShardLayout
from paceline.torch.comm.sharded._round import ShardFlight, ShardRound, ShardRoute, withheld
from paceline.torch.comm.sharded._rows import norm_over_ranks, own_parts, packed, unpack
from paceline.torch.comm.sharded._update import ShardedUpdate
from paceline.torch.comm.transfer import PendingUpdates, Route, Trained, WaitRequest, Worker

# Renamed in torch 2.13, which warns at the old name.
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class ShardedExecutor:
    """Takes the place of `BlockExecutor` where each rank updates only its own parts.

    The worker does everything in one order, the same on all ranks: blocks are
    reduce-scattered as the plan says, then ranks tell each other which parameters have a
    gradient; after `step()` each block is updated and gathered, those that the forward
    pass needs first in front. `num_in_flight` collectives may be under way at once.

    gloo has no reduce-scatter of its own: there whole blocks are all-reduced, so a step moves
    one and a half times the bytes of an all-reduce. Averaged gradients exist only in parts,
    so `.grad` keeps the local ones.

    Args:
        trained: The parameters, and the ranks that share the work.
        update: Updates the own parts.
        layout: Who owns what.
        worker: Not started yet.
        num_in_flight: Collectives that may be under way at once.
        custody: Ends with the executor; unset if the optimizer got no hooks.
    """

    has_whole_gradients = False
    wire: torch.dtype | None = None

    def __init__(
        self,
        trained: Trained,
        update: ShardedUpdate,
        layout: ShardLayout,
        worker: Worker,
        *,
        num_in_flight: int,
        custody: Custody | None = None,
    ) -> None:
        self._trained, self._update, self._layout = trained, update, layout
        self._worker, self._num_in_flight = worker, num_in_flight
        self._custody = custody
        self._is_gloo = "gloo" in dist.get_backend(trained.group)
        self._urgency = list(range(len(trained.parameters)))
        self._round: ShardRound | None = None
        self._request = WaitRequest()
        self._pending = PendingUpdates(trained, worker)
        self._flying: deque[tuple[int, ShardFlight]] = deque()
        self._withheld = withheld(trained)
        self.use(Route([], trained.parameters), [])
        worker.start()

    # What the main thread calls.

    def use(self, route: Route, order: Sequence[int]) -> None:
        """Take `route` from the next backward pass on; tensors in `order` come back so."""
        for place, tensor in enumerate(order):
            self._urgency[tensor] = place - len(order)
        self._route = ShardRoute(route, self._layout, self._trained.parameters, self._urgency)

    def ask_to_wait(self) -> None:
        """Ask all ranks to wait for all gradients; sent at the end of the next backward pass."""
        self._request.is_asked = True

    @property
    def has_open_round(self) -> bool:
        """Whether a backward pass has begun whose gradients no step has taken yet."""
        return self._round is not None and not self._round.is_released

    def end_round(self) -> bool:
        """Finish what was begun; tell once, on all ranks alike, whether one asked to wait."""
        if self._round is not None and not self._round.is_over:
            self.finish()
        self.flush()
        return self._request.take()

    def begin(self) -> None:
        """Open a backward pass; `end_round` comes first.

        Gradients that no step has taken are still in `.grad`, and are sent again with the new.
        """
        self._withheld.let_go()
        self._round = ShardRound(self._route)

    def note_ready(self, tensor: int) -> None:
        """Take the gradient of one parameter."""
        current, gradient = self._open_round(), self._trained.gradient(tensor)
        current.note_ready(tensor, gradient, self._worker.streams.mark())
        self._send_complete(current)

    def finish(self) -> None:
        """End the backward pass: gradients that did not come will not come."""
        current, streams = self._open_round(), self._worker.streams
        for tensor, is_ready in enumerate(current.is_ready):
            if not is_ready:
                current.note_ready(tensor, self._trained.parameters[tensor].grad, streams.mark())
        self._send_complete(current)
        current.is_over = True
        self._worker.submit(partial(self._agree, current))
        self._withheld.hold()

    def deliver(self) -> None:
        """Wait until the means have landed; they stay in parts, `.grad` is left alone."""
        self._worker.wait(lambda: self._worker.is_idle)

    def clip(self, max_norm: float, norm_type: float) -> torch.Tensor:
        """Scale the means so that their norm is at most `max_norm`; return the norm.

        All ranks must call it between backward pass and step.
        """
        self.deliver()
        current, trained = self._open_round(), self._trained
        self._worker.streams.wait(self._pending.event)
        parts = (
            own_parts(current.route.payloads[number], row, trained.rank)
            for number, row in current.parts.items()
        )
        used = [part for found in parts for one, part in found if current.is_used[one.tensor]]
        with trained.talking("the norm of gradients"):
            norm = norm_over_ranks(used, norm_type, trained)
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for part in current.parts.values():
            part.mul_(scale.to(part.dtype))
        return norm

    def release(self) -> None:
        """Let updates begin, with the optimizer's settings of this moment."""
        current = self._open_round()
        self._withheld.let_go()
        for tensor, parameter in enumerate(self._trained.parameters):
            if current.has_changed(tensor, parameter.grad):
                raise ValueError(
                    f"the gradient of {self._trained.names[tensor]!r} was changed between "
                    "backward() and step(), but with sharded=True only parts of the averaged "
                    "gradients exist; clip with model.clip_grad_norm_(), or pass sharded=False"
                )
        self._update.begin()
        with self._worker.condition:
            current.local = [None] * len(current.local)
            self._pending.begin()
            current.release_event = self._worker.streams.mark()
            current.is_released = True
        self._worker.submit(partial(self._update_and_gather, current))

    def retire(self) -> None:
        """Close the round without updates."""
        self._round = None

    def wait_updated(self, tensors: Collection[int]) -> None:
        """Wait until `tensors` are updated on all ranks and are here."""
        self._pending.wait(tensors)

    def flush(self) -> None:
        """Finish what is under way: updates after a step, else gradients after a backward pass."""
        current = self._round
        if current is not None and (current.is_over or current.is_released):
            self._worker.wait(lambda: self._worker.is_idle and not self._pending.num)
            self._worker.streams.wait(self._pending.event)

    def optimizer_state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return what `optimizer.state_dict()` would without sharding; all ranks must call it.

        On rank 0, with tensors on the CPU; other ranks get an empty dictionary.
        """
        with self._trained.talking("the optimizer's state"):
            return self._update.whole_state_dict(optimizer, self._trained.group)

    def give_back(self) -> None:
        """Give the optimizer whole state again, as one last collective."""
        with self._trained.talking("the optimizer's state"):
            self._update.give_back(self._trained.group)

    def close(self) -> None:
        """Finish what other ranks may wait for, within 10 s, and end the thread."""
        self._withheld.let_go()
        self._worker.close(lambda: self._worker.is_idle)
        if self._custody is not None:
            self._custody.end()

    def _open_round(self) -> ShardRound:
        if self._round is None:
            raise AssertionError("no backward pass has begun")
        return self._round

    def _send_complete(self, current: ShardRound) -> None:
        for number in current.sendable():
            self._worker.submit(partial(self._send, current, number))

    # What the worker does.

    def _send(self, current: ShardRound, number: int) -> None:
        """Reduce-scatter one payload, once there is room on the wire."""
        payload, trained = current.route.payloads[number], self._trained
        for tensor in payload.tensors:
            self._worker.streams.wait(current.events[tensor])
        like = trained.parameters[payload.segments[0].tensor]
        rows = packed(payload, current.sources, like, trained.num_ranks)
        while len(self._flying) >= self._num_in_flight:
            self._land(current)
        with trained.sending(payload, current.route.num_blocks):
            if self._is_gloo:
                row = rows[trained.rank]
                work = dist.all_reduce(rows, group=trained.group, async_op=True)
            else:
                row = rows.new_empty(payload.width)
                work = _reduce_scatter(row, rows.view(-1), group=trained.group, async_op=True)
        self._flying.append((number, ShardFlight(payload, rows, row, work)))

    def _land(self, current: ShardRound) -> None:
        """Wait for the oldest reduce-scatter and keep the own part of the means."""
        number, flight = self._end_oldest(current)
        # On gloo the row is a part of all rows, which are not to be kept.
        current.parts[number] = flight.row.clone() if self._is_gloo else flight.row

    def _end_oldest(self, current: ShardRound) -> tuple[int, ShardFlight]:
        number, flight = self._flying.popleft()
        with self._trained.sending(flight.payload, current.route.num_blocks):
            flight.work.wait()
        return number, flight

    def _agree(self, current: ShardRound) -> None:
        """Learn which parameters have a gradient anywhere, and whether a rank asks to wait."""
        flags = [float(source is not None) for source in current.sources]
        flags.append(float(self._request.is_asked))
        with self._trained.sending(current.route.payloads[-1], current.route.num_blocks):
            total = torch.tensor(flags, device=self._trained.device)
            dist.all_reduce(total, group=self._trained.group)
        *current.is_used, asked = (flag > 0 for flag in total.tolist())
        self._request.is_heard |= asked
        if any(current.is_used[tensor] for tensor in current.route.outside):
            for number in range(current.route.num_planned, len(current.route.payloads)):
                self._send(current, number)
        while self._flying:
            self._land(current)
        current.sources = [None] * len(current.sources)
        self._pending.event = self._worker.streams.mark()

    def _update_and_gather(self, current: ShardRound) -> None:
        """Update and gather all payloads, in the order in which they are needed."""
        self._worker.streams.wait(current.release_event)
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
        trained, part_of = self._trained, self._update.part_of
        means = dict(own_parts(payload, row, trained.rank))
        own = [segment for segment in means if segment in part_of]
        self._update.apply(
            own, [means[one] if current.is_used[one.tensor] else None for one in own]
        )
        # The means are used up, so the new values take their place.
        for segment in own:
            means[segment].copy_(part_of[segment])
        rows = row.new_empty((trained.num_ranks, payload.width))
        with trained.sending(payload, current.route.num_blocks):
            work = _all_gather(rows.view(-1), row, group=trained.group, async_op=True)
        return ShardFlight(payload, rows, row, work)

    def _come_back(self, current: ShardRound) -> None:
        """Take in the oldest all-gather."""
        number, flight = self._end_oldest(current)
        unpack(flight.payload, flight.rows, self._trained.parameters)
        self._pending.event = self._worker.streams.mark()
        self._mark_here(current, number)

    def _mark_here(self, current: ShardRound, number: int) -> None:
        """Note that a payload has come back; its tensors are updated if it is their last."""
        with self._worker.condition:
            for tensor in current.route.payloads[number].tensors:
                current.num_left[tensor] -= 1
                if not current.num_left[tensor]:
                    self._pending.end([tensor])
            self._worker.condition.notify_all()
