"""A run that was recorded, over all its ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from paceline._files import shown
from paceline.run._applied import applied_line
from paceline.run._bucket_cap import BucketCap, better_bucket_cap
from paceline.run._compare import Comparison, compare_grids
from paceline.run._curve import Balance, Curve, WhatIf
from paceline.run._folder import RunFolder
from paceline.run._side_by_side import grid_of, timeline_of
from paceline.run._steps import Steps
from paceline.run._verdict import Verdict, verdict_of
from paceline.run._what_if import simulate_curve
from paceline.run._wire_model import Comm
from paceline.run.causes import Evidence, Grid
from paceline.timeline import Summary, Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The first steps build buckets, fill caches and start loaders; of a short run, a quarter.
NUM_WARM_UP = 3
# Steps of a figure, wide enough to see their parts.
NUM_PLOTTED = 12
DURATIONS = [name for name in Steps._fields[2:] if name.endswith("_s")]
NUMBERS = ("num_workers", "gradient_bytes", "bucket_cap_mb", "host_s")
# A summary walks single spans; this many steps say what there is to say.
NUM_SUMMED = 1000


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Run:
    """Steps of all ranks of one training run, as measured.

    All ranks have the same steps: those that the shortest record holds. The first ones warm up and
    are kept apart.

    Attributes:
        info: What `run.json` says: script, command, versions, hardware, how it ended.
        facts: What each rank knows of its model, its data and its machine.
        steps: The steps of each rank after warm-up.
        warm_up: The steps of each rank before.
    """

    info: Mapping[str, Any]
    facts: tuple[Mapping[str, Any], ...]
    steps: tuple[Steps, ...]
    warm_up: tuple[Steps, ...]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the folder that `paceline run` wrote.

        Raises:
            ValueError: If it holds no run, a file in it is damaged, or a rank recorded no step.
        """
        place = RunFolder(Path(folder))
        info = place.read_info()
        ranks = place.ranks()
        num_ranks = info.get("num_ranks")
        if not ranks:
            raise ValueError(
                f"no rank recorded a step in {place.path}; was there an optimizer.step() in the "
                "script?"
            )
        if ranks != list(range(len(ranks))) or len(ranks) != num_ranks:
            raise ValueError(
                f"{place.path} must hold the steps of {num_ranks} ranks, got ranks {ranks}; bring "
                "the folders of all machines together"
            )
        steps = [place.read_steps(rank) for rank in ranks]
        return cls.of(steps, info=info, facts=[place.read_facts(rank) or {} for rank in ranks])

    @classmethod
    def of(
        cls,
        steps: Sequence[Steps],
        *,
        info: Mapping[str, Any] | None = None,
        facts: Sequence[Mapping[str, Any]] = (),
    ) -> Self:
        """Make a run of the steps of each rank.

        Raises:
            ValueError: If a rank has no step, or holds a time or a fact that cannot be.
        """
        lengths = [len(one.begin_s) for one in steps]
        if not lengths or min(lengths) == 0:
            raise ValueError(
                f"every rank must have recorded a step, got {lengths or 'no ranks'}; was there an "
                "optimizer.step() in the script?"
            )
        for rank, one in enumerate(steps):
            _check_seconds(rank, one)
        for rank, fact in enumerate(facts):
            _check_facts(rank, fact)
        cut = min(NUM_WARM_UP, min(lengths) // 4)
        return cls(
            info=info or {},
            facts=tuple(facts) or ({},) * len(steps),
            steps=tuple(_rows(one, cut, min(lengths)) for one in steps),
            warm_up=tuple(_rows(one, 0, cut) for one in steps),
        )

    @property
    def num_ranks(self) -> int:
        """Ranks."""
        return len(self.steps)

    @property
    def num_steps(self) -> int:
        """Steps after warm-up."""
        return len(self.steps[0].begin_s)

    @property
    def step_times_s(self) -> NDArray[np.float64]:
        """Measured seconds of each step after warm-up, mean over ranks; shape `(num_steps,)`."""
        return self.grid().step_s

    @property
    def step_s(self) -> float:
        """Measured seconds per step after warm-up: their mean, which is what a run pays."""
        return float(self.step_times_s.mean())

    def grid(self) -> Grid:
        """Return columns of all ranks: what each second of rank time was spent on."""
        return grid_of(self.steps)

    def timeline(self, *, first: int = 0, num: int | None = None) -> Timeline:
        """Return the spans of `num` steps after warm-up, from `first` on; unset for all.

        The ranks are on one clock: their all-reduces end together. Micro-batches of one step are
        drawn as one.
        """
        end = self.num_steps if num is None else first + num
        return timeline_of([_rows(one, first, end) for one in self.steps], first)

    def plot(self, *, first: int = 0, num: int = NUM_PLOTTED) -> "Figure":
        """Return one matplotlib figure of `num` steps for a notebook; needs the `report` extra.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        return self.timeline(first=first, num=min(num, self.num_steps - first)).plot()

    def summary(self) -> Summary:
        """Return what the first 1,000 steps after warm-up cost; see `Summary`."""
        return self.timeline(num=NUM_SUMMED).summary()

    def verdict(self) -> Verdict:
        """Return what costs time, why, and what to change next."""
        found = verdict_of(self.grid(), self.facts, str(self))
        return replace(found, applied=applied_line(self.info.get("applied")))

    def better_bucket_cap(self) -> BucketCap | None:
        """Return buckets of DistributedDataParallel that a step would be faster with, simulated."""
        return better_bucket_cap(Evidence.of(self.grid(), self.facts))

    def compare(self, other: "Run") -> Comparison:
        """Return whether `other` is faster or slower than this run beyond noise, and by what."""
        return compare_grids(self.grid(), other.grid())

    def what_if(
        self,
        num_workers: Sequence[int],
        *,
        bytes_per_s: float | None = None,
        hop_s: float | None = None,
        device_speed: float = 1.0,
        balance: Balance = "none",
        comm: Comm = "ddp",
        num_cores: int | None = None,
    ) -> Curve:
        """Simulate this run on other numbers of ranks, and with something changed.

        Args:
            num_workers: Ranks of each point; each keeps the work that it has per step.
            bytes_per_s: Of each wire between ranks; unset to fit it to the measured run.
            hop_s: Latency of a hop in seconds; unset for 5 us.
            device_speed: Times that the device computes faster.
            balance: "none", "window" for an even expected cost in each step, or "perfect" for
                ranks that arrive together.
            comm: "ddp", or "overlapped" for what both passes can hide at best.
            num_cores: Cores of one machine that all ranks share; unset for more machines.

        Raises:
            ValueError: If a value makes no sense, or the run says too little of its wire.
        """
        changed = WhatIf(
            num_workers=tuple(num_workers),
            bytes_per_s=bytes_per_s,
            hop_s=hop_s,
            device_speed=device_speed,
            balance=balance,
            comm=comm,
            num_cores=num_cores,
        )
        return simulate_curve(Evidence.of(self.grid(), self.facts), changed)

    def scalars(self) -> dict[str, float]:
        """Return one flat dictionary of numbers for TensorBoard, Weights & Biases or MLflow.

        Everything is measured but `gain/...`, which is simulated. What nobody could tell is left
        out.
        """
        grid = self.grid()
        found = {"step_s": self.step_s, "num_ranks": grid.num_ranks, "num_steps": grid.num_steps}
        found |= {f"share/{name}": share for name, share in grid.shares().items()}
        for name in ("num_examples", "num_elements", "num_padding"):
            per_step = float(getattr(grid, name).sum(axis=0).mean())
            found[f"{name.removeprefix('num_')}_per_s"] = per_step / self.step_s
        for cause in self.verdict().causes:
            found |= {f"cause/{cause.cause}": cause.share, f"gain/{cause.cause}": cause.gain_low}
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}

    def __str__(self) -> str:
        script = Path(str(self.info.get("script") or "run")).name
        state = self.info.get("state", "ended")
        ended = "" if state == "ended" else f" ({state})"
        return (
            f"{script}{ended}: {self.num_ranks} ranks, {self.num_steps} steps of "
            f"{1e3 * self.step_s:.4g} ms (measured, without {len(self.warm_up[0].begin_s)} to "
            "warm up)"
        )

    def __repr__(self) -> str:
        return f"<Run {self}>"


def _check_seconds(rank: int, steps: Steps) -> None:
    for name in DURATIONS:
        column = getattr(steps, name)
        bad = np.flatnonzero(~(np.isfinite(column) & (column >= 0)))
        if bad.size:
            raise ValueError(
                f"rank {rank}: {name} must be finite and not negative, but step {bad[0]} has "
                f"{column[bad[0]]}; the record is damaged"
            )


def _check_facts(rank: int, facts: Mapping[str, Any]) -> None:
    for name in NUMBERS:
        value = facts.get(name)
        if not (value is None or (isinstance(value, int | float) and 0 <= value < np.inf)):
            raise ValueError(
                f"rank {rank}: the fact {name} must be a number, not negative, or null, got "
                f"{shown(value)}"
            )


def _rows(steps: Steps, first: int, end: int) -> Steps:
    rows: Any = (column[first:end] for column in steps)
    return Steps(*rows)
