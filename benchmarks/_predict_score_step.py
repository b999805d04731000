"""Hold units out of the step-time tables, predict them, and say how far off that was."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.predict import Estimate, StepPredictor, fit_step_predictor
from paceline.predict.step import LoaderProbe, StepRows, fit_loader_rates, folds, units

FloatArray = NDArray[np.float64]

REGIMES = {
    "rand": "known",
    "grp": "configuration",
    "lodo": "dataset",
    "lomo": "model",
    "logo": "device",
    "both": "device+model",
}
"""Names of the evaluation regimes, and the shift that each of them measures."""

WIDER_AND_WIDER = ("configuration", "model", "dataset", "device", "device+model")
PROBE_DRAWS = 10
NUM_LOADER_ROWS = 10
NUM_JOINT_FOLDS = 4


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
    rows: StepRows,
    regime: str,
    *,
    num_probes: int = 0,
    loader_probe: bool = False,
    seed: int = 0,
) -> dict[str, object]:
    """Score one regime; every row is held out once (with probes: is scored in ten draws).

    Under "both", a quarter of the rows: each device and each model is held out once.

    Args:
        rows: Measured rows of all families, which are fitted together.
        regime: One of `REGIMES`.
        num_probes: Under "logo", measured rows per held-out device and family that the
            predictor may see; they are not scored.
        loader_probe: Under "lodo", stand in for a timed loader: per host and dataset, the seconds
            per example that ten rows waited for, *emulated*; they are not scored.
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
    if loader_probe and regime != "lodo":
        raise ValueError(f"loader_probe needs regime lodo, got {regime}")
    shift = REGIMES[regime]
    parts: list[Scored] = []
    for train, test in _outer_folds(rows, shift, seed):
        parts += _score_fold(train, test, shift, num_probes, seed, loader_probe=loader_probe)
    settings = {"regime": regime, "shift": shift, "probes": num_probes, "seed": seed}
    settings["loader_probe"] = loader_probe
    found = {"target": "step_time", **settings, **summary(join_scored(parts))}
    return found | {"repeats_mape": repeats_mape(rows)} if shift == "known" else found


def evaluate_transfer(train: StepRows, test: StepRows, *, seed: int = 0) -> dict[str, object]:
    """Fit on one set of rows, score another; each row under the widest shift that it is."""
    shifts = shifts_between(train, test)
    parts: list[Scored] = []
    counts = {}
    for shift in np.unique(shifts).tolist():
        rows = test.take(shifts == shift)
        counts[shift] = len(rows)
        parts += _score_fold(train, rows, shift, 0, seed)
    return {"target": "step_time", "shifts": counts, "seed": seed, **summary(join_scored(parts))}


def shifts_between(train: StepRows, test: StepRows) -> NDArray[np.str_]:
    """What is new about each row of `test`: device, dataset, model, configuration or nothing."""
    kinds = np.full(len(test), "known", dtype="<U13")
    for shift in WIDER_AND_WIDER:
        new = [~np.isin(units(test, name), units(train, name)) for name in shift.split("+")]
        kinds[np.all(new, axis=0)] = shift
    return kinds


def _outer_folds(rows: StepRows, shift: str, seed: int) -> Iterator[tuple[StepRows, StepRows]]:
    """Rows to fit on and rows to score; of what is new on two counts, neither is fitted on."""
    together = shift.split("+")
    num_folds = NUM_JOINT_FOLDS if len(together) > 1 else None
    fold = np.stack([folds(rows, name, seed=seed, num_folds=num_folds) for name in together])
    for number in range(int(fold.max()) + 1):
        out = fold == number
        yield rows.take(~out.any(axis=0)), rows.take(out.all(axis=0))


def _with_timed_loaders(
    predictor: StepPredictor, test: StepRows, shift: str, seed: int
) -> Iterator[Scored]:
    names = test.keys("device", "family", "dataset")
    for number, name in enumerate(np.unique(names)):
        part = test.take(names == name)
        order = np.random.default_rng([seed, number]).permutation(len(part))
        (rate,) = fit_loader_rates(part.take(order[:NUM_LOADER_ROWS])).seconds.values()
        probe = LoaderProbe(seconds_per_example=rate, num_workers=1, num_cores=1)
        yield _scored(predictor, part.take(order[NUM_LOADER_ROWS:]), shift, probe)


def _score_fold(
    train: StepRows,
    test: StepRows,
    shift: str,
    num_probes: int,
    seed: int,
    *,
    loader_probe: bool = False,
) -> Iterator[Scored]:
    predictor = fit_step_predictor(
        train, shifts=(shift,), probe_counts=(num_probes,) if num_probes else (), seed=seed
    )
    if loader_probe:
        yield from _with_timed_loaders(predictor, test, shift, seed)
        return
    if not num_probes:
        yield _scored(predictor, test, shift)
        return
    names = test.keys("device", "family")
    for number, name in enumerate(np.unique(names)):
        part = test.take(names == name)
        if len(part) <= num_probes:
            raise ValueError(
                f"num_probes ({num_probes}) must be less than the rows of a device and family, "
                f"but {name} has {len(part)}"
            )
        for draw in range(PROBE_DRAWS):
            order = np.random.default_rng([seed, number, draw]).permutation(len(part))
            probed = predictor.with_probes(part.take(order[:num_probes]))
            yield _scored(probed, part.take(order[num_probes:]), shift)


def _scored(
    predictor: StepPredictor, rows: StepRows, shift: str, loader: LoaderProbe | None = None
) -> Scored:
    found = predictor.predict(rows.without_times(), shift=shift, loader=loader)
    return Scored(
        family=rows["family"],
        measured={"total": rows.total_s, "compute": rows["compute_s"]},
        estimates={"total": [e.step for e in found], "compute": [e.compute for e in found]},
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
    names = np.char.add(units(rows, "configuration"), rows.keys("optimizer"))
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
