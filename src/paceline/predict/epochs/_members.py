"""The members of the pool: what they are fitted on and what each may look at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from paceline.predict.epochs._effects import Effects, Variances
from paceline.predict.epochs._forest import Forest
from paceline.predict.epochs._pool import Spread
from paceline.predict.epochs._rows import PROBES, Runs

MEMBERS = ("constant", "family forest", "dataset-blind forest", "forest", "effects")


@dataclass(frozen=True, slots=True)
class Features:
    """Columns for trees: configuration on log scales, names as indicators, kept probes.

    Attributes:
        indicators: `(column, name)` pairs that become 0 or 1.
        sees_dataset: Whether the dataset's size and name are among the columns.
        probes: Probe columns that are used, with the value that stands in for a missing one.
    """

    indicators: tuple[tuple[str, str], ...]
    sees_dataset: bool
    probes: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, runs: Runs, *, sees_dataset: bool, probes: tuple[str, ...] = ()) -> Self:
        """The columns that distinguish the given runs."""
        columns = ("family", "optimizer", "model", *(["dataset"] if sees_dataset else []))
        names = [(c, str(name)) for c in columns for name in np.unique(getattr(runs, c))]
        centre = [(p, float(np.nan_to_num(np.nanmedian(getattr(runs, p))))) for p in probes]
        return cls(tuple(names), sees_dataset, tuple(centre))

    @property
    def num_columns(self) -> int:
        """How many columns `of_runs` makes."""
        return 5 + 2 * self.sees_dataset + len(self.indicators) + len(self.probes)

    def of_runs(self, runs: Runs) -> NDArray[np.float64]:
        """Shape `(num_runs, num_features)`, finite."""
        rate, batch = np.log(runs.learning_rate), np.log(runs.batch_size)
        columns = [runs.is_sgd * 1.0, rate, batch, rate - batch, np.log(runs.param_count)]
        if self.sees_dataset:
            size = np.log(runs.dataset_size)
            columns += [size, size - batch]
        columns += [(getattr(runs, column) == name) * 1.0 for column, name in self.indicators]
        for probe, centre in self.probes:
            value = getattr(runs, probe)
            columns.append(np.where(np.isnan(value), centre, value))
        return np.stack(columns, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "indicators": [list(pair) for pair in self.indicators],
            "sees_dataset": self.sees_dataset,
            "probes": [list(pair) for pair in self.probes],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The columns that `to_dict` wrote."""
        indicators = tuple((str(a), str(b)) for a, b in state["indicators"])
        probes = tuple((str(a), float(b)) for a, b in state["probes"])
        if unknown := {name for name, _ in probes} - set(PROBES):
            raise ValueError(f"probes must be among {PROBES}, got {sorted(unknown)}")
        return cls(indicators, bool(state["sees_dataset"]), probes)


@dataclass(frozen=True, slots=True)
class ForestMember:
    """A forest together with the columns that it reads."""

    features: Features
    forest: Forest

    @classmethod
    def fit(
        cls, runs: Runs, *, sees_dataset: bool, probes: tuple[str, ...] = (), seed: int = 0
    ) -> Self:
        """Grow the forest on runs that have ended."""
        features = Features.of(runs, sees_dataset=sees_dataset, probes=probes)
        return cls(features, Forest.fit(features.of_runs(runs), runs.T_conv, seed=seed))

    def spread(self, runs: Runs) -> Spread:
        """What the forest expects of each run."""
        weights = self.forest.spread(self.features.of_runs(runs))
        return Spread(np.broadcast_to(self.forest.support, weights.shape), weights)


@dataclass(frozen=True, slots=True)
class Constant:
    """The baseline: what the runs with the same optimizer took, in whatever configuration."""

    seen: dict[str, list[float]]

    @classmethod
    def fit(cls, runs: Runs) -> Self:
        """Collect the epochs by optimizer; the empty name holds all."""
        by_name = {str(o): runs.T_conv[runs.optimizer == o] for o in np.unique(runs.optimizer)}
        return cls({name: np.sort(e).tolist() for name, e in {**by_name, "": runs.T_conv}.items()})

    def of(self, optimizer: str) -> list[float]:
        """The epochs seen with an optimizer; with one that is new, all."""
        return self.seen.get(optimizer, self.seen[""])

    def spread(self, runs: Runs) -> Spread:
        """Those epochs, equally likely."""
        support = np.unique(self.seen[""])
        places = [np.searchsorted(support, self.of(name)) for name in runs.optimizer.tolist()]
        shares = [np.bincount(at, minlength=support.size) / at.size for at in places]
        weights = np.array(shares).reshape(len(runs), support.size)
        return Spread(np.broadcast_to(support, weights.shape), weights)


@dataclass(frozen=True, slots=True)
class Shared:
    """Members fitted on the runs of all families."""

    forest: ForestMember
    effects: Effects

    @classmethod
    def fit(cls, runs: Runs, *, start: Variances | None = None, seed: int = 0) -> Self:
        """Fit to runs that have ended; `start` shortens the search for the variances."""
        forest = ForestMember.fit(runs, sees_dataset=True, seed=seed)
        return cls(forest, Effects.fit(runs, start=start, rounds=5 if start is None else 3))

    def spreads(self, runs: Runs) -> list[Spread]:
        """What the two members expect of each run."""
        values = self.effects.spread(runs)
        return [
            self.forest.spread(runs),
            Spread(values, np.full(values.shape, 1 / values.shape[1])),
        ]


@dataclass(frozen=True, slots=True)
class Own:
    """Members fitted on the runs of one family."""

    constant: Constant
    forest: ForestMember
    blind: ForestMember

    @classmethod
    def fit(cls, runs: Runs, *, probes: tuple[str, ...] = (), seed: int = 0) -> Self:
        """Fit to runs that have ended, all of one family."""
        return cls(
            Constant.fit(runs),
            ForestMember.fit(runs, sees_dataset=True, probes=probes, seed=seed),
            ForestMember.fit(runs, sees_dataset=False, probes=probes, seed=seed),
        )

    def spreads(self, runs: Runs) -> list[Spread]:
        """What the three members expect of each run."""
        return [self.constant.spread(runs), self.forest.spread(runs), self.blind.spread(runs)]
