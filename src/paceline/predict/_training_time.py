"""Seconds per epoch and epochs of a training run, named as in CHRONOS's own interface."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np

from paceline.errors import StateMismatchError
from paceline.predict._catalogue import (
    DatasetFacts,
    Datasets,
    Devices,
    Models,
    Optimizers,
    catalogue_workload,
)
from paceline.predict._conformal import Estimate
from paceline.predict._convergence import ConvergencePredictor, fit_convergence
from paceline.predict._convergence_rows import Runs
from paceline.predict._devices import Device
from paceline.predict._devices import device as find_device
from paceline.predict._folds import units
from paceline.predict._predictor_file import load_step_predictor, save_step_predictor
from paceline.predict._probe_trials import NUM_PROBES
from paceline.predict._run_estimate import StepTimes
from paceline.predict._step_predictor import StepPredictor, fit_step_predictor
from paceline.predict._step_rows import DEVICE, WORK, StepRows
from paceline.predict._step_time import SHIFTS
from paceline.predict._tables import read_step_tables
from paceline.predict._workload import Workload

# How the tables' runs were stopped, by family; see `predict_number_of_epochs`.
STOPPING = {"CNN": (7, 5e-4, 200), "MLP": (5, 1e-4, 250), "Transformer": (5, 1e-4, 120)}
FORMAT = "paceline convergence predictor"
NEW = {
    "known": "nothing",
    "configuration": "the configuration",
    "dataset": "the dataset",
    "model": "the model",
    "device": "the device",
}


class EstimatedFloat(float):
    """A float, the median, that also knows its interval.

    Attributes:
        estimate: Median, low and high.

    Examples:
        >>> seconds = EstimatedFloat.of(Estimate(115.0, 100.0, 130.0))
        >>> seconds / 60 < 2, seconds.estimate.high
        (True, 130.0)
    """

    estimate: Estimate

    @classmethod
    def of(cls, estimate: Estimate) -> Self:
        """Return the median of `estimate`, which keeps the rest."""
        made = cls(estimate.median)
        made.estimate = estimate
        return made


class TrainingTimePredictor:
    """Predicts seconds per epoch and the number of epochs of single-device training.

    Args:
        model: Of the catalogue, or a `Workload`: `paceline.torch.trace_workload` makes one of
            any `torch.nn.Module`.
        dataset: Of the catalogue, or the number of training examples.
        optimizer: One of five, or a class name in `torch.optim`.
        batch_size: Examples per step.
        learning_rate: Only the number of epochs depends on it.
        precision: 16 for mixed precision, or 32.
        gpu: One of ten, or a `Device`, or the name of a row of `devices.csv`.
        predictor: File that `paceline fit` wrote; unset for the one that is shipped.

    Raises:
        ValueError: If a value is out of range, the device is unknown, or the model does not
            go with the dataset.

    References:
        CHRONOS, https://github.com/pacslab/chronos, whose names these are. There a prediction
        is a number; here it is a float that carries its interval, see `EstimatedFloat`.
    """

    def __init__(
        self,
        model: Models | Workload,
        dataset: Datasets | int,
        optimizer: Optimizers | str,
        batch_size: int,
        learning_rate: float = 1e-3,
        precision: int = 32,
        gpu: Devices | Device | str = Devices.A100,
        *,
        predictor: Path | None = None,
    ) -> None:
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {learning_rate}")
        self.workload = _workload(model, dataset, optimizer, batch_size, precision)
        self.device = _device(gpu)
        self.learning_rate = learning_rate
        self._path = predictor

    def predict_step_time(self) -> EstimatedFloat:
        """Return seconds per step, waiting for the loader included."""
        times = step_times(self.workload, self.device, path=self._path)
        return EstimatedFloat.of(times.step)

    def predict_epoch_time(self) -> EstimatedFloat:
        """Return seconds per epoch: steps per epoch, the last one short, times the step.

        Raises:
            ValueError: If the size of the dataset is not known.
        """
        steps = self.workload.steps_per_epoch
        if not steps:
            raise ValueError("dataset must have examples; pass their number as dataset")
        return EstimatedFloat.of(self.predict_step_time().estimate.scaled(steps))

    def predict_number_of_epochs(self) -> EstimatedFloat:
        """Return epochs until the validation loss stops improving.

        The rule is that of the tables: stop after 7 epochs (CNN) or 5 (others) without an
        improvement of 0.0005 or 0.0001.

        Raises:
            ValueError: If the family was not fitted: it is known for CNN, MLP and Transformer.
        """
        work = self.workload
        if work.family not in STOPPING:
            raise ValueError(
                f"epochs are predicted for {', '.join(STOPPING)}, not for {work.family}"
            )
        patience, min_delta, max_epochs = STOPPING[work.family]
        row: dict[str, Any] = {
            "family": work.family,
            "model": work.name,
            "dataset": work.dataset or "unknown",
            "dataset_size": work.dataset_size,
            "optimizer": work.optimizer,
            "learning_rate": self.learning_rate,
            "batch_size": work.batch_size,
            "param_count": work.num_params,
            "patience_P": patience,
            "min_delta": min_delta,
            "max_epochs": max_epochs,
        }
        predictor = _epochs_predictor(convergence_file(_existing(self._path)))
        (epochs,) = predictor.predict([row])
        return EstimatedFloat.of(epochs)


def step_times(workload: Workload, device: Device, *, path: Path | None = None) -> StepTimes:
    """Return what the fitted predictor says about a step on a device.

    Raises:
        ValueError: If there is no predictor file.
        StateMismatchError: If the file is damaged or was changed.
        MissingExtraError: If LightGBM is not installed.
    """
    (found,) = _step_predictor(_existing(path)).predict(step_row(workload, device))
    return StepTimes(compute=found.compute, total=found.step, new=NEW[found.shift])


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
    """Return where the epochs' predictor is, beside the one of steps.

    Examples:
        >>> convergence_file(Path("mine.json")).name
        'mine_convergence.json'
    """
    return path.with_name(f"{path.stem}_convergence{path.suffix}")


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
    rows: list[dict[str, Any]] = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    runs = Runs.from_rows([{k: v for k, v in row.items() if v != ""} for row in rows])
    content = {"provenance": dict(provenance), "predictor": fit_convergence(runs).to_dict()}
    document = {"format": FORMAT, "sha256": _digest(content), "content": content}
    output.write_text(json.dumps(document, sort_keys=True), encoding="utf-8")
    return len(runs)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _existing(path: Path | None) -> Path:
    found = (
        Path(str(files("paceline.predict").joinpath("predictor.json"))) if path is None else path
    )
    if not found.is_file():
        raise ValueError(f"there is no predictor file {found}; make one with: paceline fit TABLES")
    return found


@cache
def _step_predictor(path: Path) -> StepPredictor:
    return load_step_predictor(path)


@cache
def _epochs_predictor(path: Path) -> ConvergencePredictor:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        content, digest = document["content"], document["sha256"]
        if document["format"] != FORMAT:
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateMismatchError(
            f"{path.name} holds no predictor of epochs ({error!r}); fit tables that have a folder "
            "convergence"
        ) from None
    if _digest(content) != digest:
        raise StateMismatchError(
            f"the content of {path.name} does not match its sha256: it was changed after it was "
            "written; fit it again or take the original"
        )
    return ConvergencePredictor.from_dict(content["predictor"])


def step_row(workload: Workload, device: Device, *, device_name: str | None = None) -> StepRows:
    """Return a workload on a device as the one row that a step predictor takes.

    Args:
        workload: From a trace or the catalogue.
        device: Where it runs.
        device_name: What the tables call the device; unset for its own name.

    Examples:
        >>> work = catalogue_workload(Models.ResNet50, Datasets.Cifar10, batch_size=32)
        >>> row = step_row(work, Devices.T4.row)
        >>> row["train_flops_per_example"].tolist(), row["num_kernels"].tolist()
        ([500588544.0], [156.0])
    """
    conv_fraction = 1.0 if workload.family == "CNN" else _conv_fraction(workload)
    labels = {
        "family": workload.family,
        "dataset": workload.dataset,
        "model": workload.name,
        "variant": _variant(workload),
        "optimizer": workload.optimizer,
        "device": device_name or device.name,
    }
    numbers = {
        **{name: getattr(workload, name) for name in WORK if name != "conv_fraction"},
        **{name: getattr(device, name) for name in DEVICE},
        "conv_fraction": conv_fraction,
        "num_kernels": max(workload.num_kernels, 1),
    }
    return StepRows(
        {name: np.array([value]) for name, value in labels.items()}
        | {name: np.array([float(value)]) for name, value in numbers.items()}
    )


def _variant(workload: Workload) -> str:
    """Return the name under which the tables keep widths of one model apart."""
    return f"{workload.name}-{workload.width}" if workload.family == "MLP" else workload.name


def _conv_fraction(workload: Workload) -> float:
    by_class = workload.flops_by_class
    conv = by_class.get("conv", 0.0) + by_class.get("depthwise", 0.0)
    return conv / (sum(by_class.values()) or 1.0)


def _workload(
    model: Models | Workload,
    dataset: Datasets | int,
    optimizer: Optimizers | str,
    batch_size: int,
    precision: int,
) -> Workload:
    name = optimizer.value if isinstance(optimizer, Optimizers) else optimizer
    if isinstance(model, Workload):
        facts = dataset.value if isinstance(dataset, Datasets) else DatasetFacts("", dataset, 0)
        return replace(
            model.with_batch_size(batch_size),
            precision_bits=precision,
            optimizer=name,
            dataset=facts.name,
            dataset_size=facts.num_examples,
        )
    if not isinstance(dataset, Datasets):
        raise ValueError(
            f"{model.name} needs a dataset of the catalogue, got {dataset!r}; for another number "
            "of examples pass catalogue_workload(...) as the model"
        )
    return catalogue_workload(
        model, dataset, batch_size=batch_size, precision=precision, optimizer=name
    )


def _device(gpu: Devices | Device | str) -> Device:
    if isinstance(gpu, Devices):
        return gpu.row
    return gpu if isinstance(gpu, Device) else find_device(gpu)
