"""What a lane is: a queue of work that runs in order, beside the main one."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A queue whose tasks run one at a time, in the order in which they were submitted.

    Attributes:
        num_threads: Intra-op threads of its kernels on a CPU, at least 1.
        max_pending: Tasks that may be submitted and not finished, at least 1; then
            submitting waits, so what they hold stays bounded. None for no bound.
        priority: Of its CUDA stream; lower numbers go first, as in PyTorch.
        niceness: Added to that of its thread on Linux, 0 to 19; larger ones yield to others.
        is_host: Whether it is a thread even where the other lanes are CUDA streams.
    """

    num_threads: int = 1
    max_pending: int | None = None
    priority: int = 0
    niceness: int = 0
    is_host: bool = False

    def __post_init__(self) -> None:
        if self.num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {self.num_threads}")
        if self.max_pending is not None and self.max_pending < 1:
            raise ValueError(
                f"max_pending must be at least 1, got {self.max_pending}; None means no bound"
            )
        if not 0 <= self.niceness <= 19:
            raise ValueError(f"niceness must lie in [0, 19], got {self.niceness}")


DEFAULT_LANES: Mapping[str, Lane] = MappingProxyType(
    dict(assist=Lane(), comm=Lane(priority=-1), copy=Lane(), host=Lane(niceness=10, is_host=True))
)
