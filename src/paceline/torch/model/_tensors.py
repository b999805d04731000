"""How a model is called, and what it returned, flattened."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from paceline.errors import MeasurementError


def tensors_in(output: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, in their order."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif is_dataclass(output):
        yield from tensors_in([getattr(output, field.name) for field in fields(output)])
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors_in(value)


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
