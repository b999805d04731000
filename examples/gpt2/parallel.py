"""One model on one or many ranks, behind one face: backward, clip, update."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from options import Options
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import paceline


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Which rank this is, of how many, and where it computes."""

    rank: int
    num_ranks: int
    device: torch.device

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add `values` up over the ranks; a new tensor in double precision on the host."""
        total = values.detach().to("cpu", torch.float64)
        if self.num_ranks > 1:
            dist.all_reduce(total)
        return total


@contextmanager
def joined_world(options: Options) -> Iterator[World]:
    """Join the ranks that torchrun started; without it there is one.

    A process group that is there already is used and left alone.

    Raises:
        ValueError: If `--parallel` does not go with the number of ranks.
    """
    is_ours = not dist.is_initialized()
    is_started = "WORLD_SIZE" in os.environ or not is_ours
    if options.parallel != "single" and not is_started:
        raise ValueError(
            f"--parallel {options.parallel} needs ranks; start it with: torchrun "
            f"--nproc_per_node=2 train.py --parallel {options.parallel}"
        )
    num_ranks = int(os.environ.get("WORLD_SIZE", 1)) if is_ours else dist.get_world_size()
    if options.parallel == "single":
        if num_ranks > 1:
            raise ValueError(
                f"{num_ranks} ranks were started, and --parallel single trains one; use ddp or "
                "scheduled"
            )
        yield World(rank=0, num_ranks=1, device=_device(options.device))
        return
    device = _device(options.device)
    if is_ours:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=options.timeout_s))
    try:
        yield World(rank=dist.get_rank(), num_ranks=dist.get_world_size(), device=device)
    finally:
        if is_ours:
            dist.destroy_process_group()


def _device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("--device cuda needs a CUDA device, and there is none; use cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


class Replica(Protocol):
    """A model as one rank sees it.

    Attributes:
        name: For the progress line.
    """

    name: str

    @property
    def model(self) -> nn.Module:
        """What to call."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients are only added up."""

    def clip(self, max_norm: float) -> None:
        """Scale the averaged gradients down to `max_norm`."""

    def update(self) -> None:
        """Step the optimizer and clear the gradients."""

    def explain(self) -> str:
        """Say what was chosen and why."""

    def flush(self) -> None:
        """Finish all updates, so that parameters may be read."""

    def close(self) -> None:
        """End what runs beside."""


class Plain:
    """The model as it is, or in PyTorch's DistributedDataParallel."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, ddp: bool) -> None:
        self.name = "ddp" if ddp else "single"
        self.model = DistributedDataParallel(model) if ddp else model
        self._optimizer = optimizer

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients are only added up."""
        if isinstance(self.model, DistributedDataParallel):
            inside: AbstractContextManager[None] = self.model.no_sync()
            return inside
        return nullcontext()

    def clip(self, max_norm: float) -> None:
        """Scale the averaged gradients down to `max_norm`."""
        nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def update(self) -> None:
        """Step the optimizer and clear the gradients."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def explain(self) -> str:
        """Say what was chosen and why."""
        return "plain PyTorch"

    def flush(self) -> None:
        """Do nothing: all updates are done."""

    def close(self) -> None:
        """Do nothing."""


class Scheduled:
    """The model in `paceline.ScheduledDataParallel`."""

    name = "scheduled"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = paceline.ScheduledDataParallel(model, optimizer)

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients are only added up."""
        return self.model.no_sync()

    def clip(self, max_norm: float) -> None:
        """Scale the averaged gradients down to `max_norm`."""
        self.model.clip_grad_norm_(max_norm)

    def update(self) -> None:
        """Step the optimizer and clear the gradients."""
        self.model.step()

    def explain(self) -> str:
        """Say what was chosen and why."""
        return self.model.explain()

    def flush(self) -> None:
        """Finish all updates, so that parameters may be read."""
        self.model.flush()

    def close(self) -> None:
        """End the thread that sends."""
        self.model.close()


REPLICAS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], Replica]] = {
    "single": lambda model, optimizer: Plain(model, optimizer, ddp=False),
    "ddp": lambda model, optimizer: Plain(model, optimizer, ddp=True),
    "scheduled": Scheduled,
}


@contextmanager
def split_gradients(model: nn.Module, deferred: str | None) -> Iterator[Any]:
    """Defer the weight gradients of `model` inside; yield what explains it, or None."""
    if deferred is None:
        yield None
        return
    from paceline.overlap import defer_all

    with paceline.split_backward(model, plan=defer_all() if deferred == "all" else None) as split:
        yield split
