"""What a module returned, flattened."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch


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
