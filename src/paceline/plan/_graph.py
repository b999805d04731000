"""Steps of data-parallel training as tasks: the passes, the blocks, the updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.comm import BlockPlan, WireProblem, ddp_buckets
from paceline.cost import Job, shared_cores_s
from paceline.timeline import Kind, TaskGraph

Array = NDArray[np.float64]
MAIN, COMM = 0, 1
UPDATE, FORWARD, BACKWARD, BLOCK = range(4)


class Part(NamedTuple):
    """A stretch of one layer's gradients."""

    layer: int
    first_byte: int
    num_bytes: int


Blocks = tuple[tuple[Part, ...], ...]


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
            included, as long as all ranks compute, shape `(num_steps, num_ranks)`.
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
    if buckets is None:
        buckets = ddp_buckets([layer.gradient_bytes for layer in job.layers])
    _check_buckets(buckets, len(job.layers))
    blocks = whole_layers(job, buckets)
    return step_graph(job, compute_s, StepParts.of_blocks(job, blocks, waits_for_all=True))


def whole_layers(job: Job, buckets: Sequence[Sequence[int]]) -> Blocks:
    """Return buckets of layers as blocks of parts."""
    return tuple(
        tuple(Part(layer, 0, job.layers[layer].gradient_bytes) for layer in bucket)
        for bucket in buckets
    )


def blocks_of(problem: WireProblem, plan: BlockPlan) -> Blocks:
    """Return a plan of `problem`'s tensors as parts of layers, in whole bytes."""
    ends = (plan.first_byte + plan.num_bytes).round()
    columns = (problem.layer[plan.tensor], plan.first_byte.round(), ends)
    found: list[list[Part]] = [[] for _ in range(plan.num_blocks)]
    for block, layer, first, end in zip(plan.block.tolist(), *columns, strict=True):
        found[block].append(Part(int(layer), int(first), int(end - first)))
    return tuple(map(tuple, found))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StepParts:
    """How a step of one rank divides, and what its blocks cost on the wire.

    The update and the forward pass come in groups of layers. Each waits for one block, which is
    enough because blocks are sent in order.

    Attributes:
        forward_share: Share of the compute that each group's forward pass takes; adds up to 1
            with `backward_share`.
        update_share: Share of the update of each group, same shape.
        waits_for: Block that each group waits for, ascending; -1 for none. Same shape.
        backward_share: Share of each stretch of the backward pass: one until each block may be
            sent, and the rest. Shape `(num_blocks + 1,)`.
        num_bytes: Bytes of each block, shape `(num_blocks,)`.
    """

    forward_share: Array
    update_share: Array
    waits_for: NDArray[np.int64]
    backward_share: Array
    num_bytes: Array

    @classmethod
    def of_blocks(cls, job: Job, blocks: Blocks, *, waits_for_all: bool) -> Self:
        """Divide a step whose gradients go out in `blocks`.

        Args:
            job: Whose layers these are.
            blocks: Parts of gradients, in the order of sending.
            waits_for_all: Whether the update waits for all blocks, as under
                DistributedDataParallel; else each layer waits for its own.
        """
        backward_s = np.array([layer.backward_s for layer in job.layers])
        # Seconds from the start of the backward pass until each layer's gradients are ready.
        ready_s = np.cumsum(backward_s[::-1])[::-1]
        forward, backward = _shares(job, [max(ready_s[p.layer] for p in one) for one in blocks])
        num_layers = max(len(job.layers), 1)
        rows = [
            (part.layer, index, part.num_bytes) for index, one in enumerate(blocks) for part in one
        ]
        layer, block, num_bytes = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        needs = np.full(num_layers, len(blocks) - 1 if waits_for_all else -1)
        if not waits_for_all:
            np.maximum.at(needs, layer, block)
        # Blocks land in order: a layer that needs no later one than those before it joins them.
        waits_for, first = np.unique(np.maximum.accumulate(needs), return_index=True)
        forward_s = np.array([each.forward_s for each in job.layers] or [1.0])
        updated = np.bincount(layer, num_bytes, minlength=num_layers)
        return cls(
            forward_share=forward * _normal(np.add.reduceat(forward_s, first)),
            update_share=_normal(np.add.reduceat(updated, first)),
            waits_for=waits_for,
            backward_share=backward,
            num_bytes=np.bincount(block, num_bytes, minlength=len(blocks)).astype(np.float64),
        )

    def alone(self) -> Self:
        """Return the step of a single worker, which sends nothing."""
        return type(self)(
            forward_share=np.array([self.forward_share.sum()]),
            update_share=np.ones(1),
            waits_for=np.array([-1]),
            backward_share=np.array([self.backward_share.sum()]),
            num_bytes=np.zeros(0),
        )


def step_graph(job: Job, compute_s: ArrayLike, parts: StepParts) -> TaskGraph:
    """Lay out steps that divide into `parts`; arguments and errors as `data_parallel_graph`.

    The update of a group of layers comes before its forward pass of the next step. Of the last
    step, all updates come at the end.
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
    if job.slowdown:
        compute = shared_cores_s(compute, job.slowdown)
    parts = parts if num_ranks > 1 else parts.alone()
    template = _Template.of(parts)
    # One more step than there are, of which only the updates stay.
    duration = np.zeros((len(compute) + 1, num_ranks, len(template.kind)))
    duration[:-1] = compute[:, :, None] * template.compute_share
    if job.link is not None:
        wire_s = job.link.alpha_s + parts.num_bytes / job.link.bytes_per_s
        duration[:, :, template.kind == BLOCK] = wire_s
    overhead_s = np.array([worker.overhead_s for worker in job.workers])
    duration[:, :, template.kind == UPDATE] = overhead_s[:, None] * parts.update_share
    return _tile(duration, template)


@dataclass(frozen=True, slots=True, eq=False)
class _Template:
    """Tasks of one rank in one step, in lane order; the updates are those of the step before."""

    kind: NDArray[np.int64]
    compute_share: Array
    edges: NDArray[np.int64]
    edges_from_step_before: NDArray[np.int64]

    @classmethod
    def of(cls, parts: StepParts) -> "_Template":
        num_groups, num_blocks = len(parts.waits_for), len(parts.num_bytes)
        kind = np.repeat([UPDATE, BACKWARD, BLOCK], [2 * num_groups, num_blocks + 1, num_blocks])
        kind[1 : 2 * num_groups : 2] = FORWARD
        share = np.zeros(len(kind))
        share[kind == FORWARD] = parts.forward_share
        share[kind == BACKWARD] = parts.backward_share
        block = np.flatnonzero(kind == BLOCK)
        ready = np.flatnonzero(kind == BACKWARD)[:-1]
        waits = parts.waits_for >= 0
        update = np.flatnonzero(kind == UPDATE)[waits]
        return cls(
            kind,
            share,
            np.stack([ready, block], axis=1),
            np.stack([block[parts.waits_for[waits]], update], axis=1),
        )


def _tile(duration: Array, template: _Template) -> TaskGraph:
    """Repeat one worker's step, with durations `(step + 1, rank, task)`, into a graph."""
    num_rows, num_ranks, size = duration.shape
    num_blocks = int((template.kind == BLOCK).sum())
    step, rank, task = np.unravel_index(np.arange(duration.size), duration.shape)
    kind = template.kind[task]
    is_update = kind == UPDATE
    # The first step has no update before it; after the last one come only updates.
    stays = np.where(is_update, step > 0, step < num_rows - 1)
    here = np.arange(num_rows * num_ranks)[:, None, None] * size
    edges = [(template.edges + here).reshape(-1, 2)]
    later = np.array([0, num_ranks * size])
    edges += [(template.edges_from_step_before + later + here[:-num_ranks]).reshape(-1, 2)]
    both = np.concatenate(edges)
    block = np.cumsum(template.kind == BLOCK)[task] - 1
    is_block = kind == BLOCK
    names = ("optimizer", "forward", "backward", *(f"bucket {b}" for b in range(num_blocks)))
    kinds = np.array([Kind.OPTIMIZER, Kind.FORWARD, Kind.BACKWARD, Kind.COLLECTIVE])
    return TaskGraph.from_columns(
        duration.ravel()[stays],
        edges=(np.cumsum(stays) - 1)[both[stays[both].all(axis=1)]],
        rank=rank[stays],
        lane=np.where(is_block, COMM, MAIN)[stays],
        kind=kinds[kind][stays],
        name=np.where(is_block, BLOCK + block, kind)[stays],
        step=(step - is_update)[stays],
        collective=np.where(is_block, step * num_blocks + block, -1)[stays],
        lanes=("main", "comm"),
        names=names,
    )


def _shares(job: Job, ready_s: Sequence[float]) -> tuple[float, Array]:
    """Return the share of the forward pass, and of each stretch of the backward pass."""
    total_s = job.forward_s + job.backward_s
    if not total_s:
        return 1.0, np.zeros(len(ready_s) + 1)
    ends = np.maximum.accumulate([0.0, *ready_s, job.backward_s])
    return job.forward_s / total_s, np.diff(ends) / total_s


def _normal(values: Array) -> Array:
    total = float(values.sum())
    return values / total if total else np.full(len(values), 1 / len(values))


def _check_buckets(buckets: Sequence[Sequence[int]], num_layers: int) -> None:
    for index, bucket in enumerate(buckets):
        if not (len(bucket) and all(0 <= layer < num_layers for layer in bucket)):
            raise ValueError(
                f"each bucket must hold layer indices in [0, {num_layers}), but buckets[{index}] "
                f"is {tuple(bucket)}"
            )
