"""What a block planner may see: when gradients are ready, how large, and when needed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.cost import Job, Link


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WireProblem:
    """One training step, seen from the wire.

    Tensors are numbered by their place in the forward pass. Time starts with the
    backward pass.

    Attributes:
        forward_s: Forward seconds of each layer, in forward order. Shape `(num_layers,)`.
        layer: Layer that needs each tensor, ascending: its forward pass waits for the
            tensor's update. `num_layers` stands for the forward pass after the next: such
            a gradient may still be sent while the next backward pass runs, and delays it only
            by holding the wire. Shape `(num_tensors,)`, like the rest.
        num_bytes: Bytes of each tensor's gradient, positive.
        ready_s: When each gradient exists, in seconds.
        backward_s: Seconds of the whole backward pass.
        link: The wire.
        num_in_flight: Collectives that may be under way at once; the latency of one then
            overlaps the bytes of another.
        block_cost_s: Seconds that each block holds the wire on top of its bytes, because a
            host launches one block at a time. Unlike latency it overlaps nothing.
    """

    forward_s: NDArray[np.float64]
    layer: NDArray[np.int64]
    num_bytes: NDArray[np.float64]
    ready_s: NDArray[np.float64]
    backward_s: float
    link: Link
    num_in_flight: int = 1
    block_cost_s: float = 0.0

    def __post_init__(self) -> None:
        if self.num_in_flight < 1:
            raise ValueError(f"num_in_flight must be at least 1, got {self.num_in_flight}")
        if not 0 <= self.block_cost_s < np.inf:
            raise ValueError(
                f"block_cost_s must be finite and not negative, got {self.block_cost_s}"
            )
        if not (self.num_bytes > 0).all():
            raise ValueError("num_bytes must be positive; leave tensors without gradient out")
        if len(self.layer) and not 0 <= self.layer.min() <= self.layer.max() <= len(self.forward_s):
            raise ValueError(
                f"layer must lie in [0, {len(self.forward_s)}], got {self.layer.min()} to "
                f"{self.layer.max()}"
            )
        if (np.diff(self.layer) < 0).any():
            raise ValueError("tensors must be sorted by the layer that needs them")

    @property
    def bound_s(self) -> float:
        """Seconds that no schedule beats: the larger of all compute and all bytes."""
        compute_s = self.backward_s + float(self.forward_s.sum())
        return max(compute_s, float(self.num_bytes.sum()) / self.link.bytes_per_s)

    @property
    def start_up_s(self) -> float:
        """Seconds that a collective takes by itself before any byte of it."""
        return self.link.alpha_s + self.block_cost_s

    def by_readiness(self) -> NDArray[np.int64]:
        """Return the tensors as they become ready; of equals, the last in forward order first."""
        return np.lexsort((-np.arange(len(self.ready_s)), self.ready_s))

    @classmethod
    def from_job(
        cls, job: Job, *, num_in_flight: int = 1, block_cost_s: float = 0.0
    ) -> "WireProblem":
        """Take each layer's gradients as one tensor; they are ready when its backward pass ends.

        Raises:
            ValueError: If the job has no link.
        """
        if job.link is None:
            raise ValueError("a job without a link has nothing to schedule; measure or pass one")
        # Of floats, though a job may hold whole seconds.
        backward_s = np.array([float(layer.backward_s) for layer in job.layers])
        ready_s = np.cumsum(backward_s[::-1])[::-1]
        num_bytes = np.array([float(layer.gradient_bytes) for layer in job.layers])
        sends = np.flatnonzero(num_bytes > 0)
        return cls(
            forward_s=np.array([float(layer.forward_s) for layer in job.layers]),
            layer=sends,
            num_bytes=num_bytes[sends],
            ready_s=ready_s[sends],
            backward_s=float(backward_s.sum()),
            link=job.link,
            num_in_flight=num_in_flight,
            block_cost_s=block_cost_s,
        )
