"""How a model is called, and what it returned, flattened."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from paceline.errors import MeasurementError


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, in their order."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):  # Not one of those that torch knows.
            yield from tensors_in(list(leaf.values()))
        elif isinstance(leaf, (tuple, list)):
            yield from tensors_in(list(leaf))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors_in([getattr(leaf, field.name) for field in fields(leaf)])


def call_model(model: torch.nn.Module, batch: Any) -> Any:
    """Pass a mapping as keywords, a tuple as positions, anything else as it is."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def mean_square(output: Any) -> torch.Tensor:
    """Return a scalar that every floating tensor of `output` takes part in."""
    tensors = [t for t in tensors_in(output) if t.is_floating_point()]
    if not tensors:
        raise MeasurementError(
            f"the model returned {type(output).__name__} without a floating tensor; pass "
            "loss=, a function from that to a scalar"
        )
    return torch.stack([tensor.square().mean() for tensor in tensors]).sum()
