"""Seconds per epoch and epochs of a training run, named as in CHRONOS's own interface."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from paceline.predict._conformal import Estimate
from paceline.predict.run._fitted import (
    convergence_file,
    epochs_predictor,
    estimate_step,
    existing,
)
from paceline.predict.work import (
    DatasetFacts,
    Datasets,
    Device,
    Devices,
    Models,
    Optimizers,
    Workload,
    catalogue_workload,
)

# How the tables' runs were stopped, by family; see `predict_number_of_epochs`.
STOPPING = {"CNN": (7, 5e-4, 200), "MLP": (5, 1e-4, 250), "Transformer": (5, 1e-4, 120)}


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
        gpu: One of ten, or a `Device`, or a name for `Device.named`.
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
        *,
        optimizer: Optimizers | str,
        batch_size: int,
        learning_rate: float = 1e-3,
        precision: int = 32,
        gpu: Devices | Device | str = Devices.A100,
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
        found = estimate_step(self.workload, self.device, path=self._path)
        return EstimatedFloat.of(found.step)

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
        predictor = epochs_predictor(convergence_file(existing(self._path)))
        (epochs,) = predictor.predict([row])
        return EstimatedFloat.of(epochs)


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
    return gpu if isinstance(gpu, Device) else Device.named(gpu)
