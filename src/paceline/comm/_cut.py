"""Cut long blocks, so that collectives in flight do not delay each other."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paceline.comm._blocks import BlockPlan
from paceline.comm._problem import WireProblem


def cut_blocks(problem: WireProblem, plan: BlockPlan) -> BlockPlan:
    """Return `plan` with its long blocks cut into equal shorter ones that follow each other.

    Prices assume that the wire takes one block after the other. Collectives that are in
    flight share it, so an urgent block may land as late as the last of those that were sent
    with it: later by `num_in_flight - 1` blocks. Of a payload of `B` bytes, blocks of `S` bytes
    lose `(num_in_flight - 1) S / bytes_per_s` so, and `B / S` times `block_cost_s` to be
    launched. The sum is least where both are equal, and no block stays longer than that `S`.

    Args:
        problem: One step, seen from the wire. Nothing is cut where one block is in
            flight at a time, or where a block costs nothing.
        plan: For `problem`. One that is `in_halves` is left as it is.

    Returns:
        The same bytes in the same order; `plan` itself if no block is longer.

    Examples:
        >>> from paceline.comm import plan_ddp_cap
        >>> from paceline.cost import Job, LayerCost, Link
        >>> layer = LayerCost(name="", forward_s=0.1, backward_s=0.2, gradient_bytes=4_000_000)
        >>> job = Job(layers=[layer] * 2, link=Link(0.0, 1e8), source="measured")
        >>> problem = WireProblem.from_job(job, num_in_flight=2, block_cost_s=1e-3)
        >>> plan = plan_ddp_cap(problem, 25)
        >>> [each.num_blocks for each in (plan, cut_blocks(problem, plan))]
        [2, 10]
    """
    others = problem.num_in_flight - 1
    if plan.in_halves or not others or not problem.block_cost_s:
        return plan
    payload_bytes, cost_s = float(problem.num_bytes.sum()), problem.block_cost_s
    most_bytes = float(np.sqrt(payload_bytes * cost_s * problem.link.bytes_per_s / others))
    block_bytes = plan.block_bytes
    num_pieces = np.ceil(block_bytes / max(most_bytes, 1.0)).astype(np.int64)
    if (num_pieces <= 1).all():
        return plan
    part_end = np.cumsum(plan.num_bytes)
    cut = _snapped(np.cumsum(np.repeat(block_bytes / num_pieces, num_pieces)), part_end)
    end = np.union1d(part_end, cut)
    return replace(
        BlockPlan.from_parts(
            "paceline",
            problem,
            plan.tensor[np.searchsorted(part_end, end)],
            np.diff(end, prepend=0.0),
            np.searchsorted(cut, end),
        ),
        waits_for_all=plan.waits_for_all,
    )


def _snapped(cut: NDArray[np.float64], part_end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move cuts that are less than a byte from the end of a part there."""
    after = np.searchsorted(part_end, cut - 1.0).clip(max=len(part_end) - 1)
    return np.unique(np.where(np.abs(part_end[after] - cut) < 1.0, part_end[after], cut))
