"""How parameters, gradients and the optimizer's state are divided over workers."""

from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Literal, get_args

from paceline.predict.work._workload import MemoryMoment, Workload

Level = Literal["none", "optimizer", "gradients", "parameters"]
LEVELS: tuple[str, ...] = get_args(Level)
# Blocks whose parameters are there together: the one that runs and the one fetched ahead.
GATHERED_BLOCKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """What each worker holds of a model that is divided over several.

    Attributes:
        num_workers: Data-parallel workers.
        level: What they divide: "none"; "optimizer" (its state, ZeRO-1); "gradients" (and those,
            ZeRO-2); "parameters" (and those, ZeRO-3 and FSDP2 with a group per block) [1].
        tensor_parallel: Workers that divide each matrix of a transformer [2].

    References:
        [1] S. Rajbhandari et al., "ZeRO", SC 2020, section 5.
        [2] V. Korthikanti et al., "Reducing activation recomputation in large transformer
            models", MLSys 2023, section 4.2.
    """

    num_workers: int = 1
    level: Level = "none"
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"shard must be one of {', '.join(LEVELS)}, got {self.level!r}")
        if min(self.num_workers, self.tensor_parallel) < 1:
            raise ValueError(
                f"workers ({self.num_workers}) and tensor-parallel workers "
                f"({self.tensor_parallel}) must be at least 1"
            )

    def held_bytes(self, workload: Workload, what: Level) -> int:
        """Return the bytes of all parameters, or of their part where `what` is divided."""
        is_divided = LEVELS.index(self.level) >= LEVELS.index(what)
        return _bytes_of(workload, self, self.num_workers if is_divided else 1)

    def moments(
        self, workload: Workload, moments: tuple[MemoryMoment, ...]
    ) -> tuple[MemoryMoment, ...]:
        """Return moments with divided activations and gradients."""
        share = self.held_bytes(workload, "gradients") / max(1, workload.param_bytes)
        active = self._active_share(workload)
        return tuple(
            replace(
                moment,
                bytes_per_example=active * moment.bytes_per_example,
                other_bytes=moment.other_bytes - ceil((1 - share) * moment.gradient_bytes),
                gradient_bytes=ceil(share * moment.gradient_bytes),
            )
            for moment in moments
        )

    def gathered_bytes(self, workload: Workload) -> int:
        """Return what is whole for a moment: the root's parameters, two blocks, one's gradients."""
        if self.level != "parameters" or self.num_workers == 1:
            return 0
        blocks: dict[str, int] = {}
        for name, shape in workload.param_shapes:
            block = block_of(name)
            blocks[block] = blocks.get(block, 0) + _values(shape, self, 1)
        root = blocks.pop("", 0)
        item_bytes = min(workload.precision_bits, workload.param_bits) // 8
        return item_bytes * (root + (GATHERED_BLOCKS + 1) * max(blocks.values(), default=0))

    def _active_share(self, workload: Workload) -> float:
        """Of 34 values per token and width in a block, 24 are divided; norms and inputs are not."""
        if self.tensor_parallel == 1:
            return 1.0
        if workload.family != "Transformer":
            raise ValueError(
                f"tensor-parallel memory is known for Transformers, not for {workload.family}; "
                "leave tensor-parallel at 1"
            )
        return (10 + 24 / self.tensor_parallel) / 34


def block_of(name: str) -> str:
    """Return the name up to its first number, which counts blocks; "" for what is in none.

    Examples:
        >>> block_of("transformer.h.11.attn.weight"), block_of("wte.weight")
        ('transformer.h.11', '')
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def _bytes_of(workload: Workload, sharding: Sharding, num_parts: int) -> int:
    item_bytes = workload.param_bits // 8
    if not workload.param_shapes:
        whole = ceil(workload.num_params / sharding.tensor_parallel)
        return item_bytes * ceil(whole / num_parts)
    shapes = (shape for _, shape in workload.param_shapes)
    return item_bytes * sum(_values(shape, sharding, num_parts) for shape in shapes)


def _values(shape: tuple[int, ...], sharding: Sharding, num_parts: int) -> int:
    """Return values of one part: FSDP2 divides the first dimension and pads it."""
    across = sharding.tensor_parallel if len(shape) > 1 else 1
    rows = ceil(shape[0] / num_parts) if shape else 1
    return ceil(rows * prod(shape[1:]) / across)
