"""Compiled sums for sketches on the CPU, where calling torch would cost more than the sums."""

import numba
import numpy as np
from numpy.typing import NDArray

# Sums are reordered, as they are in every matrix product that a sketch is made of.
_vectorised = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


@_vectorised
def correlate(
    x: NDArray[np.float32],
    grad: NDArray[np.float32],
    factors: tuple[NDArray[np.float32], NDArray[np.float32]],
    are_identities: tuple[bool, bool],
    geometry: tuple[int, int, int, int, int, int, int, int],
    block: NDArray[np.float32],
) -> None:
    """Write, per example, the correlations of projected maps at all kernel offsets.

    The output gradient is laid out on the padded, undecimated grid of the input, so that
    one offset of the kernel is one shift of a flat array.
    """
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    left, right = factors
    height, width = x.shape[2] + 2 * ph, x.shape[3] + 2 * pw
    outs = np.zeros((len(left), height * width), dtype=np.float32)
    ins = np.zeros((len(right), height * width), dtype=np.float32)
    length = (grad.shape[2] - 1) * sh * width + (grad.shape[3] - 1) * sw + 1
    for i in range(len(x)):
        _project(grad[i], left, are_identities[0], outs, 0, sh * width, sw)
        _project(x[i], right, are_identities[1], ins, ph * width + pw, width, 1)
        for j in range(len(left)):
            column = 0
            for k in range(len(right)):
                for ky in range(kh):
                    for kx in range(kw):
                        shift = ky * dh * width + kx * dw
                        block[i, j, column] = _dot(outs[j], ins[k, shift:], length)
                        column += 1
            if column < block.shape[2]:
                block[i, j, column] = outs[j, :length].sum()


@_vectorised
def _dot(a: NDArray[np.float32], b: NDArray[np.float32], length: int) -> np.float32:
    total = np.float32(0.0)
    for t in range(length):
        total += a[t] * b[t]
    return total


@_vectorised
def _project(
    maps: NDArray[np.float32],
    matrix: NDArray[np.float32],
    is_identity: bool,
    grid: NDArray[np.float32],
    origin: int,
    step_y: int,
    step_x: int,
) -> None:
    """Lay `matrix @ maps` out on the flat maps of `grid`."""
    _, height, width = maps.shape
    flat = maps.reshape(len(maps), height * width)
    made = np.empty(height * width, dtype=np.float32)
    for k in range(len(matrix)):
        if is_identity:
            made[:] = flat[k]
        else:
            made[:] = 0
        for c in range(0 if is_identity else len(flat)):
            scale = matrix[k, c]
            for t in range(height * width):
                made[t] += scale * flat[c, t]
        for y in range(height):
            at, row = origin + y * step_y, made[y * width : (y + 1) * width]
            if step_x == 1:
                grid[k, at : at + width] = row
            else:
                grid[k, at : at + width * step_x : step_x] = row


@_vectorised
def add_outer_rows(
    grads: NDArray[np.float32],
    x: NDArray[np.float32],
    factors: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    keeps_grads: bool,
    rows: NDArray[np.float32],
    place: tuple[int, float],
) -> None:
    """Add `scale * (L b)(R a + column)ᵀ` of each example to its row, from column `start`."""
    left, right, column = factors
    start, scale = place
    outs = np.empty(len(left), dtype=np.float32)
    ins = np.empty(len(right), dtype=np.float32)
    for i in range(len(x)):
        for k in range(len(right)):
            ins[k] = _dot(right[k], x[i], x.shape[1]) + column[k, 0]
        for j in range(len(left)):
            out = grads[i, j] if keeps_grads else _dot(left[j], grads[i], grads.shape[1])
            outs[j] = out * np.float32(scale)
        at = start
        for j in range(len(left)):
            for k in range(len(ins)):
                rows[i, at + k] += outs[j] * ins[k]
            at += len(ins)
