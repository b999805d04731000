"""A plan as it is executed: its payloads, and what it leaves out."""

from collections.abc import Sequence

import torch

from paceline.torch.comm.transfer._layout import Payload, Piece, whole_payloads


class Route:
    """A plan's payloads, and which of them carry each tensor; the same for all its steps.

    Attributes:
        payloads: In the order in which they are sent.
        num_blocks: Blocks of the plan.
        payloads_of: Per tensor, the numbers of its payloads.
        outside: Tensors that the plan leaves out, because no rank was seen to use them.
        detour: Payloads for these, sent after the others if some rank has a gradient.
    """

    def __init__(self, payloads: Sequence[Payload], parameters: Sequence[torch.Tensor]) -> None:
        self.payloads = tuple(payloads)
        self.num_blocks = 1 + max((payload.block for payload in payloads), default=-1)
        self.payloads_of: list[list[int]] = [[] for _ in parameters]
        for number, payload in enumerate(self.payloads):
            for tensor in payload.tensors:
                self.payloads_of[tensor].append(number)
        self.outside = [
            tensor
            for tensor, numbers in enumerate(self.payloads_of)
            if not numbers and parameters[tensor].numel()
        ]
        pieces = [Piece(tensor, 0, parameters[tensor].numel()) for tensor in self.outside]
        self.detour = whole_payloads(self.num_blocks, pieces, parameters)
