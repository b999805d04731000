"""What is to be done and what it costs: layers, link, workers, examples."""

from dataclasses import dataclass, field
from math import inf
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._files import shown
from paceline.cost._checks import check_number, checked_column, is_finite
from paceline.cost._cores import shared_cores_s
from paceline.cost._examples import ExampleCost, LinearCost
from paceline.cost._least_squares import fit_nonnegative
from paceline.timeline import SOURCES, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one layer, a module that owns parameters, costs per step.

    Attributes:
        name: Its name in `model.named_modules()`.
        forward_s: Seconds of the forward pass, over all its calls.
        backward_s: Seconds of the backward pass until its gradients are ready.
        gradient_bytes: Bytes of its gradients; parameters that it shares with an
            earlier layer count there, parameters without gradient not at all.
    """

    name: str
    forward_s: float
    backward_s: float
    gradient_bytes: int

    def __post_init__(self) -> None:
        for field_name in ("forward_s", "backward_s", "gradient_bytes"):
            check_number(f"{field_name} of layer {self.name!r}", getattr(self, field_name))


@dataclass(frozen=True, slots=True)
class Link:
    """The link between workers: a collective of `n` bytes takes `alpha_s + n / bytes_per_s`.

    Fitted to whole collectives of one group, so ranks and algorithm are inside the two numbers.

    Attributes:
        alpha_s: Seconds that even an empty collective takes.
        bytes_per_s: Payload bytes per second on top; `inf` if the size does not show in the time.

    Examples:
        >>> round(Link(alpha_s=1e-3, bytes_per_s=1e9).transfer_s(25_000_000), 6)
        0.026
    """

    alpha_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        check_number("alpha_s", self.alpha_s)
        is_number = is_finite(self.bytes_per_s) or self.bytes_per_s == inf
        if not (is_number and self.bytes_per_s > 0):
            raise ValueError(f"bytes_per_s must be positive, got {shown(self.bytes_per_s)}")

    def transfer_s(self, num_bytes: float) -> float:
        """Return the predicted seconds of one collective of `num_bytes`."""
        check_number("num_bytes", num_bytes)
        return self.alpha_s + num_bytes / self.bytes_per_s

    @classmethod
    def fit(cls, num_bytes: ArrayLike, seconds: ArrayLike) -> Self:
        """Fit to timed collectives by non-negative least squares on relative errors.

        Args:
            num_bytes: Payload of each, shape `(num_timings,)`, at least two sizes.
            seconds: Its time, positive, same shape.

        Raises:
            ValueError: If shapes disagree, a time is not positive, or all sizes are equal.

        Examples:
            >>> link = Link.fit([0, 1_000_000], [0.001, 0.002])
            >>> round(link.alpha_s, 6), round(link.bytes_per_s)
            (0.001, 1000000000)
        """
        payload = checked_column("num_bytes", num_bytes)
        time_s = checked_column("seconds", seconds)
        if payload.shape != time_s.shape or not (time_s > 0).all():
            raise ValueError(
                f"seconds must be positive with shape {payload.shape}, got {time_s.tolist()}"
            )
        if len(np.unique(payload)) < 2:
            raise ValueError(
                f"num_bytes must hold at least two different sizes, got {payload.tolist()}; "
                "one size cannot tell the latency from the bandwidth"
            )
        features = np.stack([np.ones_like(payload), payload], axis=1) / time_s[:, None]
        alpha_s, s_per_byte = fit_nonnegative(features, np.ones_like(time_s))
        return cls(float(alpha_s), 1.0 / float(s_per_byte) if s_per_byte > 0 else inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One data-parallel rank.

    Attributes:
        speed: Relative to the worker that the costs were measured on: 0.5 takes twice as long.
        overhead_s: Seconds per step whatever the examples: optimizer, kernel launches, Python.
        memory_bytes: What it can hold, if known.
    """

    speed: float = 1.0
    overhead_s: float = 0.0
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not (is_finite(self.speed) and self.speed > 0):
            raise ValueError(f"speed must be finite and positive, got {shown(self.speed)}")
        check_number("overhead_s", self.overhead_s)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """What is to be done and what it costs. Measured on a live model or estimated.

    Attributes:
        source: Where the numbers come from.
        layers: In the order of the forward pass.
        link: Between workers; None for a single worker.
        workers: One per data-parallel rank.
        sizes: Size of each example, shape `(num_examples,)`; empty if not known.
        cost: Cost of an example by size.
        slowdown: Where workers share cores, the seconds of the same work while 1, 2, ... of them
            compute at once, in any unit; see `shared_cores_s`. Seconds of the job are those with
            all workers at it. Empty where they do not slow each other.
    """

    source: Source
    layers: tuple[LayerCost, ...] = ()
    link: Link | None = None
    workers: tuple[Worker, ...] = (Worker(),)
    sizes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    cost: ExampleCost = field(default_factory=LinearCost)
    slowdown: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            listed = ", ".join(SOURCES)
            raise ValueError(f"source must be one of {listed}, got {shown(self.source)}")
        if not self.workers:
            raise ValueError("workers must hold at least one Worker, got none")
        checked_column("sizes", self.sizes)
        if self.slowdown:
            shared_cores_s(np.zeros((1, len(self.workers))), self.slowdown)

    @property
    def forward_s(self) -> float:
        """Seconds of one forward pass."""
        return sum(layer.forward_s for layer in self.layers)

    @property
    def backward_s(self) -> float:
        """Seconds of one backward pass."""
        return sum(layer.backward_s for layer in self.layers)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients."""
        return sum(layer.gradient_bytes for layer in self.layers)

    def __str__(self) -> str:
        link = "no link"
        if self.link is not None:
            link = f"link {self.link.alpha_s * 1e3:.3g} ms + {self.link.bytes_per_s / 1e9:.3g} GB/s"
        return (
            f"{self.source} job: {len(self.layers)} layers, forward {self.forward_s * 1e3:.4g} ms, "
            f"backward {self.backward_s * 1e3:.4g} ms, gradients "
            f"{self.gradient_bytes / 1e6:.4g} MB, {link}, {len(self.workers)} workers"
        )
