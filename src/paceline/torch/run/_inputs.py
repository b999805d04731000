"""Count the examples, the elements and the padding that a forward pass is given."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paceline.run import UNKNOWN
from paceline.torch.model import tensors_in
from paceline.torch.run._rows import Counted

IDS, MASK = "input_ids", "attention_mask"
# Tables of integers that go with the inputs and are none.
BESIDE = (MASK, "labels", "token_type_ids", "position_ids")
# Frames are looked at one by one: beyond this many numbers it would cost too much.
MAX_FRAMES = 1 << 20


def counted(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Counted:
    """Count one micro-batch from what the model is called with, or from a batch of the loader.

    The inputs are `input_ids` if something has that name, else the widest table of integers,
    else the widest tensor. Their first axis counts examples and all their entries are elements.
    Padding is what `attention_mask` leaves out; without one, the end of a row that repeats a value
    which is rare elsewhere, or frames of zeros at the end of all examples but the longest. Nothing
    waits for a device: what lies on one keeps its padding to itself.

    Examples:
        >>> ids = torch.tensor([[7, 5, 9, 2], [4, 8, 0, 0]])
        >>> counted((ids,), {})[1:]
        (1, 2, 8, 2)
    """
    named = dict(_named(args, kwargs))
    inputs = _inputs_among(named)
    if inputs is None or inputs.is_nested or inputs.layout != torch.strided:
        return Counted(0.0, 1, UNKNOWN, UNKNOWN, UNKNOWN)
    padding = _padding(inputs.detach(), named.get(MASK)) if inputs.is_cpu else UNKNOWN
    return Counted(0.0, 1, inputs.shape[0], inputs.numel(), padding)


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor with at least one axis; those without a name get a number."""
    for number, value in enumerate(args):
        if isinstance(value, Mapping):
            yield from _named((), value)
        else:
            found = enumerate(tensors_in(value))
            yield from ((f"{number}.{place}", one) for place, one in found if one.dim())
    for name, value in kwargs.items():
        yield from ((name, one) for one in tensors_in(value) if one.dim())


def _inputs_among(named: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    if IDS in named:
        return named[IDS]
    others = [tensor for name, tensor in named.items() if name not in BESIDE]
    tables = [one for one in others if one.dim() == 2 and _is_whole(one)]
    return max(tables or others, key=torch.Tensor.numel, default=None)


def _is_whole(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32)


def _padding(inputs: torch.Tensor, mask: torch.Tensor | None) -> int:
    if mask is not None and mask.is_cpu and mask.shape == inputs.shape[:2]:
        per_position = inputs.numel() // max(mask.numel(), 1)
        return (mask.numel() - int(mask.count_nonzero())) * per_position
    if inputs.dim() == 2 and _is_whole(inputs):
        return _trailing_repeats(inputs.numpy())
    if inputs.dim() == 3 and inputs.is_floating_point() and inputs.numel() <= MAX_FRAMES:
        return _trailing_frames(inputs)
    return UNKNOWN


def _trailing_repeats(ids: NDArray[Any]) -> int:
    """Count the ends of rows that repeat one value, unless it is more frequent before them."""
    if ids.shape[1] < 2:
        return 0
    ends = ids[ids[:, -1] == ids[:, -2], -1]
    if not ends.size:
        return 0
    values, counts = np.unique(ends, return_counts=True)
    is_end = ids == values[counts.argmax()]
    in_runs = int(_lengths_of_ends(is_end).sum())
    return in_runs if in_runs > np.count_nonzero(is_end) - in_runs else 0


def _trailing_frames(frames: torch.Tensor) -> int:
    """Count zeros at the ends; where no example fills its length, they may be what was seen."""
    if 0 in frames.shape:
        return 0
    lengths = _lengths_of_ends(~frames.any(-1).numpy())
    return UNKNOWN if lengths.min() else int(lengths.sum()) * frames.shape[2]


def _lengths_of_ends(is_end: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return for each row how many of its last entries are true."""
    is_other = ~is_end[:, ::-1]
    lengths: NDArray[np.intp] = np.where(is_other.any(1), is_other.argmax(1), is_end.shape[1])
    return lengths
