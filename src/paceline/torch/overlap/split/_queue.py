"""Deferred weight gradients: batched into tasks of the assist lane, and waited for."""

from collections import deque
from collections.abc import Iterable

from torch import Tensor, nn

from paceline.timeline import Kind
from paceline.torch.overlap._lanes import ASSIST, Lanes
from paceline.torch.overlap._task import Handle, keep_on_stream, now_s
from paceline.torch.overlap.split._ops import OpArgs
from paceline.torch.overlap.split._site import Pair, Site
from paceline.torch.overlap.split._slots import Slot

NUM_ROUND_TRIPS = 21

Batch = list[tuple[Site, Pair, OpArgs]]


class GradientQueue:
    """Runs what layers defer on the assist lane, and waits for it.

    Attributes:
        layers_per_task: Layers whose weight gradients make one task.
        max_pending: Tasks that the lane may hold; None for no bound.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._slots: dict[int, Slot] = {}
        self._pending: deque[Handle] = deque()
        self._batch: Batch = []
        self.layers_per_task = 1
        self.max_pending: int | None = None

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make slots for `parameters`, unless they have one."""
        for parameter in parameters:
            self._slots.setdefault(id(parameter), Slot(parameter))

    def find(self, tensor: Tensor) -> Slot | None:
        """Return the slot, if the tensor has one."""
        return self._slots.get(id(tensor))

    def defer(self, site: Site, slots: Pair, args: OpArgs) -> None:
        """Take the weight gradients of a layer; a task has those of `layers_per_task` layers."""
        for slot in slots:
            if slot is not None:
                slot.num_expected += 1
        self._batch.append((site, slots, args))
        if len(self._batch) >= self.layers_per_task:
            self._submit()

    def join(self) -> None:
        """Wait for all that is deferred; the calling thread runs tasks, too."""
        if self._batch:
            self._submit()
        self._lanes.help(ASSIST)
        self._lanes.flush(ASSIST)
        self._pending.clear()

    def flush(self) -> None:
        """End a backward pass: all gradients are in place."""
        if not self._pending and not self._batch:
            return
        self.join()
        for slot in self._slots.values():
            slot.finish()
            # Made on the assist stream, and used on this one.
            keep_on_stream(slot.parameter.grad)

    def forget(self) -> None:
        """Drop what is left of a backward pass that raised."""
        self._pending.clear()
        self._batch.clear()
        for slot in self._slots.values():
            slot.unmute()
            if slot.num_expected:
                slot.reset()

    def _submit(self) -> None:
        """Make a task of the batch; at the bound, main runs the oldest task itself."""
        pending = self._pending
        if self.max_pending is not None:
            while pending and pending[0].is_done:
                pending.popleft()
            if len(pending) >= self.max_pending:
                self._lanes.help(ASSIST, most=1)
        batch, self._batch = self._batch, []
        handle = self._lanes.submit(
            _run,
            batch,
            lane=ASSIST,
            kind=Kind.BACKWARD,
            name=batch[0][0].task_name,
            after=self._earlier(batch),
        )
        pending.append(handle)

    def _earlier(self, batch: Batch) -> list[Handle]:
        """Return the tasks that may have parts of the same parameters.

        Two threads may work on the lane at a time, but parts are added in their order.
        """
        pairs = (slots for _, slots, _ in batch)
        if not any(slot is not None and slot.num_expected > 1 for pair in pairs for slot in pair):
            return []
        return [handle for handle in self._pending if not handle.is_done]


def overhead_s(lanes: Lanes) -> float:
    """Return the seconds that handing a task over takes: half of going there and back."""
    seconds = []
    for _ in range(NUM_ROUND_TRIPS):
        start_s = now_s()
        lanes.submit(abs, 0, lane=ASSIST).wait()
        seconds.append(now_s() - start_s)
    return sorted(seconds)[NUM_ROUND_TRIPS // 2] / 2


def _run(batch: Batch) -> None:
    for site, slots, args in batch:
        parts = site.op.weight_grads(args, (slots[0] is not None, slots[1] is not None))
        for slot, part in zip(slots, parts, strict=True):
            if slot is not None and part is not None:
                slot.add(part)
