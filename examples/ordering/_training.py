"""The data-parallel loop that the three examples share: sketches travel, orders come back."""

import argparse
import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Loaded before there is a process group: its functions' defaults would hold the group for ever.
import torch.distributed.nn
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import paceline
from paceline.order import (
    OrderPolicy,
    coordinated_pair_balance,
    independent_mean_balance,
    independent_pair_balance,
    random_reshuffling,
)
from paceline.torch.order import GradientSketch, quantise_rows

SORTERS = ("D-GraB", "I-B", "I-PB", "D-RR")


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that the examples share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--sorter", choices=SORTERS, default="D-GraB")
    made.add_argument("--grad_acc", type=int, default=1, help="micro-batches per step")
    made.add_argument("--backend", default="gloo")
    made.add_argument("--epochs", type=int, default=3)
    made.add_argument("--batch_size", type=int, default=4, help="examples of a micro-batch")
    made.add_argument("--lr", type=float, default=0.1)
    made.add_argument("--dim", type=int, default=1024, help="columns of a sketch")
    made.add_argument("--every", type=int, default=1, help="sketch each so-many-th epoch")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--out", type=Path, help="folder for checkpoints; goes on from the newest whole one in it"
    )
    return made


class OrderState:
    """The state of an order, with tensors for its arrays, as `paceline.Checkpoint` wants them."""

    def __init__(self, policy: OrderPolicy) -> None:
        self._policy = policy

    def state_dict(self) -> dict[str, Any]:
        """Return what was learnt, and in which epoch."""
        return _each(np.ndarray, torch.from_numpy, self._policy.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self._policy.load_state_dict(_each(Tensor, Tensor.numpy, state))


def _each(kind: type, change: Callable[[Any], Any], state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _each(kind, change, value)
        if isinstance(value, Mapping)
        else (change(value) if isinstance(value, kind) else value)
        for key, value in state.items()
    }


def policy_of(sorter: str, num_examples: int, num_workers: int, seed: int) -> OrderPolicy:
    """Return the order that a sorter's name stands for."""
    if sorter == "D-RR":
        return random_reshuffling(num_examples, seed=seed)
    made = {
        "D-GraB": coordinated_pair_balance,
        "I-B": independent_mean_balance,
        "I-PB": independent_pair_balance,
    }
    return made[sorter](num_examples, num_workers, seed=seed)


def run(
    options: argparse.Namespace,
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
) -> list[float]:
    """Train on all ranks; return the loss over all examples after each epoch.

    The model is gone when the group is destroyed, which then ends its threads. One that let go of
    a tensor while the interpreter shuts down would abort the process.
    """
    dist.init_process_group(options.backend, timeout=timedelta(seconds=120))
    try:
        return _train(options, model, loss_of, x, y)
    finally:
        gc.collect()  # Compiling for the first time leaves cycles that hold the model.
        dist.destroy_process_group()


def _train(
    options: argparse.Namespace,
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
) -> list[float]:
    rank, num_workers = dist.get_rank(), dist.get_world_size()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)
    policy = policy_of(options.sorter, len(x), num_workers, options.seed)
    sketch = GradientSketch(parallel, dim=options.dim, every=options.every)
    losses = []
    with _checkpoint(options, parallel, optimizer, policy) as checkpoint:
        for epoch in range(checkpoint.resume() if checkpoint else 0, options.epochs):
            start = time.perf_counter()
            _train_epoch(options, epoch, parallel, loss_of, x, y, optimizer, policy, sketch)
            took = time.perf_counter() - start
            losses.append(_mean_loss(model, loss_of, x, y))
            if checkpoint:
                checkpoint.save(epoch + 1)
            if rank == 0:
                print(
                    f"{options.sorter} epoch {epoch} loss {losses[-1]:.5f} ({took:.2f} s)",
                    flush=True,
                )
    sketch.remove_hooks()
    return losses


def _checkpoint(
    options: argparse.Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    policy: OrderPolicy,
) -> AbstractContextManager[paceline.Checkpoint | None]:
    """Return what saves each epoch, so that torchrun may start all again; None without `--out`."""
    if options.out is None:
        return nullcontext()
    order = OrderState(policy)
    return paceline.Checkpoint(options.out, model=model, optimizer=optimizer, order=order)


def _train_epoch(
    options: argparse.Namespace,
    epoch: int,
    parallel: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    policy: OrderPolicy,
    sketch: GradientSketch,
) -> None:
    rank, num_workers = dist.get_rank(), dist.get_world_size()
    per_step = options.batch_size * options.grad_acc * num_workers
    sketch.set_epoch(epoch)
    if not policy.needs_rows:
        sketch.remove_hooks()
    order = torch.from_numpy(policy.order(epoch))
    for ids in order[: len(x) - len(x) % per_step].split(per_step):
        # Position p of the order belongs to worker p % num_workers.
        own = ids[rank::num_workers]
        optimizer.zero_grad()
        for part in own.split(options.batch_size):
            (loss_of(parallel(x[part]), y[part]) / options.grad_acc).backward()
        if sketch.is_on:
            rows = sketch.take(loss_scale=1 / options.grad_acc)
            _observe(policy, ids, rows, num_workers)
        optimizer.step()
    policy.end_epoch()


def _observe(policy: OrderPolicy, ids: Tensor, rows: Tensor, num_workers: int) -> None:
    """Send this rank's rows to all, a byte a number, and let every rank learn the same."""
    values, scale = quantise_rows(rows)
    all_values = values.new_empty(num_workers * len(values), values.shape[1])
    all_scales = scale.new_empty(num_workers * len(scale))
    dist.all_gather(list(all_values.chunk(num_workers)), values)
    dist.all_gather(list(all_scales.chunk(num_workers)), scale)
    by_rank = torch.cat([ids[rank::num_workers] for rank in range(num_workers)])
    place = torch.argsort(torch.arange(len(ids)) % num_workers, stable=True).argsort()
    policy.observe(by_rank[place].numpy(), all_values[place].numpy(), all_scales[place].numpy())


@torch.no_grad()
def _mean_loss(
    model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> float:
    model.eval()
    parts = zip(x.split(512), y.split(512), strict=True)
    total = sum(float(loss_of(model(a), b)) * len(a) for a, b in parts)
    model.train()
    return total / len(x)
