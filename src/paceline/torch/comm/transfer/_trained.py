"""What is trained, by which ranks, and what is said when a block does not get through."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import distributed as dist

from paceline.errors import TransferError


class Block(Protocol):
    """What one collective carries: a block, or a part of one."""

    @property
    def block(self) -> int:
        """Its number in the plan."""

    @property
    def tensors(self) -> list[int]:
        """Its parameters, each once."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The parameters that are trained, and the ranks that average their gradients.

    Attributes:
        parameters: Numbered by their place here.
        names: One per parameter.
        group: Used by nothing else while blocks are sent.
        rank: This rank in `group`.
        num_ranks: Ranks in `group`.
    """

    parameters: Sequence[torch.Tensor]
    names: Sequence[str]
    group: dist.ProcessGroup
    rank: int = field(init=False)
    num_ranks: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", dist.get_rank(self.group))
        object.__setattr__(self, "num_ranks", dist.get_world_size(self.group))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters[0].device

    def gradient(self, tensor: int) -> torch.Tensor | None:
        """Return the gradient of one parameter.

        Raises:
            ValueError: If it is sparse, so that blocks cannot be cut from it.
        """
        gradient = self.parameters[tensor].grad
        if gradient is not None and gradient.layout is not torch.strided:
            raise ValueError(
                f"gradients must be dense, but that of {self.names[tensor]!r} is "
                f"{gradient.layout}; build its module with sparse=False"
            )
        return gradient

    @contextmanager
    def sending(self, block: Block, num_blocks: int) -> Iterator[None]:
        """Turn what fails inside into an error that says who could not send what.

        Raises:
            TransferError: Names the rank, the block and its parameters.
        """
        try:
            yield
        except RuntimeError as error:
            names = [self.names[tensor] for tensor in block.tensors]
            shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            raise TransferError(
                f"rank {self.rank}: block {block.block} of {num_blocks} ({shown}) did not get "
                f"through ({error}); another rank has ended or the link is down; start again "
                "from the last checkpoint"
            ) from error
