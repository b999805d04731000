"""How well epochs are predicted: every figure from runs that the fit never saw."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.predict import ConvergencePredictor
from paceline.predict.epochs import (
    MEMBERS,
    PROBES,
    Fold,
    Runs,
    Shift,
    chosen_probes,
    fit_convergence,
    folds,
    forest_errors,
    pooled_epochs,
)

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
    by_seed = [100 * float(rows[:, 0].mean()) for rows in per_seed]
    spread = [_rounded(min(by_seed)), _rounded(max(by_seed))]
    found = _scores(np.concatenate(per_seed)) | {"mape_spread": spread}
    return found | {"num_rows": int(per_seed[0].shape[0])}


def transfer_convergence(train: Path, test: Path, *, seed: int = 0) -> dict[str, Any]:
    """Fit on the runs of one folder and score those of another, by family.

    What is new about a run, its model, its dataset, both or neither, is found by name.

    Raises:
        ValueError: If a table is missing or bad, or a family was not fitted.
    """
    fitted = fit_convergence(read_runs(train)[0], seed=seed)
    runs, _ = read_runs(test)
    families = {
        family: _scores(_outcomes(fitted, runs.take(runs.family == family), family, None))
        for family in np.unique(runs.family).tolist()
    }
    kinds, counts = np.unique(fitted.shifts(runs), return_counts=True)
    shifts = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
    found = {family: {"transfer": scores} for family, scores in families.items()}
    return {"target": "convergence", "seed": seed, "shifts": shifts, "families": found}


def _scores(outcomes: NDArray[np.float64]) -> dict[str, Any]:
    error, inside, constant, middle = 100 * outcomes.T
    return {
        "mape": _rounded(error.mean()),
        "median_ape": _rounded(np.median(error)),
        "coverage": _rounded(inside.mean()),
        "constant_mape": _rounded(constant.mean()),
        "constant_median_mape": _rounded(middle.mean()),
        "beats_constant": bool(error.mean() < min(constant.mean(), middle.mean())),
        "num_rows": len(error),
    }


def _fold_outcomes(
    runs: Runs, family: str, shift: Shift, fold: Fold, seed: int
) -> NDArray[np.float64]:
    train, test = runs.take(fold.train), runs.take(fold.test)
    try:
        fitted = fit_convergence(train, families=[family], shifts=[shift], seed=seed)
    except ValueError as error:
        raise ValueError(f"without {fold.unit}: {error}") from error
    return _outcomes(fitted, test, family, shift)


def _outcomes(
    fitted: ConvergencePredictor, test: Runs, family: str, shift: Shift | None
) -> NDArray[np.float64]:
    """Per row of a family: relative error, inside or not, and the errors of both constants."""
    estimates = fitted.predict(test, shift=shift)
    point, low, high = np.array([(e.median, e.low, e.high) for e in estimates]).T
    baseline = fitted.own[family].constant
    constant = pooled_epochs([baseline.spread(test)], np.ones(1))
    middle = np.array([np.median(baseline.of(name)) for name in test.optimizer.tolist()])
    truth = test.T_conv
    inside = (low * (1 - 1e-9) <= truth) & (truth <= high * (1 + 1e-9))
    first, *baselines = (np.abs(guess / truth - 1) for guess in (point, constant, middle))
    return np.stack([first, inside, *baselines], axis=1)


def _ablation(runs: Runs, column: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """What a probe does for the forest of a family, in MAPE: without it, with it, kept or not."""
    probed = replace(runs, **{PROBES[0]: column, PROBES[1]: np.full(len(runs), np.nan)})
    found: dict[str, Any] = {}
    for family in np.unique(runs.family).tolist():
        errors = {
            regime: {
                name: _rounded(
                    100 * forest_errors(probed, family, shift, probes=kept, seed=seed).mean()
                )
                for name, kept in (("without", ()), ("with", PROBES[:1]))
            }
            for regime, shift in REGIMES.items()
        }
        is_kept = bool(chosen_probes(probed.take(runs.family == family), seed=seed))
        found[family] = {**errors, "kept": is_kept}
    return found


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
