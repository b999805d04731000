"""Layers whose backward pass comes apart: input gradient now, weight gradients later.

Each part calls the kernel that PyTorch's own backward pass calls, with the same operands, so
on a CPU the results are bitwise those of the whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Extras = tuple[Tensor, ...]
Grads = tuple[Tensor | None, Tensor | None]
aten = torch.ops.aten


class OpArgs(NamedTuple):
    """What a layer's backward pass is computed from.

    Attributes:
        grad: Gradient of the output.
        x: Input.
        weight: As it was used, so maybe in a lower precision.
        extras: What else the forward pass has kept.
    """

    grad: Tensor
    x: Tensor
    weight: Tensor
    extras: Extras


class SplitOp(Protocol):
    """One kind of layer: forward pass and the two parts of its backward pass."""

    @property
    def casts(self) -> bool:
        """Whether autocast runs it in the lower precision."""

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Extras]:
        """Return the output, and what the backward pass needs beside input and weight."""

    def input_grad(self, args: OpArgs) -> Tensor:
        """Return the gradient of the input."""

    def weight_grads(self, args: OpArgs, wants: Sequence[bool]) -> Grads:
        """Return the gradients of weight and bias, those that are wanted."""


@dataclass(frozen=True, slots=True)
class _Linear:
    """A matrix product, over the last dimension of any input."""

    casts: bool = True

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Extras]:
        return functional.linear(x, weight, bias), ()

    def input_grad(self, args: OpArgs) -> Tensor:
        grad, x, weight, _ = args
        rows = _rows(grad)
        is_turned = _is_column_major(_rows(x))
        by_input = weight.t().mm(rows.t()).t() if is_turned else rows.mm(weight)
        return by_input if x.dim() == 2 else by_input.view(x.shape)

    def weight_grads(self, args: OpArgs, wants: Sequence[bool]) -> Grads:
        rows = _rows(args.grad)
        by_weight = rows.t().mm(_rows(args.x)) if wants[0] else None
        return by_weight, rows.sum(0) if wants[1] else None


class _Masked(ABC):
    """A layer whose backward kernel computes the gradients that a mask asks for."""

    __slots__ = ()

    @abstractmethod
    def backward(self, args: OpArgs, mask: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of input, weight and bias, those that are wanted."""

    def input_grad(self, args: OpArgs) -> Tensor:
        return self.backward(args, (True, False, False))[0]

    def weight_grads(self, args: OpArgs, wants: Sequence[bool]) -> Grads:
        return self.backward(args, (False, *wants))[1:]


@dataclass(frozen=True, slots=True)
class _Convolution(_Masked):
    """A convolution with zero padding, in one or two dimensions."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    casts: bool = True

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Extras]:
        convolve: Callable[..., Tensor] = (
            functional.conv1d if weight.dim() == 3 else functional.conv2d
        )
        args = (self.stride, self.padding, self.dilation, self.groups)
        return convolve(x, weight, bias, *args), ()

    def backward(self, args: OpArgs, mask: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
        weight = args.weight
        geometry = (self.stride, self.padding, self.dilation, False, [0] * (weight.dim() - 2))
        found: tuple[Tensor, Tensor, Tensor] = aten.convolution_backward(
            args.grad, args.x, weight, [weight.shape[0]], *geometry, self.groups, mask
        )
        return found


@dataclass(frozen=True, slots=True)
class _Embedding:
    """Rows of a table; there is no input gradient."""

    padding_idx: int
    scale_grad_by_freq: bool
    casts: bool = False

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Extras]:
        return torch.embedding(weight, x, self.padding_idx, self.scale_grad_by_freq), ()

    def input_grad(self, args: OpArgs) -> Tensor:
        raise AssertionError("indices have no gradient")

    def weight_grads(self, args: OpArgs, wants: Sequence[bool]) -> Grads:
        found = aten.embedding_dense_backward(
            args.grad, args.x, args.weight.shape[0], self.padding_idx, self.scale_grad_by_freq
        )
        return found, None


@dataclass(frozen=True, slots=True)
class _LayerNorm(_Masked):
    """Layer normalisation with a weight, with or without a bias."""

    shape: Sequence[int]
    eps: float
    casts: bool = False

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Extras]:
        out, mean, rstd = torch.native_layer_norm(x, self.shape, weight, bias, self.eps)
        return out, (mean, rstd)

    def backward(self, args: OpArgs, mask: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
        # The bias's values do not matter, only its shape; it is the weight's.
        found: tuple[Tensor, Tensor, Tensor] = aten.native_layer_norm_backward(
            args.grad, args.x, self.shape, *args.extras, args.weight, args.weight, mask
        )
        return found


@dataclass(frozen=True, slots=True)
class ScaleOp:
    """The weight of an RMS normalisation: what comes before it stays with autograd."""

    casts: bool = False

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Extras]:
        """See `SplitOp`."""
        return x * weight, ()

    def input_grad(self, args: OpArgs) -> Tensor:
        """See `SplitOp`."""
        return args.grad * args.weight

    def weight_grads(self, args: OpArgs, wants: Sequence[bool]) -> Grads:
        """See `SplitOp`."""
        return (args.grad * args.x).sum_to_size(args.weight.shape), None


def op_of(module: nn.Module) -> SplitOp | None:
    """Return how to split `module`, or None where it is not known how or has no weight."""
    forward = type(module).forward
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return _Linear()
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _convolution(module)
    if isinstance(module, nn.Embedding) and forward is nn.Embedding.forward:
        return _embedding(module)
    if isinstance(module, nn.LayerNorm) and forward is nn.LayerNorm.forward:
        return _LayerNorm(tuple(module.normalized_shape), module.eps)
    if isinstance(module, nn.RMSNorm) and forward is nn.RMSNorm.forward:
        return ScaleOp()
    return None


def _convolution(module: nn.Conv1d | nn.Conv2d) -> SplitOp | None:
    padding = module.padding
    if padding == "valid":
        padding = (0,) * len(module.kernel_size)
    is_known = type(module).forward in (nn.Conv1d.forward, nn.Conv2d.forward)
    if not is_known or module.padding_mode != "zeros" or isinstance(padding, str):
        return None
    return _Convolution(module.stride, padding, module.dilation, module.groups)


def _embedding(module: nn.Embedding) -> SplitOp | None:
    if module.sparse or module.max_norm is not None:
        return None
    padding_idx = -1 if module.padding_idx is None else module.padding_idx
    return _Embedding(padding_idx, module.scale_grad_by_freq)


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _is_column_major(x: Tensor) -> bool:
    return x.stride(0) == 1 and x.stride(1) == x.shape[0]
