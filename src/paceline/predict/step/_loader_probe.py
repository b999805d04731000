"""Time the user's own loader for a few seconds: no model and no GPU are needed."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

from paceline.predict._conformal import Estimate

# Batches that each worker process has ready before the first is asked for (PyTorch's default).
PREFETCHED = 2
# Assumed: the factor by which a loader beside training may differ from the timed one.
PROBE_SPREAD = 1.25
NO_BATCH = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderProbe:
    """What a loader delivers when nothing but the loader is busy; made by `probe_loader`.

    Attributes:
        seconds_per_example: While `num_workers` processes load on `num_cores` cores.
        num_workers: Loader processes; 0 where the training process itself loads.
        num_cores: Of the host.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> here = LoaderProbe(seconds_per_example=1e-3, num_workers=2, num_cores=4)
        >>> here.on(num_workers=8, num_cores=32).seconds_per_example
        0.00025
    """

    seconds_per_example: float
    num_workers: int
    num_cores: int

    def __post_init__(self) -> None:
        if not 0 < self.seconds_per_example < float("inf"):
            raise ValueError(
                f"seconds_per_example must be finite and positive, got {self.seconds_per_example}"
            )
        if self.num_workers < 0 or self.num_cores < 1:
            raise ValueError(
                f"num_workers ({self.num_workers}) must not be negative and num_cores "
                f"({self.num_cores}) must be at least 1"
            )

    @property
    def num_parallel(self) -> int:
        """Processes that load at one time."""
        return min(max(self.num_workers, 1), self.num_cores)

    def feed(self, batch_size: float) -> Estimate:
        """Seconds that a batch takes."""
        seconds = self.seconds_per_example * batch_size
        return Estimate(seconds, seconds / PROBE_SPREAD, seconds * PROBE_SPREAD)

    def step(self, compute: Estimate, feed: Estimate) -> Estimate:
        """Seconds of a step: worker processes load beside it, without them both take turns."""
        if not self.num_workers:
            return compute.plus(feed)
        return Estimate(
            max(compute.median, feed.median),
            max(compute.low, feed.low),
            max(compute.high, feed.high),
        )

    def on(self, *, num_workers: int, num_cores: int) -> "LoaderProbe":
        """The same loader with other processes on a host with other cores, equally fast ones."""
        there = replace(self, num_workers=num_workers, num_cores=num_cores)
        seconds = self.seconds_per_example * self.num_parallel / there.num_parallel
        return replace(there, seconds_per_example=seconds)


def probe_loader(
    loader: Iterable[object],
    *,
    batch_size: int,
    num_workers: int = 0,
    seconds: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
) -> LoaderProbe:
    """Take batches from a loader as fast as they come, and say what an example costs.

    The first batches are not counted: processes start, and each has some ready.

    Args:
        loader: Such as a `DataLoader`, with the dataset, transforms and workers of the run.
        batch_size: Examples per batch that it yields.
        num_workers: Its worker processes; the estimate depends on whether it has any.
        seconds: How long to take batches.
        clock: Seconds from any start.

    Raises:
        ValueError: If a setting is below 1 or the loader ends before a batch can be timed.
    """
    if batch_size < 1 or seconds <= 0:
        raise ValueError(
            f"batch_size ({batch_size}) must be at least 1 and seconds ({seconds}) positive"
        )
    batches = iter(loader)
    warm_up = max(1, PREFETCHED * num_workers)
    taken = sum(1 for _ in islice(batches, warm_up))
    begin = end = clock()
    num_batches = 0
    while end - begin < seconds and next(batches, NO_BATCH) is not NO_BATCH:
        num_batches, end = num_batches + 1, clock()
    if taken < warm_up or not num_batches or end <= begin:
        raise ValueError(
            f"the loader must yield more than {warm_up} batches to be timed, got "
            f"{taken + num_batches}; pass a loader of more examples or with smaller batches"
        )
    return LoaderProbe(
        seconds_per_example=(end - begin) / (num_batches * batch_size),
        num_workers=num_workers,
        num_cores=os.cpu_count() or 1,
    )
