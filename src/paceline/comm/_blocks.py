"""What was decided: gradient blocks in the order in which they are sent."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.comm._problem import WireProblem


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BlockPlan:
    """Gradient blocks in the order in which they are sent; plain data, equal on every rank.

    A block is made of parts, each a stretch of one tensor's gradient. Parts are listed
    block after block.

    Attributes:
        name: Policy that made it.
        tensor: Tensor of each part. Shape `(num_parts,)`.
        first_byte: Where the part begins in its tensor, same shape.
        num_bytes: Its length, same shape.
        block: Block of each part, ascending from 0, same shape.
        waits_for_all: Whether the next forward pass begins only when all blocks are
            through, as with DistributedDataParallel; else each layer waits for its own.
        latency_share: Latency of one collective over that of an all-reduce; a
            reduce-scatter or an all-gather takes half.
    """

    name: str
    tensor: NDArray[np.int64]
    first_byte: NDArray[np.float64]
    num_bytes: NDArray[np.float64]
    block: NDArray[np.int64]
    waits_for_all: bool = False
    latency_share: float = 1.0

    @classmethod
    def from_parts(
        cls,
        name: str,
        problem: WireProblem,
        tensor: ArrayLike,
        num_bytes: ArrayLike,
        block: ArrayLike,
        *,
        waits_for_all: bool = False,
        latency_share: float = 1.0,
    ) -> "BlockPlan":
        """Build a plan from parts in the order of sending; each tensor's are cut off its front.

        Raises:
            ValueError: If the parts do not make up the tensors of `problem` exactly.
        """
        tensors, length = np.asarray(tensor, np.int64), np.asarray(num_bytes, np.float64)
        sent = np.bincount(tensors, length, minlength=len(problem.num_bytes))
        if not np.allclose(sent, problem.num_bytes, rtol=1e-9):
            worst = int(np.abs(sent - problem.num_bytes).argmax())
            raise ValueError(
                f"the parts of tensor {worst} must make up {problem.num_bytes[worst]:g} bytes, "
                f"got {sent[worst]:g}"
            )
        order = np.argsort(tensors, kind="stable")
        before = np.cumsum(length[order]) - length[order]
        start = before - np.repeat(
            before[np.searchsorted(tensors[order], np.arange(len(sent)))],
            np.bincount(tensors, minlength=len(sent)),
        )
        first_byte = np.empty(len(length))
        first_byte[order] = start
        return cls(
            name=name,
            tensor=tensors,
            first_byte=first_byte,
            num_bytes=length,
            block=np.asarray(block, np.int64),
            waits_for_all=waits_for_all,
            latency_share=latency_share,
        )

    @property
    def num_blocks(self) -> int:
        """Collectives per step."""
        return int(self.block[-1]) + 1 if len(self.block) else 0

    @property
    def block_bytes(self) -> NDArray[np.float64]:
        """Bytes of each block, shape `(num_blocks,)`."""
        return np.bincount(self.block, self.num_bytes).astype(np.float64)

    @property
    def in_halves(self) -> bool:
        """Whether each tensor is first scattered and then gathered, half its bytes each."""
        return self.latency_share < 1

    def digest(self) -> str:
        """Return a fingerprint of what is sent when; ranks compare it before the first use."""
        content = hashlib.sha256(str(self.waits_for_all).encode())
        for column in (
            self.tensor,
            np.round(self.first_byte),
            np.round(self.num_bytes),
            self.block,
        ):
            content.update(np.ascontiguousarray(column, dtype=np.int64).tobytes())
        return content.hexdigest()
