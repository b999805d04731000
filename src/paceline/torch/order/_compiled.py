"""Compiled sums for sketches on the CPU, where calling torch would cost more than the sums.

Products are made two by two, so that each vector is read half as often.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled

Floats = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., object])


def _vectorised(function: F) -> F:
    """Let sums be reordered, as they are in every matrix product that a sketch is made of."""
    return compiled(function, fastmath=frozenset({"reassoc", "contract", "nsz"}))


@_vectorised
def project(x: Floats, matrix: Floats, column: Floats, made: Floats) -> None:
    """Write `matrix @ xᵀ + column`, shape `(kept, num)`, of the vectors `(num, width)`."""
    last_i, last_k = len(x) - 1, len(matrix) - 1
    for i in range(0, len(x), 2):
        j = min(i + 1, last_i)
        for k in range(0, len(matrix), 2):
            m = min(k + 1, last_k)
            ki, kj, mi, mj = _dot2x2(matrix[k], matrix[m], x[i], x[j], x.shape[1])
            made[k, i], made[k, j] = ki + column[k, 0], kj + column[k, 0]
            made[m, i], made[m, j] = mi + column[m, 0], mj + column[m, 0]


@_vectorised
def add_rows(
    grads: Floats,
    x: Floats,
    factors: tuple[Floats, Floats, Floats],
    keeps_grads: bool,
    rows: Floats,
    place: tuple[int, float],
) -> None:
    """Add `scale * (L b)(R a + column)ᵀ` of each example to its row, from column `start`."""
    left, right, column = factors
    start, scale = place
    ins = np.empty((len(right), len(x)), dtype=np.float32)
    project(x, right, column, ins)
    outs = np.empty((len(left), len(x)), dtype=np.float32)
    if not keeps_grads:
        project(grads, left, np.zeros((len(left), 1), dtype=np.float32), outs)
    mine = np.empty(len(ins), dtype=np.float32)
    for i in range(len(x)):
        for k in range(len(ins)):
            mine[k] = ins[k, i]
        for j in range(len(left)):
            out = (grads[i, j] if keeps_grads else outs[j, i]) * np.float32(scale)
            part = rows[i, start + j * len(mine) :]
            for k in range(len(mine)):
                part[k] += out * mine[k]


@_vectorised
def correlate(
    x: Floats,
    grad: Floats,
    factors: tuple[Floats, Floats],
    are_identities: tuple[bool, bool],
    geometry: tuple[int, int, int, int, int, int, int, int],
    block: Floats,
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
    shifts = _shifts(len(right), height * width, (kh, kw, dh * width, dw))
    for i in range(len(x)):
        _lay_out(grad[i], left, are_identities[0], outs, 0, sh * width, sw)
        _lay_out(x[i], right, are_identities[1], ins, ph * width + pw, width, 1)
        _products(outs, ins.ravel(), shifts, length, block[i])
        if len(shifts) < block.shape[2]:
            for j in range(len(left)):
                block[i, j, len(shifts)] = outs[j, :length].sum()


@_vectorised
def normalised_sums(x: Floats, grad: Floats, eps: float, is_rms: bool, sums: Floats) -> None:
    """Add, per example, the sums over positions of `grad * normalised(x)`, then of `grad`.

    Of shapes `(num, positions, width)`; `sums` is `(num, width)`, or twice as wide.
    """
    width = x.shape[2]
    has_shift = sums.shape[1] > width
    for i in range(len(x)):
        for position in range(x.shape[1]):
            mine, theirs = x[i, position], grad[i, position]
            mean = np.float32(0.0) if is_rms else mine.sum() / np.float32(width)
            square = np.float32(0.0)
            for k in range(width):
                square += (mine[k] - mean) * (mine[k] - mean)
            inverse = np.float32(1.0 / np.sqrt(square / width + eps))
            for k in range(width):
                sums[i, k] += theirs[k] * ((mine[k] - mean) * inverse)
            if has_shift:
                for k in range(width):
                    sums[i, width + k] += theirs[k]


@_vectorised
def _shifts(num_maps: int, size: int, kernel: tuple[int, int, int, int]) -> NDArray[np.int64]:
    """Return where each input map begins, at each offset of the kernel."""
    kh, kw, step_y, step_x = kernel
    made = np.empty(num_maps * kh * kw, dtype=np.int64)
    for column in range(len(made)):
        offset = column % (kh * kw)
        shift = offset // kw * step_y + offset % kw * step_x
        made[column] = column // (kh * kw) * size + shift
    return made


@_vectorised
def _products(
    outs: Floats, flat: Floats, shifts: NDArray[np.int64], length: int, made: Floats
) -> None:
    """Write the product of each of `outs` with what is in `flat` from each shift on."""
    last_j, last_c = len(outs) - 1, len(shifts) - 1
    for j in range(0, len(outs), 2):
        k = min(j + 1, last_j)
        for c in range(0, len(shifts), 2):
            d = min(c + 1, last_c)
            first, second = flat[shifts[c] :], flat[shifts[d] :]
            jc, jd, kc, kd = _dot2x2(outs[j], outs[k], first, second, length)
            made[j, c], made[j, d] = jc, jd
            made[k, c], made[k, d] = kc, kd


@_vectorised
def _dot2x2(
    a: Floats, b: Floats, x: Floats, y: Floats, length: int
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    ax = ay = bx = by = np.float32(0.0)
    for t in range(length):
        ax += a[t] * x[t]
        ay += a[t] * y[t]
        bx += b[t] * x[t]
        by += b[t] * y[t]
    return ax, ay, bx, by


@_vectorised
def _lay_out(
    maps: Floats,
    matrix: Floats,
    is_identity: bool,
    grid: Floats,
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
            made = flat[k]
        else:
            _combine(flat, matrix[k], made)
        for y in range(height):
            at = origin + y * step_y
            if step_x == 1:
                for column in range(width):
                    grid[k, at + column] = made[y * width + column]
            else:
                for column in range(width):
                    grid[k, at + column * step_x] = made[y * width + column]


@_vectorised
def _combine(flat: Floats, factors: Floats, made: Floats) -> None:
    """Write the sum of the maps of `flat`, each times its factor, two maps at a time."""
    odd = len(flat) % 2
    for t in range(len(made)):
        made[t] = factors[0] * flat[0, t] if odd else np.float32(0.0)
    for c in range(odd, len(flat), 2):
        first, second = factors[c], factors[c + 1]
        for t in range(len(made)):
            made[t] += first * flat[c, t] + second * flat[c + 1, t]
