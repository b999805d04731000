"""Published block planners, under their names."""

from collections.abc import Sequence

import numpy as np

from paceline.comm._blocks import BlockPlan
from paceline.comm._buckets import DDP_BUCKET_BYTES, DDP_FIRST_BUCKET_BYTES, ddp_buckets
from paceline.comm._greedy import priority_order, slices_of
from paceline.comm._problem import WireProblem


def plan_ddp(
    problem: WireProblem,
    *,
    bucket_bytes: int = DDP_BUCKET_BYTES,
    first_bucket_bytes: int = DDP_FIRST_BUCKET_BYTES,
) -> BlockPlan:
    """Plan PyTorch's buckets: last gradients first, and the next step waits for all of them."""
    sizes = [int(np.ceil(size)) for size in problem.num_bytes]
    buckets = ddp_buckets(sizes, bucket_bytes=bucket_bytes, first_bucket_bytes=first_bucket_bytes)
    return _from_blocks(f"ddp {bucket_bytes / 2**20:g} MiB", problem, buckets, waits_for_all=True)


def plan_ddp_cap(problem: WireProblem, bucket_cap_mb: int) -> BlockPlan:
    """Plan the buckets of `DistributedDataParallel(bucket_cap_mb=...)`.

    In PyTorch 2.13 a cap that is given counts for the first bucket too; only the default,
    25 MiB, begins with one of 1 MiB.
    """
    cap_bytes = bucket_cap_mb << 20
    if cap_bytes == DDP_BUCKET_BYTES:
        return plan_ddp(problem)
    return plan_ddp(problem, bucket_bytes=cap_bytes, first_bucket_bytes=cap_bytes)


def plan_wait_free(problem: WireProblem) -> BlockPlan:
    """Plan wait-free backpropagation: each tensor by itself, as soon as it is ready.

    References:
        H. Zhang et al., "Poseidon: an efficient communication architecture for
        distributed deep learning on GPU clusters", USENIX ATC 2017.
    """
    order = [[tensor] for tensor in problem.by_readiness()]
    return _from_blocks("wait-free", problem, order, waits_for_all=True)


def plan_merged(problem: WireProblem) -> BlockPlan:
    """Plan MG-WFBP: a gradient joins the one before if that saves more latency than it waits.

    A block waits for the next gradient as long as that is ready before the block's own
    start-up would be over.

    References:
        S. Shi, X. Chu and B. Li, "MG-WFBP: efficient data communication for distributed
        synchronous SGD algorithms", INFOCOM 2019, theorem 1.
    """
    blocks: list[list[int]] = []
    wire_s = start_s = 0.0
    for tensor in problem.by_readiness():
        if blocks and problem.ready_s[tensor] < start_s + problem.start_up_s:
            blocks[-1].append(tensor)
            start_s = max(start_s, float(problem.ready_s[tensor]))
        else:
            start_s = max(wire_s, float(problem.ready_s[tensor]))
            blocks.append([tensor])
        payload = float(problem.num_bytes[blocks[-1]].sum())
        wire_s = start_s + problem.start_up_s + payload / problem.link.bytes_per_s
    return _from_blocks("mg-wfbp", problem, blocks, waits_for_all=True)


def plan_p3(problem: WireProblem, *, slice_bytes: float = 200_000) -> BlockPlan:
    """Plan P3: fixed slices, the one whose layer is needed first goes first.

    References:
        A. Jayarajan et al., "Priority-based parameter propagation for distributed DNN
        training", MLSys 2019.
    """
    return _by_priority("p3", problem, slice_bytes)


def plan_bytescheduler(problem: WireProblem, *, partition_bytes: float) -> BlockPlan:
    """Plan ByteScheduler: priority over partitions of a tuned size.

    Its credit is `problem.num_in_flight`; its tuner's job is the caller's, who tries sizes.

    References:
        Y. Peng et al., "A generic communication scheduler for distributed DNN training
        acceleration", SOSP 2019.
    """
    return _by_priority(f"bytescheduler {partition_bytes / 1e6:g} MB", problem, partition_bytes)


def plan_prophet(problem: WireProblem) -> BlockPlan:
    """Plan Prophet: blocks that end before the next gradients of higher priority appear.

    After the backward pass tensors are sent one by one, strictly by priority. A block
    holds at least one tensor, even if that takes too long.

    References:
        Z. Zhang et al., "Prophet: speeding up distributed DNN training with predictable
        communication scheduling", ICPP 2021, section 3.
    """
    waiting = list(problem.by_readiness())
    blocks: list[list[int]] = []
    pending: list[int] = []
    now_s = 0.0
    while waiting or pending:
        if not pending:
            now_s = max(now_s, float(problem.ready_s[waiting[0]]))
        while waiting and problem.ready_s[waiting[0]] <= now_s:
            pending.append(waiting.pop(0))
        pending.sort()
        block = [pending.pop(0)]
        now_s += problem.start_up_s + float(problem.num_bytes[block[0]]) / problem.link.bytes_per_s
        limit_s = float(problem.ready_s[waiting[0]]) if waiting else 0.0
        while (
            pending and now_s + problem.num_bytes[pending[0]] / problem.link.bytes_per_s <= limit_s
        ):
            now_s += float(problem.num_bytes[pending[0]]) / problem.link.bytes_per_s
            block.append(pending.pop(0))
        blocks.append(block)
    return _from_blocks("prophet", problem, blocks)


def plan_dear(problem: WireProblem, *, bucket_bytes: int = DDP_BUCKET_BYTES) -> BlockPlan:
    """Plan DeAR: reduce-scatter in the backward pass, all-gather in the forward pass.

    Each half moves half the bytes at half the latency of an all-reduce; the first halves
    are sent in buckets as they fill, the second ones in the order in which they are needed.

    References:
        L. Zhang et al., "DeAR: accelerating distributed deep learning with fine-grained
        all-reduce pipelining", ICDCS 2023.
    """
    sizes = [int(np.ceil(size)) for size in problem.num_bytes]
    buckets = ddp_buckets(sizes, bucket_bytes=bucket_bytes, first_bucket_bytes=bucket_bytes)
    blocks = [*buckets, *(bucket[::-1] for bucket in buckets[::-1])]
    return _from_blocks(f"dear {bucket_bytes / 2**20:g} MiB", problem, blocks, share=0.5)


def _by_priority(name: str, problem: WireProblem, slice_bytes: float) -> BlockPlan:
    if not slice_bytes > 0:
        raise ValueError(f"slices must have a positive size, got {slice_bytes:g} bytes")
    tensor, num_bytes = slices_of(problem.num_bytes, slice_bytes)
    order = priority_order(problem, tensor, num_bytes)
    return BlockPlan.from_parts(
        name, problem, tensor[order], num_bytes[order], np.arange(len(order))
    )


def _from_blocks(
    name: str,
    problem: WireProblem,
    blocks: Sequence[Sequence[int]],
    *,
    waits_for_all: bool = False,
    share: float = 1.0,
) -> BlockPlan:
    """Send that share of the bytes and of the latency of each block's tensors."""
    tensor = [index for block in blocks for index in block]
    return BlockPlan.from_parts(
        name,
        problem,
        tensor,
        problem.num_bytes[tensor] * share,
        np.repeat(np.arange(len(blocks)), [len(block) for block in blocks]),
        waits_for_all=waits_for_all,
        latency_share=share,
    )
