"""Follow the tensors of one training step from the first operator to the last."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paceline.predict.work import MemoryMoment, Phase
from paceline.torch.model import tensors_in

# A moment is kept if it is the fullest at one of these multiples of the traced batch.
BATCH_MULTIPLES = 2.0 ** np.arange(-12, 13)


@dataclass(slots=True, eq=False)
class _Held:
    """One storage; `fixed` if its size does not follow the batch, and so are its `sources`."""

    num_bytes: int
    fixed: bool = False
    gradient: bool = False  # of a parameter
    watched: Any = None
    sources: "tuple[_Held, ...]" = ()

    def fix(self) -> None:
        waiting = [self]
        while waiting:
            held = waiting.pop()
            if not held.fixed:
                held.fixed = True
                waiting.extend(held.sources)


class LiveMemory:
    """Bytes of tensors that are there before a step or that its operators make.

    A storage counts from the operator that made it until nothing refers to it any more.
    Sizes are those that tensors ask for; what a kernel allocates for itself is not seen.
    """

    def __init__(self, ignored: Iterable[torch.Tensor]) -> None:
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._held: dict[int, _Held] = {}
        self._phase: Phase = "forward"
        self._changes: list[tuple[Phase, int, _Held]] = []

    def begin(self, phase: Phase) -> None:
        self._phase = phase

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave out tensors that live longer than the step."""
        self._ignored.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def add(self, values: Any, *, fixed: bool = False) -> None:
        """Count storages in `values` that are new."""
        for tensor in tensors_in(values):
            self._add_storage(tensor.untyped_storage())
            if fixed:
                self.fix(tensor)

    def fix(self, tensor: torch.Tensor, *, gradient: bool = False) -> None:
        """Note that a tensor does not grow with the batch, from its beginning."""
        held = self._held_by(tensor)
        if held is not None:
            held.fix()
            held.gradient = gradient

    def note_sources(self, out: torch.Tensor, sources: Iterable[torch.Tensor]) -> None:
        """Note that `out` is of the size of tensors that it is the copy or the sum of."""
        held = self._held_by(out)
        if held is not None:
            found = [self._held_by(source) for source in sources]
            held.sources = tuple(each for each in found if each not in (None, held))

    def moments(self, batch_size: int) -> tuple[MemoryMoment, ...]:
        """Return the moments that are the fullest for some batch, and the optimizer's fullest."""
        phases = [phase for phase, _, _ in self._changes]
        growing = self._running_bytes(lambda held: not held.fixed)
        constant = self._running_bytes(lambda held: held.fixed)
        gradients = self._running_bytes(lambda held: held.gradient)
        passes = slice(sum(phase != "optimizer" for phase in phases))
        fullest = {
            int(np.argmax(multiple * growing[passes] + constant[passes]))
            for multiple in BATCH_MULTIPLES
        }
        # The optimizer begins with what the backward pass has left.
        left = passes.stop - 1
        update = left + int(np.argmax(constant[left:]))
        return tuple(
            MemoryMoment(
                phase=phase,
                bytes_per_example=float(growing[index] / batch_size),
                other_bytes=int(constant[index]),
                gradient_bytes=int(gradients[index]),
            )
            for phase, index in [*((phases[i], i) for i in sorted(fullest)), ("optimizer", update)]
        )

    def _running_bytes(self, counts: Callable[[_Held], bool]) -> NDArray[np.int64]:
        changes = (sign * held.num_bytes if counts(held) else 0 for _, sign, held in self._changes)
        return np.cumsum(np.fromiter(changes, np.int64))

    def _held_by(self, tensor: torch.Tensor) -> _Held | None:
        return self._held.get(tensor.untyped_storage()._cdata)

    def _add_storage(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._held or key in self._ignored:
            return
        held = _Held(storage.nbytes(), fixed=self._phase == "optimizer")

        def forget(_: Any) -> None:
            self._held.pop(key, None)
            self._changes.append((self._phase, -1, held))

        held.watched = weakref.ref(storage, forget)
        self._held[key] = held
        self._changes.append((self._phase, 1, held))
