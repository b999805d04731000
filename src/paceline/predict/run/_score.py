"""What a fitted predictor says about tables that it was not fitted on, beside what they hold."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from paceline.predict._conformal import Estimate
from paceline.predict.run._fitted import convergence_file, epochs_predictor, read_runs
from paceline.predict.step import load_step_predictor, read_step_tables, save_step_predictor

Scores = dict[str, dict[str, float]]


def score_predictor(path: Path, tables: Path) -> dict[str, Scores]:
    """Score a predictor file on tables, and write the scores into its provenance.

    Args:
        path: File that `fit_predictor` wrote; epochs are scored if both sides have them.
        tables: As for `fit_predictor`.

    Returns:
        By "compute", "step" and "epochs", then by family: errors and coverage in percent.

    Raises:
        ValueError: If a table is missing, lacks columns or holds bad values.
        StateMismatchError: If the file is damaged or was changed.
    """
    predictor, rows = load_step_predictor(path), read_step_tables(tables)
    found = predictor.predict(rows.without_times())
    scores = {
        "compute": _by_family(rows["family"], rows["compute_s"], [one.compute for one in found]),
        "step": _by_family(rows["family"], rows.total_s, [one.step for one in found]),
    }
    runs = sorted((tables / "convergence").glob("*.csv"))
    if runs and convergence_file(path).is_file():
        test = read_runs(runs)
        epochs = epochs_predictor(convergence_file(path)).predict(test)
        scores["epochs"] = _by_family(test.family, test.T_conv, epochs)
    provenance = {**predictor.provenance, f"scored on {tables.name}": json.dumps(scores)}
    save_step_predictor(replace(predictor, provenance=provenance), path)
    return scores


def _by_family(family: ArrayLike, measured: ArrayLike, found: list[Estimate]) -> Scores:
    names, truth = np.asarray(family), np.asarray(measured, dtype=np.float64)
    guess, low, high = np.array([(one.median, one.low, one.high) for one in found]).T
    error, inside = np.abs(guess / truth - 1), (low <= truth) & (truth <= high)
    return {
        str(name): {
            "num_rows": int((names == name).sum()),
            "mape": _percent(error[names == name].mean()),
            "median_error": _percent(np.median(error[names == name])),
            "inside": _percent(inside[names == name].mean()),
        }
        for name in np.unique(names)
    }


def _percent(share: Any) -> float:
    return round(100 * float(share), 1)
