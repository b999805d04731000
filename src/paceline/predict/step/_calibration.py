"""From point predictions to intervals: residuals of inner folds, one set per kind of shift."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paceline.predict._conformal import Estimate, conformal_offsets
from paceline.predict.step._estimate import StepEstimate
from paceline.predict.step._rows import FloatArray, StepRows, concatenate
from paceline.predict.step._time import WHOLE_STEP_SHIFTS, StepLogs, check_shift, fit_step_models

CONFIGURATION = ("variant", "dataset", "batch_size", "precision_bits", "device")
NUM_FOLDS = 10
NUM_INNER_FOLDS = 5
NUM_SECOND_FOLDS = 3  # of the second thing that is new, each with all of the first
ANY_FAMILY = ""
TRUST_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
QUANTITIES = ("compute", "total")


@dataclass(frozen=True, slots=True)
class Offsets:
    """What to add to a log prediction for the best guess and both ends of the interval."""

    point: float
    low: float
    high: float

    def estimate(self, log_seconds: float) -> Estimate:
        ends = (self.point, self.low, self.high)
        return Estimate(*(float(np.exp(log_seconds + end)) for end in ends))

    def widened(self, by: float) -> "Offsets":
        """With an independent uncertainty of log seconds added to both ends."""
        return Offsets(self.point, -math.hypot(self.low, by), math.hypot(self.high, by))

    def without_loader(self) -> "Offsets":
        """For a step whose loader is unknown: a wait can only add, so the guess is not lowered."""
        return Offsets(max(self.point, 0.0), self.low, self.high)


Calibration = Mapping[str, Mapping[str, Offsets]]
"""By quantity ("compute", "total"), then by family, with `ANY_FAMILY` for all others."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Measured rows, and their predictions by models that never saw their unit."""

    rows: StepRows
    logs: StepLogs

    def trusting(self, share: float | None) -> "HeldOut":
        """With that share of the trees' correction; None leaves the predictions as they are."""
        return self if share is None else HeldOut(self.rows, self.logs.trusting(share))

    def take(self, index: NDArray[np.intp]) -> "HeldOut":
        return HeldOut(self.rows.take(index), self.logs.take(index))

    def residuals(self, quantity: str) -> FloatArray:
        """`log(measured / predicted)` of "compute" or "total", shape `(num_rows,)`."""
        measured = self.rows["compute_s"] if quantity == "compute" else self.rows.total_s
        return np.asarray(np.log(measured) - getattr(self.logs, quantity), dtype=np.float64)


def units(rows: StepRows, shift: str) -> NDArray[np.str_]:
    """Name of the unit that each row belongs to: what is new as a whole under the shift.

    Under "known" every row is its own unit. A configuration is everything but
    the learning rate and the optimizer, as in the tables' own grouped split.
    """
    check_shift(shift)
    if shift == "known":
        return np.arange(len(rows)).astype(np.str_)
    return rows.keys(*(CONFIGURATION if shift == "configuration" else shift.split("+")))


def folds(
    rows: StepRows, shift: str, *, seed: int = 0, num_folds: int | None = None
) -> NDArray[np.intp]:
    """Fold that holds each row out, shape `(num_rows,)`; rows of one unit share a fold.

    With `num_folds`, units go at random to at most that many folds, equally many to each; without,
    every dataset, model or device is a fold of its own, and rows or configurations go to 10. No
    fold is empty.
    """
    names, unit = np.unique(units(rows, shift), return_inverse=True)
    wanted = num_folds or (NUM_FOLDS if shift in ("known", "configuration") else len(names))
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(order[unit] % min(wanted, len(names)), dtype=np.intp)


def held_out_predictions(rows: StepRows, shift: str, *, seed: int = 1) -> HeldOut:
    """Predict rows by models fitted without their unit.

    Datasets, models and devices are assigned to at most five folds, all of which are
    predicted; rows and configurations are many, so one fold in five is enough.
    """
    parts = []
    for out, kept in _inner_folds(rows, shift, seed):
        if not out.any():
            continue
        models = fit_step_models(rows.take(kept), (shift,))
        test = rows.take(np.flatnonzero(out))
        parts.append(HeldOut(test, models.logs(test, shift)))
    return join_held_out(parts)


def _inner_folds(
    rows: StepRows, shift: str, seed: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Rows to predict and rows to fit on; what is new on two counts is in neither's fold."""
    names = shift.split("+")
    first = folds(rows, names[0], seed=seed, num_folds=NUM_INNER_FOLDS)
    others = [folds(rows, name, seed=seed, num_folds=NUM_SECOND_FOLDS) for name in names[1:]]
    last = 1 if shift in WHOLE_STEP_SHIFTS else int(first.max()) + 1
    for number in range(last):
        out, kept = first == number, first != number
        if not others:
            yield out, kept
        for other in others:
            for inner in range(int(other.max()) + 1):
                yield out & (other == inner), kept & (other != inner)


def join_held_out(parts: Sequence[HeldOut]) -> HeldOut:
    joined = {
        name: np.concatenate([getattr(part.logs, name) for part in parts])
        for name in StepLogs.__slots__
    }
    return HeldOut(concatenate(part.rows for part in parts), StepLogs(**joined))


def chosen_trust(held_out: HeldOut, shift: str) -> float | None:
    """How much of the trees' correction carries over to a new unit of this kind.

    The share with the least absolute log error of compute on the inner folds, families counting
    equally; None where rows are known well enough for the trees to predict whole steps.
    """
    if shift in WHOLE_STEP_SHIFTS:
        return None
    family = held_out.rows["family"]
    share = 1 / _counts(family)

    def error(trust: float) -> float:
        return float((share * np.abs(held_out.trusting(trust).residuals("compute"))).sum())

    return min(TRUST_GRID, key=error)


def calibrate(held_out: HeldOut, shift: str) -> Calibration:
    """Offsets by quantity and family from predictions of the same kind of shift."""
    family, unit = held_out.rows["family"], units(held_out.rows, shift)
    names = [str(name) for name in np.unique(family)]
    masks = {name: family == name for name in names} | {ANY_FAMILY: np.ones(len(family), bool)}
    by_row = shift in WHOLE_STEP_SHIFTS
    table: dict[str, dict[str, Offsets]] = {}
    for quantity in QUANTITIES:
        residuals = held_out.residuals(quantity)
        usable = held_out.logs.loader_known | (quantity == "compute")
        table[quantity] = {
            name: offsets_of(residuals[rows], None if by_row else unit[rows])
            for name, rows in ((name, mask & usable) for name, mask in masks.items())
            if rows.any()
        }
    return table


def offsets_of(residuals: FloatArray, unit: NDArray[np.str_] | None) -> Offsets:
    """Interval by `conformal_offsets`, and the guess of least relative error within it.

    A guess of twice the truth has a larger relative error `|guess / measured - 1|` than one of half
    of it, so the best guess under a wide spread lies below the median: at the median weighted by 1
    / measured. Only this difference is taken from the residuals; their own median is the bias of a
    few units and says little about the next one.
    """
    low, high = conformal_offsets(residuals, groups=unit)
    share = np.ones(len(residuals)) if unit is None else 1 / _counts(unit)
    point = _median(residuals, share * np.exp(-residuals)) - _median(residuals, share)
    return Offsets(float(np.clip(point, low, high)), low, high)


def step_estimates(
    logs: StepLogs,
    family: NDArray[np.str_],
    table: Calibration,
    shift: str = "",
    *,
    extra: FloatArray | None = None,
) -> list[StepEstimate]:
    """Estimate every row: compute, loader and the whole step.

    Where the loader is unknown, the interval of the step is that of the compute time, and the
    upper ends of step and loader also cover an expensive dataset. `extra` holds, by row, half
    widths in log seconds of what `table` was not calibrated for.
    """
    wider = np.zeros(len(family)) if extra is None else extra
    return [
        _step_estimate(logs, row, str(name), table, shift, float(wider[row]))
        for row, name in enumerate(family)
    ]


def _step_estimate(
    logs: StepLogs, row: int, family: str, table: Calibration, shift: str, extra: float
) -> StepEstimate:
    compute = of_family(table["compute"], family).widened(extra)
    total = of_family(table["total"] or table["compute"], family).widened(extra)
    log_feed, log_total = float(logs.feed[row]), float(logs.total[row])
    slow, is_known = float(logs.slow_feed[row]), bool(logs.loader_known[row])
    feed = Offsets(0.0, total.low, max(total.high if is_known else slow - log_feed, 0.0))
    if not (is_known and table["total"]):
        total = replace(compute.without_loader(), high=max(compute.high, slow - log_total))
    return StepEstimate(
        compute=compute.estimate(float(logs.compute[row])),
        loader=feed.estimate(log_feed),
        total=total.estimate(log_total),
        shift=shift,
    )


def of_family(offsets: Mapping[str, Offsets], family: str) -> Offsets:
    return offsets.get(family, offsets[ANY_FAMILY])


def _counts(unit: NDArray[np.str_]) -> FloatArray:
    _, index, counts = np.unique(unit, return_inverse=True, return_counts=True)
    return np.asarray(counts[index], dtype=np.float64)


def _median(values: FloatArray, weight: FloatArray) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
