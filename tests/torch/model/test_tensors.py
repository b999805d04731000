"""Tensors are found in whatever a model returns."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import torch

from paceline.torch.model import tensors_in


@dataclass
class Output:
    logits: torch.Tensor
    states: tuple[torch.Tensor, ...]
    loss: torch.Tensor | None = None


class Pair(tuple[torch.Tensor, ...]):
    """Not one of the types that torch knows."""


def test_tensors_in_containers_of_all_kinds_come_in_their_order() -> None:
    a, b, c, d, e, f, g = torch.arange(7.0)
    point = namedtuple("point", "x y")  # As models of users return.
    values = {"z": a, "a": [b, "text", None]}, OrderedDict(k=c), UserDict(k=d), point(e, 1)
    found = tensors_in([values, Pair((f,)), Output(g, (a, {"k": b}))])
    assert [int(value) for value in found] == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_a_tensor_is_found_and_a_class_is_not_looked_into() -> None:
    one = torch.ones(1)
    assert list(tensors_in(one)) == [one]
    assert list(tensors_in(Output)) == []
