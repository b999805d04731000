"""Hold units out of the step-time tables, predict them, and say how far off that was."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.predict._conformal import Estimate
from paceline.predict.step._calibration import (
    Calibration,
    HeldOut,
    calibrate,
    chosen_trust,
    compute_estimates,
    held_out_predictions,
    step_estimates,
)
from paceline.predict.step._folds import CONFIGURATION, REGIMES, folds
from paceline.predict.step._loader import LoaderRates
from paceline.predict.step._probe import ProbeKernel, fit_probe_kernel
from paceline.predict.step._probe_trials import by_device_and_family, calibrate_probed, probe_trial
from paceline.predict.step._rows import StepRows
from paceline.predict.step._time import fit_step_models

FloatArray = NDArray[np.float64]

PROBE_DRAWS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Measured seconds beside their estimates, for rows of any order.

    Attributes:
        family: Of each row.
        measured: By "total" and "compute".
        estimates: By the same names.
    """

    family: NDArray[np.str_]
    measured: dict[str, FloatArray]
    estimates: dict[str, list[Estimate]]


def evaluate_regime(
    rows: StepRows, regime: str, *, num_probes: int = 0, seed: int = 0
) -> dict[str, object]:
    """Score one regime; every row is held out once (with probes: is scored in ten draws).

    Args:
        rows: Measured rows of all families, which are fitted together.
        regime: One of `REGIMES`.
        num_probes: Under "logo", measured rows per held-out device and family that the
            predictor may see; they are not scored.
        seed: Of folds and probes.

    Returns:
        What the command prints as JSON: errors in percent, by family.

    Raises:
        ValueError: If the regime is unknown, probes are asked for outside
            "logo", or there are too few units or rows.
    """
    if regime not in REGIMES:
        raise ValueError(f"regime must be one of {', '.join(REGIMES)}, got {regime!r}")
    if num_probes < 0 or (num_probes and regime != "logo"):
        raise ValueError(
            f"num_probes must not be negative and needs regime logo, got {num_probes} with {regime}"
        )
    shift = REGIMES[regime]
    fold = folds(rows, shift, seed=seed)
    parts = []
    for number in range(int(fold.max()) + 1):
        train, test = rows.take(fold != number), rows.take(fold == number)
        parts.append(_score_fold(train, test, shift, num_probes, seed))
    settings = {"regime": regime, "shift": shift, "probes": num_probes, "seed": seed}
    found = {"target": "step_time", **settings, **summary(join_scored(parts))}
    return found | {"repeats_mape": repeats_mape(rows)} if shift == "known" else found


def evaluate_transfer(train: StepRows, test: StepRows, *, seed: int = 0) -> dict[str, object]:
    """Fit on one set of rows, score another; each row under the widest shift that it is."""
    shifts = shifts_between(train, test)
    parts = [
        _score_fold(train, test.take(shifts == shift), str(shift), 0, seed)
        for shift in np.unique(shifts)
    ]
    counts = {str(shift): int((shifts == shift).sum()) for shift in np.unique(shifts)}
    return {"target": "step_time", "shifts": counts, "seed": seed, **summary(join_scored(parts))}


def shifts_between(train: StepRows, test: StepRows) -> NDArray[np.str_]:
    """What is new about each row of `test`: device, dataset, model, configuration or nothing."""
    kinds = np.full(len(test), "known", dtype="<U13")
    for shift, names in (
        ("configuration", CONFIGURATION),
        ("model", ("model",)),
        ("dataset", ("dataset",)),
        ("device", ("device",)),
    ):
        kinds[~np.isin(test.keys(*names), train.keys(*names))] = shift
    return kinds


def _score_fold(train: StepRows, test: StepRows, shift: str, num_probes: int, seed: int) -> Scored:
    held_out = held_out_predictions(train, shift, seed=seed + 1)
    trust = chosen_trust(held_out, shift)
    held_out = held_out.trusting(trust)
    models = fit_step_models(train, (shift,))
    predicted = HeldOut(test, models.logs(test.without_times(), shift)).trusting(trust)
    if not num_probes:
        return _scored(predicted, calibrate(held_out, shift))
    kernel = fit_probe_kernel(held_out, seed=seed)
    table = calibrate_probed(held_out, kernel, models.loader, num_probes)
    return _score_probed(predicted, kernel, models.loader, table, num_probes, seed)


def _score_probed(
    predicted: HeldOut,
    kernel: ProbeKernel,
    loader: LoaderRates,
    table: Calibration,
    num_probes: int,
    seed: int,
) -> Scored:
    parts = []
    for number, part in enumerate(by_device_and_family(predicted)):
        if len(part.rows) <= num_probes:
            raise ValueError(
                f"num_probes ({num_probes}) must be less than the rows of a device and family, "
                f"but one has {len(part.rows)}"
            )
        for draw in range(PROBE_DRAWS):
            rng = np.random.default_rng([seed, number, draw])
            parts.append(_scored(probe_trial(part, kernel, loader, num_probes, rng), table))
    return join_scored(parts)


def _scored(predicted: HeldOut, table: Calibration) -> Scored:
    rows, family = predicted.rows, predicted.rows["family"]
    return Scored(
        family=family,
        measured={"total": rows.total_s, "compute": rows["compute_s"]},
        estimates={
            "total": step_estimates(predicted.logs, family, table),
            "compute": compute_estimates(predicted.logs, family, table),
        },
    )


def join_scored(parts: list[Scored]) -> Scored:
    """All rows of all parts."""
    names = ("total", "compute")
    return Scored(
        family=np.concatenate([part.family for part in parts]),
        measured={name: np.concatenate([part.measured[name] for part in parts]) for name in names},
        estimates={name: [e for part in parts for e in part.estimates[name]] for name in names},
    )


def summary(scored: Scored) -> dict[str, object]:
    """Errors and coverage in percent, by family and quantity."""
    families = {
        str(name): {
            quantity: _errors(scored, scored.family == name, quantity)
            for quantity in ("total", "compute")
        }
        for name in np.unique(scored.family)
    }
    return {"num_scored": len(scored.family), "families": families}


def repeats_mape(rows: StepRows) -> dict[str, float]:
    """Error in percent, by family, of guessing a row by the median of its repeats.

    Repeats differ in the learning rate at most, so no predictor can be expected to do
    much better on random rows. Rows without a repeat are left out.
    """
    names = rows.keys(*CONFIGURATION, "optimizer")
    errors = np.full(len(rows), np.nan)
    for name in np.unique(names):
        at = np.flatnonzero(names == name)
        if len(at) > 1:
            total = rows.total_s[at]
            others = [np.median(np.delete(total, place)) for place in range(len(at))]
            errors[at] = 100 * np.abs(others / total - 1)
    repeated = np.isfinite(errors)
    return {
        str(family): round(float(errors[repeated & (rows["family"] == family)].mean()), 2)
        for family in np.unique(rows["family"][repeated])
    }


def _errors(scored: Scored, mask: NDArray[np.bool_], quantity: str) -> dict[str, float]:
    index = np.flatnonzero(mask)
    measured = scored.measured[quantity][index]
    chosen = [scored.estimates[quantity][row] for row in index]
    guess, low, high = np.array([(e.median, e.low, e.high) for e in chosen]).T
    errors = 100 * np.abs(guess / measured - 1)
    inside = (low <= measured) & (measured <= high)
    return {
        "num_rows": len(index),
        "mape": round(float(errors.mean()), 2),
        "median_ape": round(float(np.median(errors)), 2),
        "coverage": round(100 * float(inside.mean()), 1),
        "half_width_factor": round(float(np.exp(np.median(np.log(high / low)) / 2)), 3),
    }
