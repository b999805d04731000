"""The sketch of a convolution's gradient, without unfolding its input.

Channels are projected first, from the input and from the output gradient alike; what is
left of the gradient is a correlation of few maps with few maps, at each offset of the kernel.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.torch.order._batch import NotByExampleError, SketchedBatch, is_plain
from paceline.torch.order._compiled import correlate
from paceline.torch.order._layers import InputTap
from paceline.torch.order._slots import Factor

# Pairs of projected maps that are correlated: each costs a pass over the output for every
# offset of the kernel, and a layer has few enough offsets to keep them all apart.
_NUM_PAIRS = 4
# How much wider than an exact gradient a slot must be for the cost not to matter.
_ROOMY = 4


class ConvSlot:
    """The sketch `M vec(L G (R ⊗ I))` of a kernel's gradient, and of its bias.

    `L` and `R` project output and input channels to few maps, and leave the offsets of the
    kernel apart; `M`, which is left out where there is room, mixes what remains.

    Attributes:
        is_exact: Whether all maps are kept, whatever that costs.
    """

    share = 1.0

    def __init__(self, weight: Tensor, has_bias: bool) -> None:
        self._outs, self._ins = weight.shape[:2]
        self._num_offsets = math.prod(weight.shape[2:])
        self.has_bias = has_bias
        self.is_exact = False

    @property
    def num_columns(self) -> int:
        """Most columns that the slot can use."""
        outs, ins = self._num_maps()
        return outs * (ins * self._num_offsets + self.has_bias)

    def place(self, start: int, width: int, generator: torch.Generator) -> int:
        """Choose the factors so that the slot takes at most `width` columns of a row."""
        outs, ins = self._num_maps()
        self.start = start
        self.left = Factor(self._outs, outs, generator)
        self.right = Factor(self._ins, ins, generator)
        self.mix = Factor(self.num_columns, width, generator)
        return start + self.mix.num_out

    @property
    def relative_variance(self) -> float:
        """Bound on the variance of an inner product of two sketches."""
        factors = (self.left, self.right, self.mix)
        return math.prod(1 + factor.relative_variance for factor in factors) - 1

    def add(self, batch: SketchedBatch, block: Tensor) -> None:
        """Add correlations of shape `(num_examples, outs, ins * num_offsets [+ 1])`."""
        block = block.flatten(1)
        if not self.mix.is_identity:
            block = block @ self.mix.like(block).t()
        batch.add_block(self.start, block)

    def _num_maps(self) -> tuple[int, int]:
        if self.is_exact:
            return self._outs, self._ins
        ins = min(self._ins, math.isqrt(_NUM_PAIRS))
        return min(self._outs, _NUM_PAIRS // ins), ins


class ConvTap(InputTap):
    """One- and two-dimensional convolutions of one group, padded with zeros."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, slot: ConvSlot) -> None:
        self._slot = slot
        self._kernel, self._stride = _pair(layer.kernel_size, 1), _pair(layer.stride, 1)
        self._dilation, self._padding = _pair(layer.dilation, 1), _pair(padding_of(layer), 0)

    def add(self, batch: SketchedBatch, kept: Tensor, grad: Tensor) -> None:
        """Add the correlation of the projected input and the projected output gradient."""
        if kept.shape[0] != batch.num_examples or kept.ndim != grad.ndim:
            raise NotByExampleError(f"{kept.shape[0]} examples instead of {batch.num_examples}")
        if kept.ndim == 3:
            kept, grad = kept.unsqueeze(2), grad.unsqueeze(2)
        correlated = self._compiled if is_plain(kept) and is_plain(grad) else self._unfolded
        self._slot.add(batch, correlated(kept, grad))

    def _compiled(self, x: Tensor, grad: Tensor) -> Tensor:
        left, right = self._slot.left, self._slot.right
        num_columns = right.num_out * math.prod(self._kernel) + self._slot.has_bias
        block = torch.empty(len(x), left.num_out, num_columns)
        correlate(
            x.contiguous().numpy(),
            grad.contiguous().numpy(),
            (left.matrix.numpy(), right.matrix.numpy()),
            (left.is_identity, right.is_identity),
            (*self._kernel, *self._stride, *self._padding, *self._dilation),
            block.numpy(),
        )
        return block

    def _unfolded(self, x: Tensor, grad: Tensor) -> Tensor:
        outs = self._slot.left.like(grad) @ grad.flatten(2)
        maps = (self._slot.right.like(x) @ x.flatten(2)).unflatten(2, x.shape[2:])
        # Few channels are left, so that unfolding them is cheap.
        ins = functional.unfold(
            maps.to(outs.dtype), self._kernel, self._dilation, self._padding, self._stride
        )
        block = outs @ ins.mT
        if self._slot.has_bias:
            block = torch.cat([block, outs.sum(2, keepdim=True)], 2)
        return block


def padding_of(layer: nn.Conv1d | nn.Conv2d) -> Sequence[int] | None:
    """Return the zeros added on either side of each axis; None if the sides differ."""
    if not isinstance(layer.padding, str):
        return layer.padding
    sides = layer._reversed_padding_repeated_twice
    return sides[::-2] if sides[::2] == sides[1::2] else None


def _pair(values: Any, fill: int) -> tuple[int, int]:
    return (fill, *values) if len(values) == 1 else tuple(values)
