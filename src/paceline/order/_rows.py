"""Arithmetic on rows: gradients, or sketches of them, one per example.

Every loop adds in one fixed order and nothing is handed to a BLAS, whose rounding
differs between processors: the same rows give the same order of examples on every
rank. The loops are written so that the compiler can still use vector instructions.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._compile import compiled

STRIPS = 8


def checked_rows(
    num_examples: int, example_ids: ArrayLike, rows: ArrayLike, scales: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return checked example ids and their rows as floats; see `OrderPolicy.observe`."""
    ids = np.asarray(example_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(
            f"example_ids must be a list of whole numbers, got shape {ids.shape} of {ids.dtype}"
        )
    bad = np.flatnonzero((ids < 0) | (ids >= num_examples))
    if bad.size:
        raise ValueError(
            f"example_ids must lie in [0, {num_examples}), but example_ids[{bad[0]}] is "
            f"{ids[bad[0]]}; it belongs to another dataset"
        )
    return ids.astype(np.int64), _floats(rows, scales, ids)


def _floats(
    rows: ArrayLike, scales: ArrayLike | None, ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    given = np.asarray(rows)
    if given.ndim != 2 or len(given) != len(ids) or not given.shape[1]:
        raise ValueError(
            f"rows must have shape ({len(ids)}, dim), one per example id, got {given.shape}"
        )
    floats = np.ascontiguousarray(given, dtype=np.float32)
    if scales is not None:
        scale = np.asarray(scales, dtype=np.float32)
        if scale.shape != ids.shape:
            raise ValueError(
                f"scales must have shape {ids.shape} like example_ids, got {scale.shape}"
            )
        floats = floats * scale[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        bad = np.flatnonzero(~np.isfinite(floats.sum(axis=1)))
    if bad.size:
        raise ValueError(
            f"rows must be finite, but that of example {ids[bad[0]]} is not ({bad.size} of "
            f"{len(ids)}); leave out the examples of a step whose loss overflowed"
        )
    return floats


@compiled
def dot(
    one: NDArray[np.float32], other: NDArray[np.float32], room: NDArray[np.float32]
) -> np.float32:
    """Return the inner product of two rows; overwrites `dim // STRIPS` entries of `room`."""
    width = len(one) // STRIPS
    for i in range(width):
        a = one[i] * other[i] + one[i + width] * other[i + width]
        b = one[i + 2 * width] * other[i + 2 * width] + one[i + 3 * width] * other[i + 3 * width]
        c = one[i + 4 * width] * other[i + 4 * width] + one[i + 5 * width] * other[i + 5 * width]
        d = one[i + 6 * width] * other[i + 6 * width] + one[i + 7 * width] * other[i + 7 * width]
        room[i] = (a + b) + (c + d)
    while width > STRIPS:
        half = (width + 1) // 2
        for i in range(width - half):
            room[i] += room[i + half]
        width = half
    total = np.float32(0.0)
    for i in range(width):
        total += room[i]
    for i in range(len(one) // STRIPS * STRIPS, len(one)):
        total += one[i] * other[i]
    return total


@compiled
def pack(
    rows: NDArray[np.float32],
    ids: NDArray[np.int64],
    stored: NDArray[np.int8],
    scales: NDArray[np.float32],
) -> None:
    """Write rows as bytes to `stored[ids]`, and the scale of each to `scales[ids]`."""
    for r in range(len(rows)):
        row, kept = rows[r], stored[ids[r]]
        largest = np.float32(0.0)
        for i in range(len(row)):
            largest = max(largest, abs(row[i]))
        scales[ids[r]] = largest / np.float32(127.0)
        factor = np.float32(127.0) / largest if largest > 0 else np.float32(0.0)
        for i in range(len(row)):
            kept[i] = np.int8(np.rint(row[i] * factor))
