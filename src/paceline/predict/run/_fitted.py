"""Fit predictors to tables, keep them in files, and find them again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from paceline._files import read_csv, read_json, shown
from paceline.errors import StateMismatchError
from paceline.predict.epochs import ConvergencePredictor, Runs, fit_convergence
from paceline.predict.step import (
    NUM_PROBES,
    SHIFTS,
    Execution,
    LoaderProbe,
    StepEstimate,
    StepRows,
    digest_of,
    fit_step_predictor,
    load_step_predictor,
    read_step_tables,
    save_step_predictor,
    step_row,
    units,
)
from paceline.predict.work import Device, Workload

FORMAT = "paceline convergence predictor"
_steps_predictor = cache(load_step_predictor)


def fit_predictor(tables: Path, output: Path, *, source: str = "") -> dict[str, Any]:
    """Fit to tables and write the predictor: what `paceline fit` does.

    Args:
        tables: Folder of step-time tables, or one with folders `step_time` and, if there is
            one, `convergence`.
        output: JSON file for steps; epochs go beside it, as `NAME_convergence.json`.
        source: Where the tables come from.

    Returns:
        What was written, for people: rows, files, bytes.

    Raises:
        ValueError: If a table is missing, lacks columns or holds bad values.
        MissingExtraError: If LightGBM is not installed.
    """
    rows = read_step_tables(tables)
    provenance = _provenance(tables, source, len(rows))
    predictor = fit_step_predictor(rows, shifts=_fittable(rows), provenance=provenance)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_step_predictor(predictor, output)
    written = {"steps": str(output), "num_steps": len(rows), "bytes": output.stat().st_size}
    runs = sorted((tables / "convergence").glob("*.csv"))
    if not runs:
        return written
    beside = convergence_file(output)
    num_runs = _fit_epochs(runs, beside, provenance)
    size = {"epochs": str(beside), "num_runs": num_runs, "epochs_bytes": beside.stat().st_size}
    return written | size


def convergence_file(path: Path) -> Path:
    """Return where the epochs' predictor is, beside the one of steps."""
    return path.with_name(f"{path.stem}_convergence{path.suffix}")


def existing(path: Path | None) -> Path:
    """Return `path`, or that of the shipped predictor; it must be there."""
    shipped = files("paceline.predict").joinpath("predictor.json")
    found = Path(str(shipped)) if path is None else path
    if not found.is_file():
        raise ValueError(f"there is no predictor file {found}; make one with: paceline fit TABLES")
    return found


def estimate_step(
    workload: Workload,
    device: Device,
    *,
    path: Path | None = None,
    execution: Execution | None = None,
    loader: LoaderProbe | None = None,
) -> StepEstimate:
    """Return what the fitted predictor says about a step on a device.

    Args:
        workload: From a trace or the catalogue.
        device: Where it runs.
        path: File that `fit_predictor` wrote; unset for the one that is shipped.
        execution: How the step is run, where that is not as in the tables.
        loader: What `probe_loader` measured of the data; unset for the predictor's guess.

    Raises:
        ValueError: If there is no predictor file.
        StateMismatchError: If the file is damaged or was changed.
        MissingExtraError: If LightGBM is not installed.
    """
    (found,) = _steps_predictor(existing(path)).predict(
        step_row(workload, device), execution=execution, loader=loader
    )
    return found


@cache
def epochs_predictor(path: Path) -> ConvergencePredictor:
    """Return the predictor of epochs that a file holds, read once."""
    try:
        document = read_json(path)
        content, digest = document["content"], document["sha256"]
        if document["format"] != FORMAT:
            raise KeyError("format")
    except (ValueError, LookupError, TypeError) as error:
        raise StateMismatchError(
            f"{path.name} holds no predictor of epochs ({shown(error)}); fit tables that have a "
            "folder convergence"
        ) from None
    if digest_of(content) != digest:
        raise StateMismatchError(
            f"the content of {path.name} does not match its sha256: it was changed after it was "
            "written; fit it again or take the original"
        )
    try:
        return ConvergencePredictor.from_dict(content["predictor"])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise StateMismatchError(
            f"{path.name} was written by another program ({shown(error)}); fit it again"
        ) from error


def read_runs(paths: Sequence[Path]) -> Runs:
    """Read tables of runs until convergence.

    Raises:
        ValueError: If a table is missing, lacks columns or holds bad values.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows += read_csv(path)[1]
    return Runs.from_rows([{k: v for k, v in row.items() if v != ""} for row in rows])


def _fittable(rows: StepRows) -> tuple[str, ...]:
    """Return the kinds of shift that the rows can calibrate.

    Two units each at least; for a new device also more rows of one device and family than
    the most probes that intervals are made for.
    """
    kinds = tuple(shift for shift in SHIFTS if len(set(units(rows, shift))) > 1)
    most = np.unique(rows.keys("device", "family"), return_counts=True)[1].max()
    return kinds if most > max(NUM_PROBES) else tuple(k for k in kinds if k != "device")


def _provenance(tables: Path, source: str, num_rows: int) -> dict[str, str]:
    digest = hashlib.sha256()
    for path in sorted(tables.rglob("*.csv")):
        digest.update(path.name.encode() + path.read_bytes())
    return {
        "source": source,
        "tables_sha256": digest.hexdigest(),
        "num_rows": str(num_rows),
        "command": "paceline fit",
    }


def _fit_epochs(paths: Sequence[Path], output: Path, provenance: Mapping[str, str]) -> int:
    runs = read_runs(paths)
    content = {"provenance": dict(provenance), "predictor": fit_convergence(runs).to_dict()}
    document = {"format": FORMAT, "sha256": digest_of(content), "content": content}
    output.write_text(json.dumps(document, sort_keys=True), encoding="utf-8")
    return len(runs)
