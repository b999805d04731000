"""What the causes are told from: the steps, what their passes cost, and who was late by what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.run.causes._compute_model import ComputeModel, Work, fit_compute, work_of
from paceline.run.causes._grid import Grid
from paceline.run.causes._replay import Replay

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evidence:
    """Measured steps, and what was fitted to them.

    Attributes:
        grid: The steps.
        facts: What each rank knows of its model and data.
        work: What the passes had to do.
        model: What that costs.
        replay: The steps, to be run again.
        shares: Share of rank time of each class of `Grid.seconds`.
        waits: Share of rank time spent waiting for a last rank, by what made it last: "size" of
            its batch, its "pace", its "data", and the rest, "noise". They add up to the waiting.
    """

    grid: Grid
    facts: Sequence[Mapping[str, Any]]
    work: Work
    model: ComputeModel
    replay: Replay
    shares: dict[str, float]
    waits: dict[str, float]

    @classmethod
    def of(cls, grid: Grid, facts: Sequence[Mapping[str, Any]]) -> "Evidence":
        """Fit what the passes cost, and divide the waiting by it."""
        known = [fact["host_s"] for fact in facts if fact.get("host_s")]
        work = work_of(grid)
        model = fit_compute(grid, work, float(np.median(known)) if known else None)
        return cls(
            grid=grid,
            facts=facts,
            work=work,
            model=model,
            replay=Replay.of(grid),
            shares=grid.shares(),
            waits=_waits(grid, model, model.predict(work)),
        )

    @property
    def last(self) -> NDArray[np.int64]:
        """The rank that arrived last in each step, shape `(num_steps,)`."""
        return np.asarray(self.grid.local_s.argmax(axis=0), dtype=np.int64)

    def hidden_by_others(self) -> float:
        """Return the share of rank time that uneven batches would cost, were nothing else uneven.

        Simulated: every rank at the pace of the others, and no waiting for data.
        """
        grid = self.grid
        if not grid.is_joint:
            return 0.0
        even_s = grid.local_s - grid.seconds["data"] - pace_excess_s(grid, self.model)
        return _more_of_last(grid, self.model.predict(self.work), even_s.argmax(axis=0))

    def fact(self, name: str) -> Any:
        """Return what the first rank that knows says; None if none does."""
        values = (fact.get(name) for fact in self.facts)
        return next((value for value in values if value is not None), None)


def pace_excess_s(grid: Grid, model: ComputeModel) -> Array:
    """Return the seconds that each rank spent beyond what the others would have, per step.

    In its passes, for the same work; and outside of them, on average. Shape
    `(num_ranks, num_steps)`, not negative.
    """
    outside_s = grid.outside_s
    in_passes = _share_above_others(model.pace)[:, None] * grid.compute_s
    outside = _share_above_others(outside_s.mean(axis=1))[:, None] * outside_s
    return np.asarray(in_passes + outside)


def _share_above_others(level: Array) -> Array:
    """Return by which share of itself each level is above the median of the others."""
    num_ranks = len(level)
    if num_ranks == 1:
        return np.zeros(1)
    others = [np.sort(np.delete(level, rank))[(num_ranks - 2) // 2] for rank in range(num_ranks)]
    return np.maximum(1 - np.array(others) / np.maximum(level, 1e-12), 0.0)


def _waits(grid: Grid, model: ComputeModel, expected_s: Array) -> dict[str, float]:
    """Divide the waiting: what the last rank has more of than each other one, summed."""
    names = ("size", "pace", "data", "noise")
    if not grid.is_joint:
        return dict.fromkeys(names, 0.0)
    usual_s = np.broadcast_to(grid.outside_s.mean(axis=1, keepdims=True), expected_s.shape)
    parts = {
        "size": expected_s,
        "pace": expected_s * (model.pace[:, None] - 1) + usual_s,
        "data": grid.seconds["data"],
    }
    parts["noise"] = grid.local_s - sum(parts.values())
    last = grid.local_s.argmax(axis=0)
    return {name: _more_of_last(grid, parts[name], last) for name in names}


def _more_of_last(grid: Grid, part_s: Array, last: NDArray[np.int64]) -> float:
    """Return what the last rank of each step has more of `part_s`, as a share of rank time."""
    of_last_s = np.take_along_axis(part_s, last[None], axis=0)[0]
    return float((of_last_s - part_s.mean(axis=0)).sum() / grid.step_s.sum())
