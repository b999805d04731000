"""The plain way: PyTorch's own DistributedDataParallel around the same module."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from paceline.torch.comm.plain._absent import AbsentGradients
from paceline.torch.comm.transfer import Trained
from paceline.torch.comm.whole import compress_hook

# Newer versions of PyTorch warn of the older name.
_NAMES = ("forward_sync_buffers", "broadcast_buffers")
_SYNC_BUFFERS = next(n for n in _NAMES if n in signature(DistributedDataParallel).parameters)

# Passed as None, since with a cap that is given the first bucket is not a small one.
DEFAULT_MB = 25


class PlainParallel:
    """Runs the module in DistributedDataParallel while no plan of ours is executed.

    Its reducer is C++ and takes less of a core than our threads, so where nothing is to
    be gained from the next forward pass, it is what trains.

    Args:
        module: The bare model.
        trained: Its parameters; their group sends nothing else meanwhile.
        wire: Type that gradients are sent in; None for their own.
    """

    def __init__(
        self, module: torch.nn.Module, trained: Trained, wire: torch.dtype | None = None
    ) -> None:
        self._module, self._trained, self._wire = module, trained, wire
        self._parallel: DistributedDataParallel | None = None
        self._bucket_mb = 0.0
        self._has_means = False

    @property
    def is_on(self) -> bool:
        """Whether forward passes go through `forward`."""
        return self._parallel is not None

    def enter(self, bucket_mb: float) -> None:
        """Take over from the next forward pass on, with buckets of `bucket_mb` MiB.

        Parameters are equal on all ranks already, and buffers are broadcast by the caller.
        """
        if self._parallel is not None and self._bucket_mb == bucket_mb:
            return
        self.leave()
        self._bucket_mb = bucket_mb
        sync_buffers: Any = {_SYNC_BUFFERS: False}
        self._gradients = AbsentGradients(self._module, self._trained.parameters)
        self._parallel = DistributedDataParallel(
            self._gradients,
            process_group=self._trained.group,
            bucket_cap_mb=None if bucket_mb == DEFAULT_MB else bucket_mb,
            **sync_buffers,
            init_sync=False,
            gradient_as_bucket_view=True,
        )
        if self._wire is not None:
            self._parallel.register_comm_hook(self._trained.group, compress_hook(self._wire))

    def leave(self) -> None:
        """Remove the reducer and its hooks."""
        self._parallel = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module; a backward pass is averaged between `begin` and `finish`."""
        if self._gradients.has_changed:  # A parameter was frozen, or thawed.
            self.renew()
        # What DDP prepares in forward passes is done by `begin`, before each backward pass.
        self._running().require_backward_grad_sync = False
        with self._trained.talking("a bucket of gradients"):
            return self._running()(*args, **kwargs)

    def begin(self) -> None:
        """Average the gradients of the backward pass that begins."""
        self._running().reducer.prepare_for_backward([])

    def finish(self, came: Sequence[bool]) -> None:
        """Complete the backward pass, in which some parameters got a gradient."""
        with self._trained.talking("a bucket of gradients"):
            self._gradients.complete(came)
        self._has_means = True

    def renew(self) -> None:
        """Start afresh, in place of a reducer whose backward pass raised or whose model changed."""
        self.leave()
        self.enter(self._bucket_mb)

    def end_backward(self) -> None:
        """Average what is in `.grad` where no backward pass was seen."""
        if not self._has_means:
            self.begin()
            self.finish([False] * len(self._trained.parameters))

    def end_step(self) -> None:
        """Expect another backward pass."""
        self._has_means = False

    def _running(self) -> DistributedDataParallel:
        if self._parallel is None:
            raise AssertionError("the plain way was not entered")
        return self._parallel
