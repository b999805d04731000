"""Record what a live training loop does, per rank and step, without touching it."""

import warnings
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from paceline.timeline import Kind, Summary, Timeline
from paceline.torch.model import Clock, check_trains, clock_of, tensors_in
from paceline.torch.ranks import MEETING_S, Group, gather_timeline, process_group_of

SPANS = (
    ("between steps", Kind.DATA),
    ("forward", Kind.FORWARD),
    ("loss", Kind.FORWARD),
    ("backward", Kind.BACKWARD),
    ("all-reduce", Kind.COLLECTIVE),
    ("after backward", Kind.COMPUTE),
    ("optimizer", Kind.OPTIMIZER),
)
KINDS = np.array([kind for _, kind in SPANS])
BETWEEN, FORWARD, LOSS, BACKWARD, ALL_REDUCE, AFTER, OPTIMIZER = range(len(SPANS))
MARKS_HELD = 1024


def watch(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, process_group: Group | None = None
) -> AbstractContextManager["Watch"]:
    """Record the steps of the training loop inside the `with` block.

    Each mark closes the span that began with the mark before it, so the spans of a rank follow each
    other without gaps: between steps (waiting for data, and whatever else the loop does there),
    forward, loss, backward, all-reduce, optimizer. A rank arrives at the all-reduce when its own
    backward pass has ended; all-reducing makes all ranks *leave* together, so the arrival is what
    tells a slow rank from a fast one.

    For DistributedDataParallel the all-reduce is the wait at the end of `backward()`; for any other
    model in a process group, the time between `backward()` and `optimizer.step()`.

    Costs a few microseconds per step on a CPU and an event per mark on CUDA, where
    nothing waits for the device until the timeline is read or 1,024 marks are held.

    Args:
        model: The module that the loop calls; in data-parallel training the wrapper.
        optimizer: Its `step()` ends a step.
        process_group: Ranks that train together, or an axis of a mesh; unset for the default group.

    Returns:
        What `with` enters; it yields the recorder, which can be read inside and after the block.

    Raises:
        ValueError: If `optimizer` trains another model. One that is never stepped is warned of at
            the end of the block.

    Examples:
        >>> layer = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> with watch(layer, optimizer) as run:
        ...     for _ in range(3):
        ...         layer(torch.ones(2, 4)).sum().backward()
        ...         optimizer.step()
        >>> run.timeline().summary().source
        'measured'
    """
    check_trains(optimizer, model)
    return _Block(model, optimizer, process_group_of(process_group))


class _Block(AbstractContextManager["Watch"]):
    """Records while it is entered."""

    def __init__(self, *watched: Any) -> None:
        self._watched = watched
        self._recorder: Watch | None = None

    def __enter__(self) -> "Watch":
        self._recorder = Watch(*self._watched)
        return self._recorder

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._recorder is not None, "with enters first"
        self._recorder.remove_hooks()
        if kind is None:
            self._recorder.warn_of_no_step()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"watch(...) has no {name!r}, and records nothing by itself; write `with watch(model, "
            f"optimizer) as run:` around the loop, and use run"
        )


class Watch:
    """The recorder that `watch` yields.

    Args:
        model: As for `watch`, like what follows.
        optimizer: Its `step()` ends a step.
        group: Ranks that train together; None for the default group.
        counts: Says whether the forward pass of the model that begins or ends now is part of a
            step. The time of one that is not counts as between steps.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        group: dist.ProcessGroup | None,
        *,
        counts: Callable[[torch.nn.Module], bool] = lambda _: True,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self._group = group
        self._rank = dist.get_rank(group) if distributed else 0
        self._is_parallel = distributed and dist.get_world_size(group) > 1
        self._model = model
        self._clock: Clock = clock_of(model)
        self._step = 0
        self._collective = 0
        self._in_backward = False
        self._active = True
        self._counts = counts
        self._pending: list[object] = []
        # Name, step and collective of each span. Long runs hold many, so no Python objects.
        self._spans = array("i")
        self._times_s = array("d", self._clock.seconds([self._clock.mark()]))
        self._handles = [
            model.register_forward_pre_hook(self._before_forward),
            model.register_forward_hook(self._after_forward),
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
        ]

    @property
    def num_steps(self) -> int:
        """Optimizer steps that have ended."""
        return self._step

    def timeline(self) -> Timeline:
        """Return this rank's spans so far."""
        self._resolve()
        name, step, collective = np.array(self._spans).reshape(-1, 3).T
        times_s = np.array(self._times_s)
        return Timeline.from_columns(
            "measured",
            rank=self._rank,
            start_s=times_s[:-1],
            duration_s=np.diff(times_s),
            kind=KINDS[name],
            name=name,
            step=step,
            collective=collective,
            names=tuple(name for name, _ in SPANS),
        )

    def drain(self) -> Timeline:
        """Return this rank's spans since the last call, and forget them."""
        spans = self.timeline()
        self._spans, self._times_s = array("i"), self._times_s[-1:]
        return spans

    def gather(self, *, timeout_s: float = MEETING_S) -> Timeline:
        """Return the spans of all ranks on one clock; every rank of the group must call it.

        Raises:
            RankStalledError: If a rank does not within `timeout_s` seconds; names it.
        """
        own = self.timeline()
        if not self._is_parallel:
            return own
        return gather_timeline(own, self._group, timeout_s=timeout_s).aligned()

    def summary(self, *, timeout_s: float = MEETING_S) -> Summary:
        """Return what the run cost so far, over all ranks; every rank must call it, as `gather`."""
        return self.gather(timeout_s=timeout_s).summary()

    def remove_hooks(self) -> None:
        """Stop recording; the model and the optimizer are as they were."""
        self._active = False
        while self._handles:
            self._handles.pop().remove()

    def warn_of_no_step(self) -> None:
        """Say so if there were backward passes and the optimizer never stepped."""
        num_backward = self._spans[::3].count(BACKWARD)
        if num_backward and not self._step:
            warnings.warn(
                f"rank {self._rank}: watch saw {num_backward} backward passes and no step of its "
                "optimizer, so it knows of no training step; pass the optimizer whose step() the "
                "loop calls",
                stacklevel=3,
            )

    def _close(self, name: int, collective: int = -1) -> None:
        """End the span that the last mark began."""
        self._pending.append(self._clock.mark())
        self._spans.extend((name, self._step, collective))
        if len(self._pending) >= MARKS_HELD:
            self._resolve()

    def _resolve(self) -> None:
        self._times_s.extend(self._clock.seconds(self._pending))
        self._pending.clear()

    def _before_forward(self, module: torch.nn.Module, _args: Any) -> None:
        if not self._counts(module):
            return
        self._in_backward = False  # The last backward pass may have raised on its way.
        self._close(BETWEEN)

    def _after_forward(self, module: torch.nn.Module, _args: Any, output: Any) -> None:
        if not self._counts(module):
            return
        self._close(FORWARD)
        for tensor in tensors_in(output):
            # A leaf, such as a weight that is handed out, would keep its hook for good.
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(self._on_output_grad)

    def _on_output_grad(self, _grad: torch.Tensor) -> None:
        if self._in_backward or not self._active:
            return
        self._in_backward = True
        self._close(LOSS)
        Variable._execution_engine.queue_callback(self._after_own_backward)

    def _after_own_backward(self) -> None:
        """Run by autograd when this rank's gradients exist: it arrives at the all-reduce.

        DDP queued its own wait meanwhile, so a callback that is queued now runs after that.
        """
        self._close(BACKWARD)
        self._in_backward = False
        model = self._model
        # False inside DDP's no_sync(), where gradients only accumulate.
        syncs = isinstance(model, DistributedDataParallel) and model.require_backward_grad_sync
        if self._is_parallel and syncs:
            Variable._execution_engine.queue_callback(self._after_all_reduce)

    def _after_all_reduce(self) -> None:
        self._close(ALL_REDUCE, self._collective)
        self._collective += 1

    def _before_update(self, _optimizer: object, _args: Any, _kwargs: Any) -> None:
        if self._is_parallel and not isinstance(self._model, DistributedDataParallel):
            self._after_all_reduce()
        else:
            self._close(AFTER)

    def _after_update(self, _optimizer: object, _args: Any, _kwargs: Any) -> None:
        self._close(OPTIMIZER)
        self._step += 1
