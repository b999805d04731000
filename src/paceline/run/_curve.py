"""What is asked of a re-simulated run, and the scaling curve that answers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paceline.run._wire_model import COMMS, Comm, WireModel

Balance = Literal["none", "window", "perfect"]
Limit = Literal["compute", "small batch", "loop", "loader", "straggler", "wire"]
BALANCES: tuple[Balance, ...] = ("none", "window", "perfect")
MAX_RANKS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """What is changed of a run; unset for as measured.

    Attributes:
        num_workers: Ranks of each point of the curve.
        bytes_per_s: Of each wire between ranks, each way; unset to fit it to the measured run.
        hop_s: Latency of a hop in seconds; unset for 5 us.
        device_speed: Times that the device computes faster. What a micro-batch costs the host
            whatever is in it stays.
        balance: "none" draws batches as they were; "window" divides each step's expected cost
            evenly; "perfect" lets all ranks arrive together.
        comm: "ddp" sends buckets during the backward pass; "overlapped" hides what both passes
            have room for.
        num_cores: Cores of one machine that all ranks share; unset for as many machines as the
            ranks need.
    """

    num_workers: tuple[int, ...]
    bytes_per_s: float | None = None
    hop_s: float | None = None
    device_speed: float = 1.0
    balance: Balance = "none"
    comm: Comm = "ddp"
    num_cores: int | None = None

    def __post_init__(self) -> None:
        if not self.num_workers or not all(1 <= num <= MAX_RANKS for num in self.num_workers):
            raise ValueError(
                f"num_workers must be 1 to {MAX_RANKS}, got {list(self.num_workers) or 'none'}"
            )
        for name in ("bytes_per_s", "device_speed"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} must be finite and positive, got {value}")
        if self.hop_s is not None and not 0 <= self.hop_s < np.inf:
            raise ValueError(f"hop_s must be finite and not negative, got {self.hop_s}")
        if self.num_cores is not None and self.num_cores < 1:
            raise ValueError(f"num_cores must be at least 1, got {self.num_cores}")
        for name, choices in (("balance", BALANCES), ("comm", COMMS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )

    def slowdown(self, num_ranks: int) -> NDArray[np.float64]:
        """Return the seconds of the same work while 1, 2, ... ranks compute, over those of one."""
        busy = np.arange(1, num_ranks + 1)
        return np.maximum(busy / (self.num_cores or num_ranks), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One number of ranks; everything is simulated, means over the drawn steps.

    Attributes:
        num_workers: Ranks; each has as much to do per step as it had in the measured run.
        step_s: Seconds per step.
        examples_per_s: Over all ranks; None if examples were not counted.
        efficiency: Work per second and rank, relative to one rank alone.
        limit: What takes most of the step.
        parts_s: Seconds of the step by what takes them; they add up to `step_s`.
    """

    num_workers: int
    step_s: float
    examples_per_s: float | None
    efficiency: float
    limit: Limit
    parts_s: dict[Limit, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A scaling curve, simulated from a measured run.

    Attributes:
        points: One for each number of ranks that was asked for.
        measured_step_s: Seconds per step of the run, measured.
        replayed_step_s: The same, simulated as the run was: how far the simulation is off.
        num_ranks: Ranks of the run.
        wire: What the curve assumed of the wire; None if it was not needed.
        changed: What was asked for.
        notes: What a reader should know of the assumptions.
    """

    points: tuple[Point, ...]
    measured_step_s: float
    replayed_step_s: float
    num_ranks: int
    wire: WireModel | None
    changed: WhatIf
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, safe to save as JSON."""
        points = [{name: getattr(point, name) for name in Point.__slots__} for point in self.points]
        return {
            "source": "simulated",
            "points": points,
            "num_ranks": self.num_ranks,
            "measured_step_s": self.measured_step_s,
            "replayed_step_s": self.replayed_step_s,
            "bytes_per_s": None if self.wire is None else self.wire.bytes_per_s,
            "hop_s": None if self.wire is None else self.wire.hop_s,
            "device_speed": self.changed.device_speed,
            "balance": self.changed.balance,
            "comm": self.changed.comm,
            "num_cores": self.changed.num_cores,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        error = self.replayed_step_s / self.measured_step_s - 1
        rows = [
            f"simulated from {self.num_ranks} measured ranks; the same run simulated takes "
            f"{1e3 * self.replayed_step_s:.4g} ms per step, measured "
            f"{1e3 * self.measured_step_s:.4g} ms ({error:+.1%})",
            f"{'workers':>8} {'step, ms':>10} {'examples/s':>12} {'efficiency':>11}  limit",
        ]
        for one in self.points:
            rate = "" if one.examples_per_s is None else f"{one.examples_per_s:,.0f}"
            share = one.parts_s[one.limit] / one.step_s
            rows.append(
                f"{one.num_workers:8d} {1e3 * one.step_s:10.4g} {rate:>12} "
                f"{one.efficiency:11.0%}  {one.limit} ({share:.0%} of the step)"
            )
        return "\n".join([*rows, *(f"note: {note}" for note in self.notes)])


def powers_of_two(first: int, last: int) -> list[int]:
    """Return `first`, then each power of two above it below `last`, then `last`.

    Examples:
        >>> powers_of_two(1, 10)
        [1, 2, 4, 8, 10]
    """
    inner = [1 << bit for bit in range(last.bit_length()) if first < 1 << bit < last]
    return [first, *inner, last] if last > first else [first]
