"""After how many epochs a run stops improving, before it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from paceline.predict._conformal import Estimate
from paceline.predict.epochs._calibration import (
    FEWEST_RUNS,
    Calibration,
    bounded_epochs,
    calibrate_families,
    chosen_probes,
)
from paceline.predict.epochs._effects import Effects
from paceline.predict.epochs._forest import Forest
from paceline.predict.epochs._members import MEMBERS, Constant, Features, ForestMember, Own, Shared
from paceline.predict.epochs._pool import Spread
from paceline.predict.epochs._rows import SHIFTS, Runs, Shift, plain_name

VERSION = 1


@dataclass(frozen=True, slots=True)
class ConvergencePredictor:
    """Predicts the epochs that training takes from its configuration; `fit_convergence` makes one.

    Attributes:
        shared: Members fitted on all families.
        own: Members per family.
        calibrations: Per family and kind of shift.
        probes: Probe columns that lower the error, per family.
        num_runs: How many runs it was fitted on.
    """

    shared: Shared
    own: dict[str, Own]
    calibrations: dict[str, dict[Shift, Calibration]]
    probes: dict[str, tuple[str, ...]]
    num_runs: int

    def predict(
        self, rows: Sequence[Mapping[str, Any]] | Runs, *, shift: Shift | None = None
    ) -> list[Estimate]:
        """Predict the epochs of each run.

        The point is the one with the least expected relative error, which
        lies below the median of a skewed spread; see `pooled_epochs`. No estimate is
        below `patience_P + 1` or above `max_epochs`.

        Args:
            rows: Configurations, by the names of the attributes of `Runs`; a kept probe
                that is missing counts as ordinary.
            shift: What is new about the runs; unset, a name that was never seen is new.

        Returns:
            One estimate per row, in epochs.

        Raises:
            ValueError: If a column is missing or bad, or the family was not fitted.
        """
        runs = rows if isinstance(rows, Runs) else Runs.from_rows(rows)
        self._check_families(runs)
        estimates: dict[int, Estimate] = {}
        kinds = self.shifts(runs) if shift is None else [shift] * len(runs)
        keys = list(zip(runs.family.tolist(), kinds, strict=True))
        for family, kind in sorted(set(keys)):
            places = np.array([place for place, key in enumerate(keys) if key == (family, kind)])
            batch = runs.take(places)
            spreads = self.own[family].spreads(batch) + self.shared.spreads(batch)
            found = _estimates(batch, spreads, self.calibrations[family][kind])
            estimates.update(zip(places.tolist(), found, strict=True))
        return [estimates[place] for place in range(len(runs))]

    def shifts(self, runs: Runs) -> list[Shift]:
        """What is new about each run: a name that no run of the fit had."""
        known = set(self.shared.forest.features.indicators)
        return [
            _shift(("model", model) not in known, ("dataset", dataset) not in known)
            for model, dataset in zip(runs.model.tolist(), runs.dataset.tolist(), strict=True)
        ]

    def reason(self, family: str, shift: Shift) -> str:
        """Why an estimate deserves little trust; empty if it beat the constant of the optimizer.

        Raises:
            ValueError: If the family was not fitted.
        """
        name = plain_name(family)
        if name not in self.calibrations:
            raise ValueError(f"no runs of family {family}; fitted: {', '.join(self.calibrations)}")
        seen = self.calibrations[name][shift]
        if seen.error < seen.constant_error:
            return ""
        return (
            f"on held-out runs ({NEW[shift]}, {name}) the error was {seen.error:.0%}, no better "
            f"than the {seen.constant_error:.0%} of a constant per optimizer; the first epochs "
            "of the run tell more"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: trees, effects and weights; no row of the tables."""
        return {
            "version": VERSION,
            "num_runs": self.num_runs,
            "members": list(MEMBERS),
            "shared": {
                "forest": _forest_state(self.shared.forest),
                "effects": self.shared.effects.to_dict(),
            },
            "families": {name: self._family_state(name) for name in self.own},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The predictor that `to_dict` wrote.

        Raises:
            ValueError: If it was written by another version or is damaged.
        """
        if state.get("version") != VERSION or tuple(state.get("members", ())) != MEMBERS:
            raise ValueError(
                f"this convergence predictor has version {state.get('version')}, expected "
                f"{VERSION}; fit it again"
            )
        try:
            families = state["families"]
            return cls(
                Shared(
                    _forest_member(state["shared"]["forest"]),
                    Effects.from_dict(state["shared"]["effects"]),
                ),
                {name: _own(family) for name, family in families.items()},
                {name: _calibrations(family) for name, family in families.items()},
                {name: tuple(family["probes"]) for name, family in families.items()},
                int(state["num_runs"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the convergence predictor is damaged: {error!r}") from error

    def _family_state(self, name: str) -> dict[str, Any]:
        own = self.own[name]
        return {
            "probes": list(self.probes[name]),
            "constant": own.constant.seen,
            "forest": _forest_state(own.forest),
            "blind": _forest_state(own.blind),
            "calibrations": {
                shift: {field: getattr(seen, field) for field in Calibration.__slots__}
                for shift, seen in self.calibrations[name].items()
            },
        }

    def _check_families(self, runs: Runs) -> None:
        unknown = sorted(set(runs.family.tolist()) - set(self.own))
        if unknown:
            raise ValueError(
                f"no runs of family {', '.join(unknown)} were fitted, only "
                f"{', '.join(self.own)}; name the nearest of these"
            )


NEW: dict[Shift, str] = {
    "known": "known model and dataset",
    "dataset": "new dataset",
    "model": "new model",
    "both": "new model and new dataset",
}


def fit_convergence(
    columns: Mapping[str, ArrayLike] | Runs,
    *,
    families: Sequence[str] | None = None,
    shifts: Sequence[Shift] = SHIFTS,
    seed: int = 0,
) -> ConvergencePredictor:
    """Fit the predictor of epochs to runs that have ended.

    Five members predict a spread of epochs each: the constant of the optimizer; a
    forest on the runs of the family; the same without looking at the dataset; a
    forest on all families; and crossed effects of model, dataset and optimizer on
    all families. For every kind of shift, runs are held out the same way inside
    the given ones: how the members did there sets their weights, and
    how far off the pool was sets the intervals. About a second per 100 runs.

    Args:
        columns: By the names of the attributes of `Runs`, with `T_conv`.
        families: Those that will be asked for, as `Runs` spells them; unset for all. The runs of
            the others are learned from all the same.
        shifts: Kinds of shift that will be asked for.
        seed: Of the random parts and thresholds.

    Raises:
        ValueError: If a column is missing or bad, or there are fewer than 8 runs in a family.
    """
    runs = columns if isinstance(columns, Runs) else Runs.from_columns(columns)
    if not np.isfinite(runs.T_conv).all():
        raise ValueError(
            "T_conv must be known for every run to fit on; drop the runs that did not end"
        )
    shared = Shared.fit(runs, seed=seed)
    start = shared.effects.variances
    own, probes = {}, {}
    for family in np.unique(runs.family).tolist() if families is None else families:
        of_family = runs.take(runs.family == family)
        if len(of_family) < FEWEST_RUNS:
            raise ValueError(
                f"family {family} has {len(of_family)} runs, at least {FEWEST_RUNS} needed"
            )
        probes[family] = chosen_probes(of_family, seed=seed)
        own[family] = Own.fit(of_family, probes=probes[family], seed=seed)
    # Intervals for new names borrow from every family with enough runs to hold some out.
    names, counts = np.unique(runs.family, return_counts=True)
    lenders = {name: probes.get(name, ()) for name in names[counts >= FEWEST_RUNS].tolist()}
    by_shift = {
        shift: calibrate_families(
            runs, shift, start=start, probes=probes if shift == "known" else lenders, seed=seed
        )
        for shift in shifts
    }
    calibrations = {name: {shift: by_shift[shift][name] for shift in shifts} for name in own}
    return ConvergencePredictor(shared, own, calibrations, probes, len(runs))


def _shift(new_model: bool, new_dataset: bool) -> Shift:
    if new_model:
        return "both" if new_dataset else "model"
    return "dataset" if new_dataset else "known"


def _estimates(runs: Runs, spreads: Sequence[Spread], seen: Calibration) -> list[Estimate]:
    point = bounded_epochs(runs, spreads, np.array(seen.pool))
    low = np.maximum(point * np.exp(seen.low), runs.fewest)
    high = np.minimum(point * np.exp(seen.high), runs.max_epochs)
    return [Estimate(*map(float, found)) for found in zip(point, low, high, strict=True)]


def _forest_state(member: ForestMember) -> dict[str, Any]:
    return {"features": member.features.to_dict(), "trees": member.forest.to_dict()}


def _forest_member(state: Mapping[str, Any]) -> ForestMember:
    features = Features.from_dict(state["features"])
    return ForestMember(
        features, Forest.from_dict(state["trees"], num_features=features.num_columns)
    )


def _own(state: Mapping[str, Any]) -> Own:
    constant = Constant({name: list(epochs) for name, epochs in state["constant"].items()})
    return Own(constant, _forest_member(state["forest"]), _forest_member(state["blind"]))


def _calibrations(state: Mapping[str, Any]) -> dict[Shift, Calibration]:
    found = state["calibrations"]
    return {
        shift: Calibration(**{**found[shift], "pool": tuple(found[shift]["pool"])})
        for shift in SHIFTS
    }
