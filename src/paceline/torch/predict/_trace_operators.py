"""What one call of a PyTorch operator does: FLOPs, bytes and sizes."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import (
    conv_flop_count,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from paceline.predict.work import OperatorWork, Phase
from paceline.torch.model import tensors_in

MATMULS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
CONVOLUTIONS = frozenset({"convolution", "convolution_backward"})
GATHERS = frozenset({
    "embedding", "embedding_dense_backward", "index_select", "index_add", "index_add_", "index",
    "index_put", "index_put_", "_index_put_impl_", "gather", "scatter_add", "scatter_add_",
    "scatter_reduce", "index_select_backward",
})  # fmt: skip
# Read as many rows of their first input as they write.
ROW_READERS = frozenset({"embedding", "index_select", "index", "gather"})
RECURRENT = frozenset({"mkldnn_rnn_layer", "mkldnn_rnn_layer_backward"})
LSTM_MODE = 2
# Beside true views: allocations and aliases, which move no bytes.
LIKE_VIEWS = frozenset({
    "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
    "_local_scalar_dense", "transpose_", "detach_", "set_",
})  # fmt: skip
IGNORED_NAMESPACES = frozenset({"prim", "profiler"})


def describe(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, phase: Phase
) -> OperatorWork:
    """Return what a call of the operator `function` did.

    Args:
        function: The `OpOverload` that ran.
        args: Its positional arguments.
        kwargs: The others.
        out: What it returned.
        phase: Part of the step that it belongs to.
    """
    name = function._overloadpacket.__name__
    if function.is_view or name in LIKE_VIEWS:
        return OperatorWork(
            operator=name,
            operator_class="view",
            phase=phase,
            flops=0.0,
            read_bytes=0.0,
            written_bytes=0.0,
        )
    inputs, outputs = list(tensors_in((args, kwargs))), list(tensors_in(out))
    if name in RECURRENT:
        # Leave out the kernel's workspace, which fake tensors do not have.
        inputs, outputs = (
            [tensor for tensor in tensors if tensor.dtype != torch.uint8]
            for tensors in (inputs, outputs)
        )
    written = sum(map(_num_bytes, outputs))
    read = sum(map(_num_bytes, inputs))
    if name in ROW_READERS:
        read += written - _num_bytes(inputs[0])
    operator_class, flops, dims = _arithmetic(function, name, args, out)
    return OperatorWork(
        operator=name,
        operator_class=operator_class,
        phase=phase,
        flops=float(flops),
        read_bytes=float(max(read, 0)),
        written_bytes=float(written),
        dims=dims,
    )


def with_workspace(function: Any, args: tuple[Any, ...], out: Any) -> Any:
    """Give the output of the LSTM kernel the workspace that fake tensors leave empty."""
    if function._overloadpacket.__name__ != "mkldnn_rnn_layer":
        return out
    is_lstm, is_training = args[9] == LSTM_MODE, args[15]
    if out[3].numel() or not (is_lstm and is_training):
        return out
    return (*out[:3], out[3].new_empty(_lstm_workspace_bytes(args[0], hidden=args[10])))


def _lstm_workspace_bytes(x: torch.Tensor, hidden: int) -> int:
    """Return what oneDNN keeps of one layer for the backward pass [1].

    Four gates and the output of each position, the states on both sides of the layer, and
    room for the gradients of all states, which are in 32 bits. Rounding up to pages is left
    out.

    References:
        [1] `set_workspace_sizes` in src/cpu/rnn/rnn_utils.hpp of oneDNN 3.
    """
    num_steps, batch_size, width = x.shape
    item_bytes, widest = x.element_size(), max(width, hidden)
    per_step = _row_bytes(4 * hidden, item_bytes) + _row_bytes(hidden, item_bytes)
    state = _row_bytes(widest, item_bytes) + hidden * item_bytes
    state_gradient = 2 * _row_bytes(widest, 4) + hidden * 4
    return batch_size * (num_steps * per_step + 2 * (num_steps + 1) * (state + state_gradient))


def _row_bytes(num_values: int, item_bytes: int) -> int:
    """Return the bytes of whole cache lines, one more where 256 divides the values."""
    per_line = 64 // item_bytes
    padded = -(-num_values // per_line) * per_line
    return (padded + per_line * (padded % 256 == 0)) * item_bytes


def is_ignored(function: Any) -> bool:
    """Return whether the call is bookkeeping of the tracer or profiler."""
    return function.namespace in IGNORED_NAMESPACES


def _arithmetic(
    function: Any, name: str, args: tuple[Any, ...], out: Any
) -> tuple[str, float, tuple[int, ...]]:
    """Return class, FLOPs and sizes."""
    if name in MATMULS:
        return "matmul", _matmul_flops(function, args, out), _matmul_dims(name, args)
    if name in CONVOLUTIONS:
        return _convolution(name, args, out)
    if "scaled_dot_product" in name or name.startswith(("_flash_attention", "_efficient_att")):
        return _attention(name, args)
    if name in RECURRENT:
        steps, batch = args[0].shape[:2]
        weights = args[1].numel() + args[2].numel()
        factor = 4 if name.endswith("backward") else 2
        return "recurrent", factor * steps * batch * weights, (steps, batch, weights)
    return ("gather" if name in GATHERS else "elementwise"), 0.0, ()


def _matmul_flops(function: Any, args: tuple[Any, ...], out: Any) -> float:
    count: Callable[..., int] = flop_registry[function._overloadpacket]
    return count(*args, out_val=out)


def _matmul_dims(name: str, args: tuple[Any, ...]) -> tuple[int, ...]:
    first, second = args[-2:] if name in ("mm", "bmm") else args[1:3]
    batch = first.shape[0] if first.dim() == 3 else 1
    return (batch, first.shape[-2], first.shape[-1], second.shape[-1])


def _convolution(name: str, args: tuple[Any, ...], out: Any) -> tuple[str, float, tuple[int, ...]]:
    if name == "convolution":
        x, weight, y_shape, passes, groups = args[0], args[1], out.shape, 1, args[8]
    else:
        grad, x, weight = args[:3]
        y_shape, passes, groups = grad.shape, sum(args[-1][:2]), args[9]
    transposed = args[6] if name == "convolution" else args[7]
    flops = passes * conv_flop_count(list(x.shape), list(weight.shape), list(y_shape), transposed)
    kind = "depthwise" if groups > 1 and groups == x.shape[1] else "conv"
    taps = prod(weight.shape[2:])
    positions = y_shape[0] * prod(y_shape[2:])
    return kind, flops, (groups, positions, weight.shape[1] * taps, y_shape[1], taps)


def _attention(name: str, args: tuple[Any, ...]) -> tuple[str, float, tuple[int, ...]]:
    backward = "backward" in name
    query, key, value = args[1:4] if backward else args[:3]
    shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
    if backward:
        flops = sdpa_backward_flop_count(tuple(args[0].shape), *shapes)
    else:
        flops = sdpa_flop_count(*shapes)
    return "attention", flops, (*shapes[0][:3], shapes[1][2], shapes[0][3])


def _num_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes that are touched: an expanded tensor is read from its small storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
