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
LOADER_FACTS = ("sampler", "batch_sampler", "dataset", "num_workers", "batch_size")


class Fetches:
    """What was fetched since the last forward pass; times every `DataLoader` of this process.

    A loader trains if a training pass follows what it delivered. So validation, which evaluates
    what it fetches, is not waited for by training.

    Args:
        clock: Seconds that only go up.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.counts_padding = False
        self._clock = clock
        self._thread = threading.get_ident()
        # Weak, because worker processes live as long as their iterator. At first there is none.
        self._newest: weakref.ref[Any] = weakref.ref(self)
        self._waited_s: dict[int, float] = {}
        self._facts: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._training = self._newest
        self._num_batches = 0
        self._delivered: deque[Counted] = deque(maxlen=AHEAD)
        self._own = (DataLoader.__iter__, _BaseDataLoaderIter.__next__)

    def install(self) -> None:
        """Time every loader from here on; the classes are patched in this process only."""
        fetches = self
        make, fetch = self._own

        def timed_iter(loader: Any) -> Any:
            begin_s = fetches._clock()
            iterator = make(loader)
            fetches._begin(iterator, loader, fetches._clock() - begin_s)
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
        newest = self._newest()
        waited_s = self._waited_s.get(id(newest), 0.0)
        if self._training() is not newest:
            self._training, self._num_batches = self._newest, 0
        self._num_batches += 1
        self._waited_s.clear()
        return waited_s

    def drop(self) -> None:
        """A pass that does not train begins."""
        self._waited_s.clear()

    def padding_of(self, inputs: Counted) -> int:
        """Return the padding of the oldest batch of this size, as inputs on a device hide it."""
        while self._delivered:
            batch = self._delivered.popleft()
            if batch[2:4] == inputs[2:4]:
                return batch.num_padding
        return UNKNOWN

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the loader that trains; None for all of it if there is none."""
        return self._facts.get(self._training(), dict.fromkeys(LOADER_FACTS))

    @property
    def num_left(self) -> int | None:
        """Batches that are left in this pass over the training loader, if it has a length."""
        iterator: Any = self._training()
        try:
            return max(len(iterator) - self._num_batches, 0)
        except TypeError:  # An iterable dataset, or no loader at all.
            return None

    def _begin(self, iterator: Any, loader: Any, seconds: float) -> None:
        # A loop may keep the iterator alone, so the loader is asked now.
        self._facts[iterator] = facts_of_loader(loader)
        if self._training() is iterator:  # Workers that persist keep their iterator.
            self._num_batches = 0
        self._add(iterator, seconds)

    def _add(self, iterator: Any, seconds: float) -> None:
        # What another thread waits for, the loop does not.
        if threading.get_ident() == self._thread:
            if self._newest() is not iterator:
                self._newest = weakref.ref(iterator)
            self._waited_s[id(iterator)] = self._waited_s.get(id(iterator), 0.0) + seconds

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
