"""What a layer's input and output gradient say about its parameters, example by example.

A tap has two parts: `keep` runs in the forward pass and holds as little as it can; `add`
runs when the gradient of the output arrives and adds the example's sketch to its row.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.torch.order._batch import NotByExampleError, SketchedBatch, is_plain
from paceline.torch.order._compiled import normalised_sums
from paceline.torch.order._slots import MatrixSlot, VectorSlot

# Up to here one call that does all beats the calls of its parts.
_FEW_VECTORS = 256


class Tap(Protocol):
    """One use of a layer."""

    def keep(self, inputs: tuple[Any, ...]) -> Any:
        """Return what the backward pass needs of the layer's arguments."""

    def add(self, batch: SketchedBatch, kept: Any, grad: Tensor) -> None:
        """Add to the rows of `batch`, from the gradient of the layer's output."""


class InputTap:
    """A tap that needs its layer's input, which the layer itself keeps unless checkpointed."""

    def keep(self, inputs: tuple[Any, ...]) -> Tensor:
        """Return the input."""
        kept: Tensor = inputs[0].detach()
        return kept


class LinearTap:
    """`y = x Wᵀ + bias`: the gradient is the sum over positions of `b aᵀ`."""

    def __init__(self, layer: nn.Linear, slot: MatrixSlot, bias: Tensor | None) -> None:
        self._slot, self._bias = slot, bias

    def keep(self, inputs: tuple[Any, ...]) -> Tensor | tuple[Tensor, torch.Size]:
        """Project at once, so that a checkpointed input is not kept alive, unless it is small."""
        x: Tensor = inputs[0].detach()
        if x.ndim == 2 and len(x) <= _FEW_VECTORS and is_plain(x):
            return x
        flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        return self._slot.inputs(flat, self._bias), x.shape[:-1]

    def add(self, batch: SketchedBatch, kept: Any, grad: Tensor) -> None:
        """Add `(L b)(R a)ᵀ`."""
        if isinstance(kept, Tensor):
            if len(kept) == batch.num_examples and is_plain(grad):
                return self._slot.add_rows(batch, grad, kept, self._bias)
            kept = self._slot.inputs(kept, self._bias), kept.shape[:-1]
        inputs, lead = kept
        flat = grad if grad.ndim == 2 else grad.reshape(-1, grad.shape[-1])
        return self._slot.add(batch, self._slot.outputs(flat), inputs, lead)


class EmbeddingTap(InputTap):
    """A linear layer whose inputs are unit vectors, and its weight the other way round."""

    def __init__(self, layer: nn.Embedding, slot: MatrixSlot) -> None:
        self._slot, self._padding = slot, layer.padding_idx

    def add(self, batch: SketchedBatch, kept: Tensor, grad: Tensor) -> None:
        """Add the projected row numbers times the projected gradients of the rows."""
        if len(kept.shape) == 1 and len(kept) != batch.num_examples:
            raise NotByExampleError(f"looks up {len(kept)} rows for {batch.num_examples} examples")
        rows = self._slot.rows(kept.reshape(-1))
        if self._padding is not None:
            rows = rows * (kept.reshape(-1) != self._padding)
        inputs = self._slot.inputs(grad.reshape(-1, grad.shape[-1]), None)
        self._slot.add(batch, rows, inputs, kept.shape)


class FeatureNormTap(InputTap):
    """LayerNorm and RMSNorm: each position is normalised by itself, over its features."""

    def __init__(self, layer: nn.LayerNorm | nn.RMSNorm, slot: VectorSlot) -> None:
        self._slot, self._has_bias = slot, isinstance(layer, nn.LayerNorm) and has_bias(layer)
        self._shape, self._eps = layer.normalized_shape, layer.eps
        self._is_rms = isinstance(layer, nn.RMSNorm)

    def add(self, batch: SketchedBatch, kept: Tensor, grad: Tensor) -> None:
        """Add the sums over positions of `b * normalised(x)` and of `b`."""
        lead = kept.shape[: kept.ndim - len(self._shape)]
        if is_plain(kept) and is_plain(grad) and batch.is_first_axis(lead):
            return self._slot.add(batch, self._sums(batch, kept, grad))
        x = self._normalised(kept).to(grad.dtype)
        parts = [batch.sum_positions(grad * x, lead)]
        if self._has_bias:
            parts.append(batch.sum_positions(grad, lead))
        return self._slot.add(batch, torch.cat(parts, 1))

    def _sums(self, batch: SketchedBatch, kept: Tensor, grad: Tensor) -> Tensor:
        """Do all of it in one compiled pass over both tensors."""
        width = math.prod(self._shape)
        sums = torch.zeros(batch.num_examples, width * (1 + self._has_bias))
        x, b = (t.reshape(batch.num_examples, -1, width).numpy() for t in (kept, grad))
        eps = float(np.finfo(np.float32).eps) if self._eps is None else self._eps
        normalised_sums(x, b, eps, self._is_rms, sums.numpy())
        return sums

    def _normalised(self, x: Tensor) -> Tensor:
        if self._is_rms:
            return functional.rms_norm(x, self._shape, None, self._eps)
        assert self._eps is not None  # Of a LayerNorm it never is.
        return functional.layer_norm(x, self._shape, None, None, self._eps)


class ChannelNormTap:
    """BatchNorm and GroupNorm: `(examples, channels, ...)`, one scale for each channel.

    In training, BatchNorm ties examples together through the statistics of the batch. An
    example's row is then its own term in the sum over examples that the gradient of the
    parameters is, with the statistics as they were: the rows still add up to the gradient.
    """

    def __init__(self, slot: VectorSlot, has_shift: bool, normalise: "Normalise") -> None:
        self._slot, self._has_shift, self._normalise = slot, has_shift, normalise

    def keep(self, inputs: tuple[Any, ...]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The input is kept by the layer itself, unless it is checkpointed."""
        return inputs[0].detach(), self._normalise()

    def add(self, batch: SketchedBatch, kept: Any, grad: Tensor) -> None:
        """Add the sums over positions of `b * normalised(x)` and of `b`."""
        x, normalise = kept
        if x.shape[0] != batch.num_examples:
            raise NotByExampleError(f"{x.shape[0]} examples instead of {batch.num_examples}")
        parts = [_channel_sums(grad * normalise(x).to(grad.dtype))]
        if self._has_shift:
            parts.append(_channel_sums(grad))
        self._slot.add(batch, torch.cat(parts, 1))


# Called in the forward pass, it returns how that pass normalises.
Normalise = Callable[[], Callable[[Tensor], Tensor]]


def batch_norm(layer: nn.Module) -> Normalise:
    """Normalise by the batch in training, and by the running statistics otherwise."""
    norm: Any = layer

    def now() -> Callable[[Tensor], Tensor]:
        if norm.training or norm.running_mean is None:
            return lambda x: functional.batch_norm(x, None, None, training=True, eps=norm.eps)
        return lambda x: functional.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps)

    return now


def group_norm(layer: nn.GroupNorm) -> Normalise:
    """Normalise each example's groups of channels."""
    return lambda: lambda x: functional.group_norm(x, layer.num_groups, eps=layer.eps)


def has_bias(layer: Any) -> bool:
    """Whether the layer has a bias that is trained."""
    return layer.bias is not None and layer.bias.requires_grad


def _channel_sums(values: Tensor) -> Tensor:
    return values.flatten(2).sum(2) if values.ndim > 2 else values
