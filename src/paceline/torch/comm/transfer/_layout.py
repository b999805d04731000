"""Turn a block plan into what is sent: stretches of gradients, in elements."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paceline.comm import BlockPlan


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements `[begin, end)` of one flattened gradient; `tensor` numbers the parameter."""

    tensor: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Payload:
    """What one collective carries: pieces of one dtype on one device."""

    block: int
    pieces: tuple[Piece, ...]
    num_elements: int

    @classmethod
    def of(cls, block: int, pieces: Sequence[Piece]) -> "Payload":
        """Count the elements of `pieces`."""
        return cls(block, tuple(pieces), sum(piece.end - piece.begin for piece in pieces))

    @property
    def tensors(self) -> list[int]:
        """The parameters, each once."""
        return list(dict.fromkeys(piece.tensor for piece in self.pieces))


def payloads_of(
    plan: BlockPlan, parameters: Sequence[torch.Tensor], order: Sequence[int]
) -> list[Payload]:
    """Cut `parameters` as `plan` says; its tensor `i` is parameter `order[i]`.

    Bytes are rounded to whole elements, so a part may become empty and is left out. A
    block with several dtypes or devices becomes several collectives in a row.
    """
    by_block: list[list[Piece]] = [[] for _ in range(plan.num_blocks)]
    for block, piece in _pieces(plan, parameters, order):
        by_block[block].append(piece)
    return [
        payload
        for block, pieces in enumerate(by_block)
        for payload in whole_payloads(block, pieces, parameters)
    ]


def whole_payloads(
    block: int, pieces: Sequence[Piece], parameters: Sequence[torch.Tensor]
) -> list[Payload]:
    """Group the pieces of one block by dtype and device, in the order of first appearance."""
    alike: dict[tuple[torch.dtype, torch.device], list[Piece]] = {}
    for piece in pieces:
        parameter = parameters[piece.tensor]
        alike.setdefault((parameter.dtype, parameter.device), []).append(piece)
    return [Payload.of(block, group) for group in alike.values()]


def _pieces(
    plan: BlockPlan, parameters: Sequence[torch.Tensor], order: Sequence[int]
) -> Iterator[tuple[int, Piece]]:
    element_bytes = np.array([parameters[index].element_size() for index in order])[plan.tensor]
    begin = np.rint(plan.first_byte / element_bytes).astype(np.int64)
    end = np.rint((plan.first_byte + plan.num_bytes) / element_bytes).astype(np.int64)
    for part, tensor in enumerate(plan.tensor):
        if begin[part] < end[part]:
            piece = Piece(order[tensor], int(begin[part]), int(end[part]))
            yield int(plan.block[part]), piece
