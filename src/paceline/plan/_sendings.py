"""The ways to send the same gradients."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from paceline.comm import BUCKET_CAPS_MB, WireProblem, plan_blocks, plan_ddp_cap
from paceline.cost import Job
from paceline.plan._graph import Blocks, blocks_of
from paceline.plan._schedule import DDP_CAP_MB


class Sending(NamedTuple):
    """Which block is sent when; see the attributes of `Schedule`."""

    blocks: Blocks
    bucket_cap_mb: int | None
    compression: Literal["bf16"] | None = None


def plain_sending(job: Job) -> Sending:
    """Return DistributedDataParallel's default."""
    if job.link is None:
        return Sending((), DDP_CAP_MB)
    problem = WireProblem.from_job(job)
    return Sending(blocks_of(problem, plan_ddp_cap(problem, DDP_CAP_MB)), DDP_CAP_MB)


def other_sendings(job: Job, *, may_compress: bool) -> Iterator[Sending]:
    """Yield other bucket sizes, the largest first, then blocks of our own.

    Sizes that make the buckets of another one are left out.
    """
    if job.link is None or len(job.workers) == 1 or not job.gradient_bytes:
        return
    problem, seen = WireProblem.from_job(job), {plain_sending(job).blocks}
    for cap in sorted(BUCKET_CAPS_MB, reverse=True):
        blocks = blocks_of(problem, plan_ddp_cap(problem, cap))
        if blocks not in seen:
            seen.add(blocks)
            yield Sending(blocks, cap)
    yield Sending(blocks_of(problem, plan_blocks(problem, in_halves=False)), None)
    if may_compress:
        halved = replace(problem, num_bytes=problem.num_bytes / 2)
        yield Sending(blocks_of(halved, plan_blocks(halved, in_halves=False)), None, "bf16")
