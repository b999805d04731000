"""Calls whose CPU kernels keep more for the backward pass than those of a GPU."""

from typing import Any

import torch
from torch.nn import functional as F

FUSED = {
    F.scaled_dot_product_attention: ("dropout_p", 4),
    F.multi_head_attention_forward: ("dropout_p", 10),
}
DROPOUTS = (F.dropout, torch.dropout)


def as_on_a_gpu(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the call whose saved tensors are those of a GPU's fused kernel.

    A CPU computes attention with dropout as single products, which keep queries x keys values;
    the flash and memory-efficient kernels of a GPU [1] keep what they do without dropout. A CPU
    keeps the mask of a dropout in the type of its input, a GPU one byte per value.

    References:
        [1] T. Dao et al., "FlashAttention", NeurIPS 2022, algorithm 2 (dropout by a counter).
    """
    if function in DROPOUTS:
        return _dropout(function, args, kwargs)
    if function not in FUSED:
        return function, args, kwargs
    if function is F.multi_head_attention_forward and kwargs.get("need_weights", True):
        return function, args, kwargs
    name, position = FUSED[function]
    if len(args) > position:
        return function, (*args[:position], 0.0, *args[position + 1 :]), kwargs
    return function, args, kwargs | ({name: 0.0} if name in kwargs else {})


def _dropout(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
    rate, trains = given.get("p", 0.5), given.get("training", given.get("train", True))
    if not trains or not 0 < rate < 1 or given.get("inplace"):
        return function, args, kwargs
    return _native_dropout, (given["input"], rate), {}


def _native_dropout(value: torch.Tensor, rate: float) -> torch.Tensor:
    kept, _ = torch.native_dropout(value, rate, True)
    return kept
