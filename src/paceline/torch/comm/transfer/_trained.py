"""What is trained, by which ranks, and what is said when a block does not get through."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import distributed as dist

from paceline.errors import TransferError
from paceline.torch.ranks import RollCall, end_group, is_of_communication


class Block(Protocol):
    """What one collective carries: a block, or a part of one."""

    @property
    def block(self) -> int:
        """Its number in the plan."""

    @property
    def tensors(self) -> list[int]:
        """Its parameters, each once."""


@dataclass(slots=True, eq=False)
class Trained:
    """The parameters that are trained, and the ranks that average their gradients.

    Attributes:
        parameters: Numbered by their place here.
        names: One per parameter.
        group: Used by nothing else while blocks are sent; gone after `end`.
        roll: Says which rank is missing, once communication has failed; ends with the group.
        rank: This rank in `group`.
        num_ranks: Ranks in `group`.
    """

    parameters: Sequence[torch.Tensor]
    names: Sequence[str]
    group: dist.ProcessGroup
    roll: RollCall | None = None
    rank: int = field(init=False)
    num_ranks: int = field(init=False)

    def __post_init__(self) -> None:
        self.rank = dist.get_rank(self.group)
        self.num_ranks = dist.get_world_size(self.group)

    def arrive(self) -> None:
        """Note that this rank has come to where all ranks come."""
        if self.roll is not None:
            self.roll.place += 1

    def leave(self, error: BaseException) -> None:
        """Tell the others why this rank will `end`; raise `lost` if another rank is the cause."""
        is_lost = is_of_communication(error)
        kind = TransferError if is_lost else type(error)
        if self.roll is not None:
            self.roll.left = f"has left with {kind.__name__}"
        if is_lost:
            raise self.lost("a gradient", error) from error

    def end(self) -> None:
        """Destroy the group; nothing can be sent any more."""
        if self.roll is not None:
            self.roll.close()
        group = self.group
        del self.group
        end_group(group)

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
        """Turn what fails inside into an error that says which block is lost, and who is missing.

        Raises:
            TransferError: Names both ranks, the block and its parameters.
        """
        try:
            yield
        except RuntimeError as error:
            names = [self.names[tensor] for tensor in block.tensors]
            shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            raise self.lost(f"block {block.block} of {num_blocks} ({shown})", error) from error

    @contextmanager
    def talking(self, what: str) -> Iterator[None]:
        """Do the same for other communication inside; what else fails there passes through."""
        try:
            yield
        except RuntimeError as error:
            if not is_of_communication(error):
                raise
            raise self.lost(what, error) from error

    def lost(self, what: str, error: BaseException) -> TransferError:
        """Return the error to raise for a failed collective; asks the other ranks first."""
        reason, cause = str(error).split("\n")[0], "another rank has ended or the link is down"
        if self.roll is not None:
            cause = self.roll.missing()
        return TransferError(
            f"rank {dist.get_rank(None)}: {what} did not get through, {cause} ({reason}); start "
            "again from the last checkpoint"
        )
