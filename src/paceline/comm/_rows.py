"""Rows first: of an embedding, what the next batch reads is sent before everything else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.comm._problem import WireProblem


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowUse:
    """Which rows of an embedding two batches in a row use, on any rank.

    Ranks sum their gradients, so a row that one rank touched is sent for all of them, and a row
    that one rank needs next must have landed on all of them before that rank goes on.

    Attributes:
        touched: Rows that this batch looks up on some rank; of the other rows the lookup's
            gradient is zero everywhere. Shape `(num_rows,)`.
        needed: Rows that the next batch looks up on some rank. Same shape.
    """

    touched: NDArray[np.bool_]
    needed: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.touched.ndim != 1 or self.touched.shape != self.needed.shape:
            raise ValueError(
                f"touched and needed must have shape (num_rows,), got {self.touched.shape} and "
                f"{self.needed.shape}"
            )

    @classmethod
    def from_ids(cls, ids: ArrayLike, next_ids: ArrayLike, *, num_rows: int) -> Self:
        """Take token ids of all ranks, in any shape.

        Raises:
            ValueError: If an id is negative or not below `num_rows`.

        Examples:
            >>> rows = RowUse.from_ids([[0, 1], [1, 1]], [[1, 3], [3, 1]], num_rows=4)
            >>> rows.touched.tolist(), rows.needed.tolist()
            ([True, True, False, False], [False, True, False, True])
        """
        return cls(touched=_mask(ids, num_rows), needed=_mask(next_ids, num_rows))


class Head(NamedTuple):
    """A layer that multiplies by an equal stretch of the embedding's rows (tied weights).

    Attributes:
        layer: Its place in the forward pass.
        ready_s: When its gradient of these rows exists.
    """

    layer: int
    ready_s: float


def rows_first(
    problem: WireProblem, tensor: int, rows: RowUse, *, heads: Sequence[Head] = ()
) -> WireProblem:
    """Replace an embedding's gradient by what has to be sent of it, and when each is needed.

    **By itself** (no `heads`) the gradient is zero but for the touched rows, and only these
    are sent: those that the next batch reads before its lookup; the others are read by no layer of
    the next forward pass, so they may be sent during it and in the next backward pass.

    **Tied to a head**, the gradient is the sum of two. The head's is dense and, as the head is
    the last layer, among the first to exist; the lookup's has the touched rows and is the last.
    They are sent apart, so touched rows are sent twice, and what the next batch looks up comes
    first in both. The head reads every row, so nothing is carried over. A head computed in
    several stretches of rows gives one entry per stretch, in the order of rows; each then waits
    for its own rows only. A stretch that is not ready before the lookup's gradient is summed
    with it first, as autograd does by itself, and sent once.

    The update of a row is applied when all of its gradient has landed. This is right because
    nothing reads the row in between: a row carried over is not among the next batch's rows, on
    no rank; blocks land in plan order and a step's carried blocks precede all blocks of the next
    step, and the judge lets no forward pass begin before the blocks carried into its step have
    landed. So a later batch may need any row, and none has to be promoted. Updates of one row are
    applied in the order of steps.

    All ranks must know all ranks' next rows a step ahead. This mask, a byte per row, is part of
    the problem as one more tensor that may be sent at any time.

    Args:
        problem: One step, seen from the wire.
        tensor: The embedding's gradient, one tensor of `problem`.
        rows: What two batches use of it.
        heads: The layers tied to it, each with an equal stretch of rows (as `numpy.array_split`
            divides them); none where it is not tied.

    Returns:
        The problem with other tensors; `bound_s` of the old one stays what to compare with.

    Raises:
        ValueError: If `tensor` or a head's layer does not exist.
    """
    last = len(problem.forward_s)
    if not 0 <= tensor < len(problem.layer):
        raise ValueError(f"tensor must lie in [0, {len(problem.layer)}), got {tensor}")
    for head in heads:
        if not problem.layer[tensor] <= head.layer < last:
            raise ValueError(
                f"heads must lie after the embedding's layer, in [{problem.layer[tensor]}, "
                f"{last}), got {head.layer}"
            )
    first, ready_s = int(problem.layer[tensor]), float(problem.ready_s[tensor])
    row_bytes = float(problem.num_bytes[tensor]) / len(rows.touched)
    pieces = [(last - 1, len(rows.touched) / row_bytes, 0.0)]
    touched = np.array_split(rows.touched, max(len(heads), 1))
    needed = np.array_split(rows.needed, max(len(heads), 1))
    for here, (looked_up, reads) in enumerate(zip(touched, needed, strict=True)):
        rest, parts = last, [(looked_up, ready_s)]
        if heads:
            rest, whole = heads[here].layer, np.ones(len(reads), dtype=np.bool_)
            is_apart = heads[here].ready_s < ready_s
            parts = [(whole, min(heads[here].ready_s, ready_s)), *parts[: int(is_apart)]]
        for mask, exists_s in parts:
            pieces.append((first, float((mask & reads).sum()), exists_s))
            pieces.append((rest, float((mask & ~reads).sum()), exists_s))
    return _with_pieces(problem, tensor, row_bytes, pieces)


def _with_pieces(
    problem: WireProblem, tensor: int, row_bytes: float, pieces: list[tuple[int, float, float]]
) -> WireProblem:
    """Put pieces (layer, rows, ready) in the place of a tensor; those without rows are left out."""
    layer, num_rows, ready_s = (np.array(column) for column in zip(*pieces, strict=True))
    layer = np.append(np.delete(problem.layer, tensor), layer[num_rows > 0])
    num_bytes = np.append(np.delete(problem.num_bytes, tensor), row_bytes * num_rows[num_rows > 0])
    ready_s = np.append(np.delete(problem.ready_s, tensor), ready_s[num_rows > 0])
    order = np.argsort(layer, kind="stable")
    return replace(problem, layer=layer[order], num_bytes=num_bytes[order], ready_s=ready_s[order])


def _mask(ids: ArrayLike, num_rows: int) -> NDArray[np.bool_]:
    flat = np.asarray(ids, dtype=np.int64).ravel()
    if len(flat) and not 0 <= flat.min() <= flat.max() < num_rows:
        raise ValueError(f"ids must lie in [0, {num_rows}), got {flat.min()} to {flat.max()}")
    mask = np.zeros(num_rows, dtype=np.bool_)
    mask[flat] = True
    return mask
