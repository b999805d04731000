"""One step in detail: each layer's passes, and each bucket that DistributedDataParallel sends."""

import time
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.parallel import DistributedDataParallel

from paceline.timeline import BUCKET_LANE, LAYER_LANE, Kind, Timeline
from paceline.torch.measure._layer_marks import LayerMarks
from paceline.torch.model import CpuClock

# Far above the numbers of a run's own collectives.
FIRST_BUCKET = 1 << 40
ORIGIN = "paceline origin"
SENT = "gloo:all_reduce"
# Kineto, the profiler that replaces this one, prints lines into the output of a script.
PROFILER: Any = torch._C._autograd


class Sent(NamedTuple):
    """One all-reduce of this rank, on its own clock: since gloo took it up.

    The end is infinite where the profiler was stopped in the moment that it came.
    """

    num_elements: int
    begin_s: float
    end_s: float


class Detail:
    """Records one step of a model on a CPU from `open` to `close`.

    Layers are marked by hooks. What DDP sends shows in the profiler of PyTorch alone, which listens
    from the end of a forward pass to the update: there a script hardly starts one of its own.

    Args:
        model: What the loop calls.
        step: The step's number.
    """

    def __init__(self, model: torch.nn.Module, step: int) -> None:
        self._step = step
        self._ddp = model if isinstance(model, DistributedDataParallel) else None
        self._layers = LayerMarks(self._ddp.module if self._ddp else model, CpuClock())
        self._hooks = ExitStack()
        self._listens = False
        self._sent: list[Sent] = []

    def open(self) -> None:
        """Mark layers from here on."""
        self._hooks.enter_context(self._layers.hooks())

    def listen(self) -> None:
        """A forward pass has ended: what is sent from here on is noted."""
        if self._ddp is None or self._listens or PROFILER._profiler_enabled():
            return
        kinds: Any = torch._C._profiler
        with_shapes, others = True, (False,) * 4
        config = kinds.ProfilerConfig(
            kinds.ProfilerState.CPU, with_shapes, *others, kinds._ExperimentalConfig()
        )
        PROFILER._enable_profiler_legacy(config)
        self._listens, self._origin_s = True, time.perf_counter()
        with torch.autograd.profiler.record_function(ORIGIN):
            pass

    def hear(self) -> None:
        """Stop listening, before a forward pass or the update."""
        if self._listens:
            self._listens = False
            self._sent += _sent(PROFILER._disable_profiler_legacy(), self._origin_s)

    def close(self) -> None:
        """The step has ended: remove all hooks."""
        self.hear()
        self._hooks.close()

    def timeline(self, main: Timeline) -> Timeline:
        """Return the step's spans: those of `main`, this rank's lane, and two lanes more."""
        parts = [main, self._of_layers(main), self._of_buckets(main)]
        return Timeline.merge([part for part in parts if len(part)] or [main])

    def _of_layers(self, main: Timeline) -> Timeline:
        """A layer begins where the one before it ended, or where the pass did."""
        passes = main.select(
            (main.step == self._step) & np.isin(main.kind, (Kind.FORWARD, Kind.BACKWARD))
        )
        end_s = np.array([one.mark for one in self._layers.taken], dtype=np.float64)
        of_pass = np.searchsorted(passes.start_s, end_s) - 1
        inside = (of_pass >= 0) & (end_s <= passes.end_s[of_pass]) if len(passes) else of_pass > 0
        before_s = np.concatenate([[-np.inf], end_s[:-1]])
        start_s = np.maximum(before_s[inside], passes.start_s[of_pass[inside]])
        layers = np.array([one.layer for one in self._layers.taken], dtype=np.int64)
        return self._lane(
            LAYER_LANE,
            main,
            start_s=start_s,
            duration_s=end_s[inside] - start_s,
            kind=passes.kind[of_pass[inside]],
            name=layers[inside],
            names=[name or "whole model" for name in self._layers.names],
        )

    def _of_buckets(self, main: Timeline) -> Timeline:
        """Name what was sent by the bucket whose size it has; DDP sends them in their order."""
        sizes = [] if self._ddp is None else _bucket_bytes(self._ddp)
        matched: list[Sent] = []
        for one in self._sent:
            left = sizes[len(matched) :]
            if left and one.num_elements * _bytes_per_element(self._ddp) == left[0]:
                matched.append(one)
        step = main.select(main.step == self._step)
        joint = step.select(step.kind == Kind.COLLECTIVE)
        latest_s = (joint if len(joint) else step).end_s.max(initial=-np.inf)
        begin_s, end_s = np.array([one[1:] for one in matched], dtype=np.float64).reshape(-1, 2).T
        # This rank arrives when the bucket is full; gloo may take it up later. DDP waits for all.
        begin_s = np.minimum(begin_s, self._full_s(sizes)[: len(matched)])
        end_s = np.minimum(end_s, latest_s)
        number = np.arange(len(matched))
        return self._lane(
            BUCKET_LANE,
            main,
            start_s=begin_s,
            duration_s=np.maximum(end_s - begin_s, 0.0),
            kind=Kind.COLLECTIVE,
            name=number,
            names=[f"bucket {index}, {size:,} bytes" for index, size in enumerate(sizes)],
            collective=FIRST_BUCKET + number,
        )

    def _full_s(self, sizes: list[int]) -> NDArray[np.float64]:
        """Return when each bucket was full; DDP fills them in the order of the gradients."""
        forward = [place for place, one in enumerate(self._layers.taken) if not one.gradient_bytes]
        ready = self._layers.taken[max(forward, default=-1) + 1 :]
        num_bytes = np.cumsum([one.gradient_bytes for one in ready])
        ready_s = np.array([*(one.mark for one in ready), np.inf], dtype=np.float64)
        return np.asarray(ready_s[np.searchsorted(num_bytes, np.cumsum(sizes))])

    def _lane(self, lane: str, main: Timeline, **columns: Any) -> Timeline:
        rank = int(main.rank[0]) if len(main) else 0
        names = columns.pop("names") or [""]
        return Timeline.from_columns(
            main.source, rank=rank, lanes=(lane,), names=names, step=self._step, **columns
        )


def _sent(records: Any, origin_s: float) -> list[Sent]:
    """Return the all-reduces in what the profiler noted, in the order in which they began."""
    events = [event for thread in records for event in thread]
    origin = next((event for event in events if event.name() == ORIGIN), None)
    if origin is None:  # The script has switched such marks off.
        return []
    ends = {event.handle(): event for event in events if event.kind() == "pop"}
    begun = [event for event in events if event.name() == SENT]

    def seconds(event: Any) -> float:
        return origin_s + 1e-6 * float(origin.cpu_elapsed_us(event)) if event else np.inf

    found = [
        Sent(_num_elements(event.shapes()), seconds(event), seconds(ends.get(event.handle())))
        for event in begun
    ]
    return sorted(found, key=lambda one: one.begin_s)


def _num_elements(shapes: Any) -> int:
    return int(sum(np.prod(shape, dtype=np.int64) for shape in shapes))


def _bucket_bytes(ddp: DistributedDataParallel) -> list[int]:
    """Return the bytes of each bucket, in the order of sending."""
    told = ddp._get_ddp_logging_data()
    text = str(told.get("rebuilt_bucket_sizes") or told.get("bucket_sizes") or "")
    return [int(size) for size in text.split(",") if size.strip()]


def _bytes_per_element(ddp: DistributedDataParallel | None) -> int:
    return next((one.element_size() for one in ddp.parameters()), 1) if ddp is not None else 1
