"""The buffers of sharded collectives: a row per rank, filled from gradients and read back.

In the order of a payload's segments a row holds that rank's part of each, padded to its width.
"""

from collections.abc import Sequence

import torch
from torch import distributed as dist

from paceline.torch.comm.sharded._layout import Segment, ShardPayload
from paceline.torch.comm.transfer import Trained


def packed(
    payload: ShardPayload,
    sources: list[torch.Tensor | None],
    like: torch.Tensor,
    num_ranks: int,
) -> torch.Tensor:
    """Return the rows of a payload, each gradient over `num_ranks`; zeros where there is none.

    Sources that are not flat are replaced by flat ones, for the payloads that follow.
    """
    rows = like.new_empty((num_ranks, payload.width))
    for segment, begin in payload.columns():
        source = sources[segment.tensor]
        if source is None:
            rows[:, begin : begin + segment.width] = 0
            continue
        if source.dim() != 1 or not source.is_contiguous():
            source = sources[segment.tensor] = source.detach().reshape(-1)
        to_rows(rows, begin, segment, source[segment.begin : segment.end])
    return rows.mul_(1.0 / num_ranks)


def own_parts(
    payload: ShardPayload, row: torch.Tensor, rank: int
) -> list[tuple[Segment, torch.Tensor]]:
    """Return what `rank` owns of each segment, from its own row without the padding."""
    found = []
    for segment, begin in payload.columns():
        low, high = segment.part(rank)
        found.append((segment, row[begin : begin + high - low]))
    return found


def unpack(payload: ShardPayload, rows: torch.Tensor, parameters: Sequence[torch.Tensor]) -> None:
    """Write all ranks' parts to the parameters."""
    for segment, begin in payload.columns():
        flat = from_rows(rows, begin, segment)
        _write(parameters[segment.tensor], segment.begin, flat)


def to_rows(rows: torch.Tensor, begin: int, segment: Segment, flat: torch.Tensor) -> None:
    """Write `flat`, the segment's elements, into its columns of `rows`, and zeros after them."""
    target = rows[:, begin : begin + segment.width]
    num_whole, rest = divmod(segment.end - segment.begin, segment.width)
    num_even = num_whole * segment.width
    target[:num_whole] = flat[:num_even].view(num_whole, segment.width)
    if num_whole < len(rows):
        target[num_whole:] = 0
        if rest:
            target[num_whole, :rest] = flat[num_even:]


def from_rows(rows: torch.Tensor, begin: int, segment: Segment) -> torch.Tensor:
    """Return the segment's elements from its columns of `rows`, flat."""
    columns = rows[:, begin : begin + segment.width]
    return columns.reshape(-1)[: segment.end - segment.begin]


def norm_over_ranks(
    parts: Sequence[torch.Tensor], norm_type: float, trained: Trained
) -> torch.Tensor:
    """Return the norm of what all ranks' `parts` make up; all ranks must call it."""
    powers = [torch.zeros((), device=trained.device)]
    for part in parts:
        if part.numel():
            norm = torch.linalg.vector_norm(part, norm_type, dtype=torch.float32)
            powers.append(norm if norm_type == torch.inf else norm**norm_type)
    stacked = torch.stack(powers)
    is_max = norm_type == torch.inf
    total = stacked.max() if is_max else stacked.sum()
    op = dist.ReduceOp.MAX if is_max else dist.ReduceOp.SUM
    dist.all_reduce(total, op=op, group=trained.group)
    return total if is_max else total ** (1.0 / norm_type)


def _write(parameter: torch.Tensor, begin: int, flat: torch.Tensor) -> None:
    if parameter.is_contiguous():
        parameter.detach().view(-1)[begin : begin + len(flat)] = flat
    else:
        indices = torch.arange(begin, begin + len(flat), device=flat.device)
        parameter.detach().put_(indices, flat)
