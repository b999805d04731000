"""Measure what a step costs, and predict every way from it."""

from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline.cost import Job, QuadraticCost, Worker, fit_nonnegative
from paceline.demo._data import Batch, Share, TextDataset
from paceline.demo._model import CONTEXT_BYTES, NUM_BYTES, ByteTransformer, example_losses
from paceline.plan import data_parallel_graph
from paceline.timeline import Kind, simulate
from paceline.torch import measure_job, watch

# Micro-batches (examples, bytes each) that span what all ways will see. The smallest tell what a
# micro-batch costs by itself.
SHAPES = ((1, 16), (1, 96), (2, 48), (2, 256), (8, 64), (32, 64), (24, 192), (8, 512), (4, 1024))
NUM_REPEATS = 3


def measured_job(model: ByteTransformer, num_ranks: int) -> tuple[Job, float]:
    """Return a job with costs in seconds on this machine, and the cost of a micro-batch.

    The job's cost model prices an example of a padded micro-batch; the second number is
    what a micro-batch costs besides its examples. All ranks measure at once, as they will
    train at once. The mean of the ranks' medians counts, equal on every rank.
    """
    shares = [Share(random_batch(4, CONTEXT_BYTES // 4), 1.0)]
    job = measure_job(model, shares[0].batch.text, loss=lambda logits: _loss(logits, shares[0]))
    mean = torch.from_numpy(np.array([_step_seconds(model, shape) for shape in SHAPES]))
    dist.all_reduce(mean)
    passes_s, optimizer_s = (mean.numpy() / num_ranks).T
    counts, sizes = np.array(SHAPES, dtype=np.float64).T
    features = np.stack([np.ones_like(counts), counts * sizes, counts * sizes**2], axis=1)
    # Relative errors count, or the largest micro-batch alone would decide.
    fitted = fit_nonnegative(features / passes_s[:, None], np.ones_like(passes_s))
    microbatch_s, linear, quadratic = fitted.tolist()
    workers = (Worker(overhead_s=float(np.median(optimizer_s))),) * num_ranks
    return replace(job, cost=QuadraticCost(linear, quadratic), workers=workers), microbatch_s


def predicted_steps_s(job: Job, compute_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the simulated seconds of each step.

    `compute_s` holds the passes of each rank, shape `(num_steps, num_ranks)`.
    """
    return simulate(data_parallel_graph(job, compute_s)).summary().step_times_s


def whole_batch_s(
    job: Job, microbatch_s: float, dataset: TextDataset, batches: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return what batches cost if each rank pads its own whole, shape `(num_steps, num_ranks)`."""
    longest_s = np.asarray(job.cost(dataset.sizes[batches].max(axis=2).astype(np.float64)))
    whole_s: NDArray[np.float64] = longest_s * batches.shape[2] + microbatch_s
    return whole_s


def _step_seconds(model: ByteTransformer, shape: tuple[int, int]) -> list[float]:
    """Return the median seconds of both passes, and of the optimizer, of this rank itself."""
    trained = deepcopy(model)
    optimizer = new_optimizer(trained)
    shares = [Share(random_batch(*shape), 1.0)]
    with watch(trained, optimizer) as run:
        for _ in range(1 + NUM_REPEATS):
            dist.barrier()
            train_step(trained, optimizer, shares)
    own = run.timeline()
    groups = ((Kind.FORWARD, Kind.BACKWARD), (Kind.OPTIMIZER,))
    parts = [own.select(np.isin(own.kind, kinds)) for kinds in groups]
    return [float(np.median(np.bincount(part.step, part.duration_s)[1:])) for part in parts]


def train_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, shares: Sequence[Share]
) -> torch.Tensor:
    """Run one step of training on this rank's micro-batches; return its weighted loss.

    The ranks communicate in the last backward pass only.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for share in shares:
        with ExitStack() as only_adds_up:
            if isinstance(model, DistributedDataParallel) and share is not shares[-1]:
                only_adds_up.enter_context(model.no_sync())
            loss = share.loss_weight * _loss(model(share.batch.text), share)
            loss.backward()
        total += loss.detach()
    optimizer.step()
    return total


def new_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the demo's optimizer."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def random_batch(num_examples: int, num_bytes: int) -> Batch:
    """Return a micro-batch without padding."""
    text = torch.randint(NUM_BYTES, (num_examples, num_bytes))
    return Batch(text=text, lengths=torch.full((num_examples,), num_bytes))


def _loss(logits: torch.Tensor, share: Share) -> torch.Tensor:
    return example_losses(logits, share.batch.text, share.batch.lengths).mean()
