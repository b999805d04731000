"""Time how long a training loop waits for its loaders, without wrapping what they return."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from paceline.run import UNKNOWN
from paceline.torch.run._inputs import counted
from paceline.torch.run._rows import Counted

AHEAD = 1024
NO_LOADER: dict[str, Any] = dict.fromkeys(
    ("sampler", "batch_sampler", "dataset", "num_workers", "batch_size")
)


class Pass:
    """One pass over a loader.

    Attributes:
        facts: What is known of the loader.
        waited_s: Seconds that were waited for it since the last forward pass.
        num_used: Batches that a training pass has used.
    """

    def __init__(self, iterator: Any, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.waited_s, self.num_used = 0.0, 0
        # Weak, because worker processes live as long as their iterator.
        self._iterator = weakref.ref(iterator)

    @property
    def num_left(self) -> int | None:
        """Batches that are left, if the loader has a length and is not done."""
        iterator: Any = self._iterator()
        try:
            return max(len(iterator) - self.num_used, 0)
        except TypeError:  # Of an iterable dataset, or gone.
            return None


class Fetches:
    """What was fetched since the last forward pass; times every `DataLoader` of this process.

    A loader trains if a training pass follows what it delivered. So validation, which evaluates
    what it fetches, is not waited for by training.

    Args:
        clock: Seconds that only go up.

    Attributes:
        counts_padding: Whether to look into batches, for a model whose inputs are on a device.
        training: The pass over the loader that trains; None before the first.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.counts_padding = False
        self.training: Pass | None = None
        self._clock = clock
        self._thread = threading.get_ident()
        self._newest: Pass | None = None
        self._passes: weakref.WeakKeyDictionary[Any, Pass] = weakref.WeakKeyDictionary()
        self._delivered: deque[Counted] = deque(maxlen=AHEAD)
        self._own = (DataLoader.__iter__, _BaseDataLoaderIter.__next__)

    def install(self) -> None:
        """Time every loader from here on; the classes are patched in this process only."""
        fetches = self
        make, fetch = self._own

        def timed_iter(loader: Any) -> Any:
            begin_s = fetches._clock()
            iterator = make(loader)
            # A loop may keep the iterator alone, so the loader is asked now.
            fetches._passes[iterator] = Pass(iterator, facts_of_loader(loader))
            fetches._add(iterator, fetches._clock() - begin_s)
            return iterator

        def timed_next(iterator: Any) -> Any:
            begin_s = fetches._clock()
            try:
                batch = fetch(iterator)
            finally:
                fetches._add(iterator, fetches._clock() - begin_s)
            fetches._deliver(batch)
            return batch

        DataLoader.__iter__ = timed_iter  # type: ignore[method-assign]
        _BaseDataLoaderIter.__next__ = timed_next  # type: ignore[assignment, method-assign]

    def remove(self) -> None:
        """Put the classes back as they were."""
        DataLoader.__iter__, _BaseDataLoaderIter.__next__ = self._own  # type: ignore[method-assign]

    def take(self) -> float:
        """A training pass begins: return the seconds that its loop waited for its loader."""
        if self._newest is None:
            return 0.0
        self.training = self._newest
        self.training.num_used += 1
        waited_s = self.training.waited_s
        self.drop()
        return waited_s

    def drop(self) -> None:
        """A pass that does not train begins."""
        for one in self._passes.values():
            one.waited_s = 0.0

    def padding_of(self, inputs: Counted) -> int:
        """Return the padding of the oldest batch of this size, as inputs on a device hide it."""
        while self._delivered:
            batch = self._delivered.popleft()
            if batch[2:4] == inputs[2:4]:
                return batch.num_padding
        return UNKNOWN

    def _add(self, iterator: Any, seconds: float) -> None:
        # What another thread waits for, the loop does not. A loader with an `__iter__` of its own
        # was not asked what it is.
        if threading.get_ident() == self._thread and iterator in self._passes:
            self._newest = self._passes[iterator]
            self._newest.waited_s += seconds

    def _deliver(self, batch: Any) -> None:
        if self.counts_padding:
            values = batch if isinstance(batch, tuple | list) else (batch,)
            self._delivered.append(counted(tuple(values), {}))


def facts_of_loader(loader: Any) -> dict[str, Any]:
    """Return what `facts.json` says of a loader; None where it cannot be told."""
    batches = loader.batch_sampler
    # Torch fills in a sampler that says nothing where a dataset has no indices.
    has_indices = not isinstance(loader.dataset, IterableDataset)
    size = loader.batch_size or getattr(batches, "batch_size", None)
    return {
        "sampler": _class_of(loader.sampler) if has_indices else None,
        "batch_sampler": _class_of(batches) if has_indices else None,
        "dataset": _class_of(loader.dataset),
        "num_workers": loader.num_workers,
        "batch_size": size if isinstance(size, int) else None,
    }


def _class_of(value: object) -> str | None:
    return None if value is None else type(value).__name__
