"""The loop of every framework that only loads data: DistributedDataParallel under torchrun."""

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tests.integrations.data import (
    NUM_EPOCHS,
    SIZES,
    STEPS_PER_EPOCH,
    Record,
    Reverser,
    arguments,
    config_of,
    optimizer_of,
    runs_of,
)
from torch import Tensor, distributed, nn

import paceline


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return model(batch["x"], batch["is_token"])


def train(loader: Any, saved: Path, point: int | None, record: Record, loss: Any) -> nn.Module:
    """Train on what the loader yields, from a saved state on."""
    bare = Reverser()
    model, optimizer = nn.parallel.DistributedDataParallel(bare), optimizer_of(bare)
    if point is not None:
        state = torch.load(saved / f"{point}.pt")
        bare.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(json.loads(state["loader"]))
    num_steps = point or 0
    for epoch in range(num_steps // STEPS_PER_EPOCH, NUM_EPOCHS):
        loader.batch_sampler.set_epoch(epoch)
        for found in loader:
            batch, info = found if isinstance(found, tuple) else (found, None)
            weight = batch["loss_weight"] if info is None else info.loss_weight
            is_step_end = batch["is_step_end"] if info is None else info.is_step_end
            record.add(
                {
                    "index": batch["number" if "number" in batch else "index"],
                    "loss_weight": weight,
                    "is_step_end": is_step_end,
                }
            )
            with nullcontext() if is_step_end else model.no_sync():
                (loss(model, batch) * weight).backward()
            if is_step_end:
                optimizer.step()
                optimizer.zero_grad()
                num_steps += 1
                if point is None and distributed.get_rank() == 0:
                    state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict()}
                    state["loader"] = json.dumps(loader.state_dict())
                    torch.save(state, saved / f"{num_steps}.pt")
    return bare


def main(
    loader_of: Callable[[paceline.BalancedBatchSampler, int], Any], loss: Any = loss_of
) -> None:
    """Train on a framework's loaders, made of a sampler and a number of workers."""
    folder, num_ranks = arguments()
    distributed.init_process_group("gloo")
    record = Record()
    for num_micro, point in runs_of(num_ranks):
        saved = folder / f"{num_micro}"
        os.makedirs(saved, exist_ok=True)
        batches = paceline.BalancedBatchSampler(SIZES, config_of(num_micro))
        # Workers fetch ahead, and what they fetched does not count as delivered.
        loader = loader_of(batches, 2 * (num_micro == 2))
        model = train(loader, saved, point, record, loss)
        record.end_run(f"{num_micro} from {point}", model)
    record.write(folder, num_ranks, distributed.get_rank())
    distributed.destroy_process_group()
