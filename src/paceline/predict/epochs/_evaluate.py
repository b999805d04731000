"""How well epochs are predicted: every figure from runs that the fit never saw."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.predict.epochs._calibration import FEWEST_RUNS, calibrate_families, chosen_probes
from paceline.predict.epochs._members import MEMBERS, ForestMember, Own, Shared
from paceline.predict.epochs._pool import pooled_epochs
from paceline.predict.epochs._predictor import ConvergencePredictor, fit_convergence
from paceline.predict.epochs._rows import PROBES, Fold, Runs, Shift, folds

REGIMES: dict[str, Shift] = {"cv5": "known", "lodo": "dataset", "lomo": "model"}
NUM_SEEDS = 3
TRACE = "ntk_trace_proxy_log10"


def read_runs(folder: Path) -> tuple[Runs, dict[str, NDArray[np.float64]]]:
    """Read every `*.csv` of runs under `folder`, in its `convergence` folder if it has one.

    Args:
        folder: Where the tables are.

    Returns:
        The runs, and the probe columns by name where every row has them.

    Raises:
        ValueError: If there is no table, or one lacks a column.
    """
    inner = folder / "convergence"
    files = sorted((inner if inner.is_dir() else folder).glob("*.csv"))
    if not files:
        raise ValueError(f"no *.csv under {folder}; pass the folder that holds the tables of runs")
    rows: list[dict[str, str]] = []
    for file in files:
        with file.open(newline="") as lines:
            rows += csv.DictReader(lines)
    if not rows:
        raise ValueError(f"the tables under {folder} have no rows")
    names = [name for name in (*PROBES, TRACE) if all(row.get(name) for row in rows)]
    return Runs.from_rows(rows), {n: np.array([float(row[n]) for row in rows]) for n in names}


def evaluate_convergence(folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Score the predictor on held-out runs: random rows, new datasets, new models.

    Pool weights, intervals and probes are learned inside each training part. The
    baseline is what a constant per optimizer does on the same rows: the one with
    the least relative error on the training part, and the median.

    Args:
        folder: With tables of runs; see `read_runs`.
        seed: Of the random parts and thresholds.

    Returns:
        Per family and regime, in percent: `mape`, `median_ape`, `coverage` of the
        90 % intervals, `constant_mape`, `constant_median_mape`, `mape_spread` (lowest
        and highest over the seeds of "cv5"), `beats_constant`, `num_rows`; and the ablation
        of every probe.

    Raises:
        ValueError: If the tables are missing or bad.
    """
    runs, probes = read_runs(folder)
    families = np.unique(runs.family).tolist()
    scores = {
        family: {
            regime: score_regime(runs, family, shift, seed=seed)
            for regime, shift in REGIMES.items()
        }
        for family in families
    }
    return {
        "target": "convergence",
        "seed": seed,
        "num_seeds": NUM_SEEDS,
        "families": scores,
        "ablation": {name: _ablation(runs, column, seed) for name, column in probes.items()},
        "members": list(MEMBERS),
    }


def evaluate_convergence_transfer(train: Path, test: Path, *, seed: int = 0) -> dict[str, Any]:
    """Fit on the tables of one folder and score on those of another.

    Args:
        train: Tables to fit on.
        test: Tables to predict.
        seed: Of the random parts and thresholds.

    Returns:
        Per family of `test`, the scores of `evaluate_convergence` without baseline.
    """
    predictor = fit_convergence(read_runs(train)[0], seed=seed)
    runs = read_runs(test)[0]
    found = {
        family: _score(runs.take(runs.family == family), predictor)
        for family in np.unique(runs.family).tolist()
    }
    return {"target": "convergence", "seed": seed, "families": found}


def score_regime(runs: Runs, family: str, shift: Shift, *, seed: int = 0) -> dict[str, Any]:
    """Score one family under one kind of shift; see `evaluate_convergence`."""
    seeds = range(seed, seed + NUM_SEEDS) if shift == "known" else [seed]
    per_seed = [
        np.concatenate(
            [
                _fold_outcomes(runs, family, shift, fold, number)
                for fold in folds(runs, family, shift, seed=number)
            ]
        )
        for number in seeds
    ]
    error, inside, constant, middle = 100 * np.concatenate(per_seed).T
    by_seed = [100 * float(rows[:, 0].mean()) for rows in per_seed]
    return {
        "mape": _rounded(error.mean()),
        "median_ape": _rounded(np.median(error)),
        "coverage": _rounded(inside.mean()),
        "constant_mape": _rounded(constant.mean()),
        "constant_median_mape": _rounded(middle.mean()),
        "mape_spread": [_rounded(min(by_seed)), _rounded(max(by_seed))],
        "beats_constant": bool(error.mean() < min(constant.mean(), middle.mean())),
        "num_rows": int(per_seed[0].shape[0]),
    }


def _fold_outcomes(
    runs: Runs, family: str, shift: Shift, fold: Fold, seed: int
) -> NDArray[np.float64]:
    """Per held-out row: relative error, inside or not, and the errors of both constants."""
    train, test = runs.take(fold.train), runs.take(fold.test)
    of_family = train.take(train.family == family)
    if len(of_family) < FEWEST_RUNS:
        raise ValueError(f"without {fold.unit} only {len(of_family)} runs of {family} are left")
    probes = {family: chosen_probes(of_family, seed=seed)}
    shared = Shared.fit(train, seed=seed)
    if shift != "known":
        probes = {name: probes[family] if name == family else () for name in _families(train)}
    seen = calibrate_families(
        train, shift, start=shared.effects.variances, probes=probes, seed=seed
    )[family]
    own = Own.fit(of_family, probes=probes[family], seed=seed)
    fitted = ConvergencePredictor(
        shared, {family: own}, {family: {shift: seen}}, {family: probes[family]}, len(train)
    )
    estimates = fitted.predict(test, shift=shift)
    point, low, high = np.array([(e.median, e.low, e.high) for e in estimates]).T
    constant = pooled_epochs([own.constant.spread(test)], np.ones(1))
    middle = np.array([np.median(own.constant.of(name)) for name in test.optimizer.tolist()])
    truth = test.T_conv
    inside = (low * (1 - 1e-9) <= truth) & (truth <= high * (1 + 1e-9))
    errors = (np.abs(guess / truth - 1) for guess in (point, constant, middle))
    first, *baselines = errors
    return np.stack([first, inside, *baselines], axis=1)


def _families(runs: Runs) -> list[str]:
    """Those with enough runs to hold some out."""
    names, counts = np.unique(runs.family, return_counts=True)
    return [str(name) for name in names[counts >= FEWEST_RUNS]]


def _score(runs: Runs, predictor: ConvergencePredictor) -> dict[str, Any]:
    found = np.array([(e.median, e.low, e.high) for e in predictor.predict(runs)])
    error = 100 * np.abs(found[:, 0] / runs.T_conv - 1)
    inside = (found[:, 1] <= runs.T_conv) & (runs.T_conv <= found[:, 2])
    return {
        "mape": _rounded(error.mean()),
        "median_ape": _rounded(np.median(error)),
        "coverage": _rounded(100 * inside.mean()),
        "num_rows": len(runs),
    }


def _ablation(runs: Runs, column: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """What a probe does for the forest of a family, in MAPE: without it, with it, kept or not."""
    probed = replace(runs, **{PROBES[0]: column, PROBES[1]: np.full(len(runs), np.nan)})
    found: dict[str, Any] = {}
    for family in np.unique(runs.family).tolist():
        kept = chosen_probes(probed.take(runs.family == family), seed=seed)
        errors = {
            regime: {
                name: _rounded(_forest_mape(probed, family, shift, probes, seed))
                for name, probes in (("without", ()), ("with", PROBES[:1]))
            }
            for regime, shift in REGIMES.items()
        }
        found[family] = {**errors, "kept": bool(kept)}
    return found


def _forest_mape(
    runs: Runs, family: str, shift: Shift, probes: tuple[str, ...], seed: int
) -> float:
    errors = []
    for fold in folds(runs, family, shift, seed=seed):
        train, test = runs.take(fold.train), runs.take(fold.test)
        own = train.take(train.family == family)
        member = ForestMember.fit(own, sees_dataset=True, probes=probes, seed=seed)
        found = pooled_epochs([member.spread(test)], np.ones(1))
        errors.append(np.abs(found / test.T_conv - 1))
    return 100 * float(np.concatenate(errors).mean())


def _rounded(value: Any) -> float:
    return round(float(value), 2)


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """One line per family and regime, for people."""
    return [
        f"{family:<12} {regime:<5} MAPE {s['mape']:5.1f} %  constant {s['constant_mape']:5.1f} %  "
        f"coverage {s['coverage']:5.1f} %"
        for family, regimes in result["families"].items()
        for regime, s in regimes.items()
    ]
