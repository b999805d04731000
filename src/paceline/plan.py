"""Where the rooms meet: a job and what was decided, turned into tasks that can be priced."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.comm import ddp_buckets
from paceline.cost import Job
from paceline.timeline import Kind, TaskGraph


def data_parallel_graph(
    job: Job, compute_s: ArrayLike, *, buckets: Sequence[Sequence[int]] | None = None
) -> TaskGraph:
    """Lay out steps of data-parallel training as DistributedDataParallel runs them.

    Per step and rank: the forward pass; the backward pass, cut where a bucket of
    gradients is full; one all-reduce per bucket on a lane of its own; when the last
    one is through, the optimizer. The job's layers say how a step divides, and
    `compute_s` how long it takes; the wire is taken not to slow the compute.

    Args:
        job: Layers, link and workers; their number is the number of ranks.
        compute_s: Forward plus backward seconds of each rank in each step, speed
            included, shape `(num_steps, num_ranks)`.
        buckets: Layer indices per bucket in the order of sending; unset for the
            buckets that DDP makes by default.

    Returns:
        A graph for `simulate`, without all-reduces for a job of one worker.

    Raises:
        ValueError: If shapes disagree, a bucket is empty or names a layer that the job does
            not have, or a job of several workers has no link.

    Examples:
        >>> from paceline.cost import LayerCost, Link, Worker
        >>> from paceline.timeline import simulate
        >>> job = Job(
        ...     source="predicted",
        ...     layers=(LayerCost(name="0", forward_s=1.0, backward_s=2.0, gradient_bytes=8),),
        ...     link=Link(alpha_s=0.5, bytes_per_s=16.0),
        ...     workers=(Worker(), Worker()),
        ... )
        >>> simulate(data_parallel_graph(job, [[3.0, 6.0]])).makespan_s
        7.0
    """
    compute = np.asarray(compute_s, dtype=np.float64)
    num_ranks = len(job.workers)
    if compute.ndim != 2 or compute.shape[1] != num_ranks:
        raise ValueError(
            f"compute_s must have shape (num_steps, {num_ranks} workers), got {compute.shape}"
        )
    if num_ranks > 1 and job.link is None:
        raise ValueError(
            f"a job of {num_ranks} workers needs a link; measure it in a process group or pass one"
        )
    if buckets is None:
        buckets = ddp_buckets([layer.gradient_bytes for layer in job.layers])
    _check_buckets(buckets, len(job.layers))
    if num_ranks == 1:
        buckets = ()
    forward_share, segment_share = _shares(job, buckets)
    overhead_s = np.array([worker.overhead_s for worker in job.workers])
    wire_s = [_transfer_s(job, bucket) for bucket in buckets]
    # Tasks of one (step, rank): forward, a segment per bucket and the rest, wires, optimizer.
    template = np.concatenate([[forward_share], segment_share, np.zeros(len(buckets) + 1)])
    duration = compute[:, :, None] * template
    duration[:, :, len(segment_share) + 1 : -1] = wire_s
    duration[:, :, -1] = overhead_s
    return _tile(duration, len(buckets))


def _check_buckets(buckets: Sequence[Sequence[int]], num_layers: int) -> None:
    for index, bucket in enumerate(buckets):
        if not (len(bucket) and all(0 <= layer < num_layers for layer in bucket)):
            raise ValueError(
                f"each bucket must hold layer indices in [0, {num_layers}), but buckets[{index}] "
                f"is {tuple(bucket)}"
            )


def _shares(job: Job, buckets: Sequence[Sequence[int]]) -> tuple[float, NDArray[np.float64]]:
    """Return the share of the forward pass, and of each stretch of the backward pass."""
    total_s = job.forward_s + job.backward_s
    if not total_s:
        return 1.0, np.zeros(len(buckets) + 1)
    backward_s = np.array([layer.backward_s for layer in job.layers])
    # Seconds from the start of the backward pass until each layer's gradients are ready.
    ready_s = np.cumsum(backward_s[::-1])[::-1]
    cuts = [float(max(ready_s[layer] for layer in bucket)) for bucket in buckets]
    ends = np.maximum.accumulate([0.0, *cuts, job.backward_s])
    return job.forward_s / total_s, np.diff(ends) / total_s


def _transfer_s(job: Job, bucket: Sequence[int]) -> float:
    assert job.link is not None
    return job.link.transfer_s(sum(job.layers[layer].gradient_bytes for layer in bucket))


def _tile(duration: NDArray[np.float64], num_buckets: int) -> TaskGraph:
    """Repeat one worker's step, with durations `(step, rank, task)`, into a graph."""
    num_steps, num_ranks, size = duration.shape
    names = ("forward", "backward", "optimizer", *(f"bucket {b}" for b in range(num_buckets)))
    wire = np.arange(num_buckets)
    task_name = np.concatenate([[0], np.ones(num_buckets + 1), 3 + wire, [2]])
    kinds = (Kind.FORWARD, Kind.BACKWARD, Kind.OPTIMIZER, *[Kind.COLLECTIVE] * num_buckets)
    task_kind = np.array(kinds)[task_name.astype(np.int64)]
    is_wire = task_kind == Kind.COLLECTIVE
    step, rank, task = np.unravel_index(np.arange(duration.size), duration.shape)
    bucket = task - (num_buckets + 2)
    first = num_buckets + 2
    to_wire = np.stack([1 + wire, first + wire], axis=1)
    to_update = np.stack([first + wire, np.full(num_buckets, size - 1)], axis=1)
    edges = np.concatenate([to_wire, to_update])
    offsets = np.arange(num_steps * num_ranks)[:, None, None] * size
    return TaskGraph.from_columns(
        duration.ravel(),
        edges=(edges + offsets).reshape(-1, 2),
        rank=rank,
        lane=is_wire[task].astype(np.int32),
        kind=task_kind[task],
        name=task_name[task],
        step=step,
        collective=np.where(is_wire[task], step * num_buckets + bucket, -1),
        lanes=("main", "comm"),
        names=names,
    )
