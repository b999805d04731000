"""Measure what a step costs, and predict both ways from it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist

from paceline.cost import Job, QuadraticCost, Worker, fit_nonnegative
from paceline.demo._data import Batch, TextDataset, paced_split
from paceline.demo._model import CONTEXT_BYTES, NUM_BYTES, ByteTransformer, example_losses
from paceline.plan import data_parallel_graph
from paceline.timeline import simulate
from paceline.torch import measure_job, watch

# Micro-batches (examples, bytes each) that span what both ways will see.
SHAPES = ((2, 256), (8, 64), (32, 64), (24, 192), (8, 512), (16, 384), (4, 1024), (12, 1024))
NUM_REPEATS = 3


def measured_job(model: ByteTransformer, num_ranks: int) -> Job:
    """Return a job whose cost model prices a micro-batch in seconds on this machine.

    All ranks measure at once, as they train, and return the mean of the ranks' medians.
    """
    batch = _random_batch(4, CONTEXT_BYTES // 4)
    job = measure_job(model, batch.text, loss=_loss_of(batch))
    seconds = np.array([_step_seconds(model, shape) for shape in SHAPES])
    mean = torch.from_numpy(seconds)
    dist.all_reduce(mean)
    seconds = mean.numpy() / num_ranks
    counts, sizes = np.array(SHAPES, dtype=np.float64).T
    features = np.stack([np.ones_like(counts), counts * sizes, counts * sizes**2], axis=1)
    # Relative errors count, or the largest micro-batch alone would decide.
    fitted = fit_nonnegative(features / seconds[:, None], np.ones_like(seconds))
    overhead_s, linear, quadratic = fitted.tolist()
    workers = (Worker(overhead_s=overhead_s),) * num_ranks
    return replace(job, cost=QuadraticCost(linear, quadratic), workers=workers)


def predicted_step_s(
    job: Job, dataset: TextDataset, batches: NDArray[np.int64]
) -> dict[str, float]:
    """Return the simulated mean seconds per step of both ways over `batches`."""
    sizes = dataset.sizes[batches].astype(np.float64)
    longest_s = np.asarray(job.cost(sizes.max(axis=2)))
    splits = [paced_split(dataset, step, job.cost) for step in batches]
    compute_s = {
        "plain": longest_s * batches.shape[2],
        "paced": np.stack([split.load for split in splits]),
    }
    return {
        way: simulate(data_parallel_graph(job, seconds)).makespan_s / len(batches)
        for way, seconds in compute_s.items()
    }


def _step_seconds(model: ByteTransformer, shape: tuple[int, int]) -> float:
    trained = deepcopy(model)
    optimizer = new_optimizer(trained)
    batch = _random_batch(*shape)
    loss = _loss_of(batch)
    with watch(trained, optimizer) as run:
        for _ in range(1 + NUM_REPEATS):
            dist.barrier()
            train_step(trained, optimizer, batch, loss)
    # Only what this rank itself did counts, in the median over steps.
    own = run.timeline()
    busy = own.select(np.isin(own.kind, [1, 2, 3]))
    return float(np.median(np.bincount(busy.step, busy.duration_s)[1:]))


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Run one step of training; return its loss."""
    optimizer.zero_grad(set_to_none=True)
    value = loss(model(batch.text))
    value.backward()
    optimizer.step()
    return value.detach()


def new_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the demo's optimizer."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _random_batch(num_examples: int, num_bytes: int) -> Batch:
    text = torch.randint(NUM_BYTES, (num_examples, num_bytes))
    return Batch(text=text, lengths=torch.full((num_examples,), num_bytes))


def _loss_of(batch: Batch) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda logits: example_losses(logits, batch.text, batch.lengths).mean()
