"""Learn the pool and the interval of a family by holding out what a kind of shift calls new."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paceline.predict._conformal import conformal_offsets
from paceline.predict.epochs._effects import Variances
from paceline.predict.epochs._members import ForestMember, Own, Shared
from paceline.predict.epochs._pool import Spread, learn_pool, pooled_epochs
from paceline.predict.epochs._rows import PROBES, Fold, Runs, Shift, folds

FEWEST_RUNS = 8
PROBE_ERRORS = 2.0
COVERAGE = 0.9


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the members are pooled for one kind of shift, and how far off that was.

    Attributes:
        pool: Weight of each member, in the order of `MEMBERS`.
        low: Log factor from the prediction to the lower end of the interval.
        high: Log factor to the upper end.
        error: Mean relative error on held-out runs of the training data.
        constant_error: The same for the constant of the optimizer.
        num_units: How many units were held out, one after the other.
    """

    pool: tuple[float, ...]
    low: float
    high: float
    error: float
    constant_error: float
    num_units: int


def calibrate_families(
    runs: Runs,
    shift: Shift,
    *,
    start: Variances,
    probes: Mapping[str, tuple[str, ...]],
    seed: int = 0,
) -> dict[str, Calibration]:
    """Calibrate every family of `probes`; intervals for new names borrow from each other.

    A family has three to five datasets or models, and the next one may lie
    anywhere; so for new names an interval is halfway between what its family's held-out
    units ask for and what the families ask for on average.
    """
    found = {
        family: calibrate(runs, family, shift, start=start, probes=kept, seed=seed)
        for family, kept in probes.items()
    }
    if shift == "known":
        return found
    low = float(np.mean([seen.low for seen in found.values()]))
    high = float(np.mean([seen.high for seen in found.values()]))
    return {
        family: replace(seen, low=(seen.low + low) / 2, high=(seen.high + high) / 2)
        for family, seen in found.items()
    }


def calibrate(
    runs: Runs,
    family: str,
    shift: Shift,
    *,
    start: Variances,
    probes: tuple[str, ...] = (),
    seed: int = 0,
) -> Calibration:
    """Hold out what `shift` calls new, and learn pool and interval from how that went.

    Args:
        runs: All that may be looked at.
        family: Whose runs are held out.
        shift: Kind of shift to prepare for.
        start: Variances of the effects on all runs, to begin from.
        probes: Probe columns for the members of the family.
        seed: Of the random parts and thresholds.
    """
    parts = [fold for fold in folds(runs, family, shift, seed=seed) if _usable(runs, family, fold)]
    if not parts:
        parts = list(folds(runs, family, "known", seed=seed))
    held_out = []
    for fold in parts:
        train, test = runs.take(fold.train), runs.take(fold.test)
        members = Own.fit(train.take(train.family == family), probes=probes, seed=seed)
        shared = Shared.fit(train, start=start, seed=seed)
        held_out.append((members.spreads(test) + shared.spreads(test), test))
    pool = learn_pool([(s, test.T_conv) for s, test in held_out], rows_alike=shift == "known")
    predicted = np.concatenate([bounded_epochs(test, s, pool) for s, test in held_out])
    constant = np.concatenate([bounded_epochs(test, s[:1], np.ones(1)) for s, test in held_out])
    truth = np.concatenate([test.T_conv for _, test in held_out])
    low, high = conformal_offsets(np.log(truth / predicted), COVERAGE)
    return Calibration(
        tuple(pool.tolist()),
        low,
        high,
        float(np.abs(predicted / truth - 1).mean()),
        float(np.abs(constant / truth - 1).mean()),
        len(parts),
    )


def chosen_probes(runs: Runs, *, seed: int = 0) -> tuple[str, ...]:
    """The probes whose column lowers the error on held-out rows by two standard errors or more."""
    family = str(runs.family[0])
    plain = forest_errors(runs, family, "known", seed=seed)
    kept = []
    for probe in PROBES:
        if np.isnan(getattr(runs, probe)).any():
            continue
        gain = plain - forest_errors(runs, family, "known", probes=(probe,), seed=seed)
        if gain.mean() > PROBE_ERRORS * gain.std(ddof=1) / np.sqrt(gain.size):
            kept.append(probe)
    return tuple(kept)


def forest_errors(
    runs: Runs, family: str, shift: Shift, *, probes: tuple[str, ...] = (), seed: int = 0
) -> NDArray[np.float64]:
    """Relative errors of the forest of one family alone, on held-out runs, fold by fold."""
    errors = []
    for fold in folds(runs, family, shift, seed=seed):
        train, test = runs.take(fold.train), runs.take(fold.test)
        own = train.take(train.family == family)
        member = ForestMember.fit(own, sees_dataset=True, probes=probes, seed=seed)
        found = pooled_epochs([member.spread(test)], np.ones(1))
        errors.append(np.abs(found / test.T_conv - 1))
    return np.concatenate(errors)


def _usable(runs: Runs, family: str, fold: Fold) -> bool:
    return int((runs.family[fold.train] == family).sum()) >= FEWEST_RUNS


def bounded_epochs(
    runs: Runs, spreads: Sequence[Spread], pool: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The pooled epochs, where patience and the limit of the run allow them."""
    return np.asarray(np.clip(pooled_epochs(spreads, pool), runs.fewest, runs.max_epochs))
