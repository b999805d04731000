"""What an expert does by hand: batches of alike lengths, and the best bucket size of DDP."""

import time
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline.demo._config import EXAMPLES_PER_RANK
from paceline.demo._data import Share
from paceline.demo._model import ByteTransformer
from paceline.demo._price import new_optimizer, random_batch, train_step

MEGABATCH = 50
# The first is DistributedDataParallel's default.
BUCKETS_MB = (25.0, 0.5, 0.1)
NUM_WARM_UPS, NUM_TRIALS = 2, 5


def length_grouped_batches(
    sizes: NDArray[np.int64], *, num_ranks: int, seed: int
) -> NDArray[np.int64]:
    """Return which examples the ranks see in each step if batches hold alike lengths.

    The rule is that of `DistributedLengthGroupedSampler` in transformers: a shuffle is cut
    into mega-batches of 50 batches, each is sorted by length, the longest example of all comes
    first, and ranks take examples in turn. That sampler trains each mega-batch from long to short;
    here the steps are shuffled, so that the few that the demo trains stand for all.

    Shape `(num_steps, num_ranks, EXAMPLES_PER_RANK)`; what is left over is dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sizes), generator=generator).numpy()
    size = EXAMPLES_PER_RANK * min(max(len(sizes) // (4 * EXAMPLES_PER_RANK), 1), MEGABATCH)
    parts = [order[begin : begin + size] for begin in range(0, len(order), size)]
    parts = [part[np.argsort(-sizes[part], kind="stable")] for part in parts]
    longest = int(np.argmax([sizes[part[0]] for part in parts]))
    parts[0][0], parts[longest][0] = parts[longest][0], parts[0][0]
    num_steps = len(order) // (num_ranks * EXAMPLES_PER_RANK)
    grouped = np.concatenate(parts)[: num_steps * num_ranks * EXAMPLES_PER_RANK]
    steps = grouped.reshape(num_steps, EXAMPLES_PER_RANK, num_ranks).swapaxes(1, 2)
    shuffled: NDArray[np.int64] = steps[torch.randperm(num_steps, generator=generator).numpy()]
    return shuffled


def best_bucket_mb(model: ByteTransformer) -> float:
    """Return the bucket size with which a step takes least, as measured on all ranks in turn.

    The slowest rank's time counts, in the median over a few steps; all ranks get the same answer.
    """
    replicas = [DistributedDataParallel(deepcopy(model), bucket_cap_mb=mb) for mb in BUCKETS_MB]
    optimizers = [new_optimizer(replica) for replica in replicas]
    shares = [Share(random_batch(EXAMPLES_PER_RANK, 192), 1.0)]
    took_s = torch.zeros(NUM_WARM_UPS + NUM_TRIALS, len(BUCKETS_MB), dtype=torch.float64)
    for row in took_s:
        for column, trained in enumerate(zip(replicas, optimizers, strict=True)):
            dist.barrier()
            begin_s = time.perf_counter()
            train_step(*trained, shares)
            row[column] = time.perf_counter() - begin_s
    dist.all_reduce(took_s, op=dist.ReduceOp.MAX)
    return BUCKETS_MB[int(took_s[NUM_WARM_UPS:].median(dim=0).values.argmin())]
