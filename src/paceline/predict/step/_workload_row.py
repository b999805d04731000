"""A workload on a device as the row that a step predictor takes."""

import numpy as np

from paceline.predict.step._rows import DEVICE, WORK, StepRows
from paceline.predict.work import Device, Workload


def step_row(workload: Workload, device: Device, *, device_name: str | None = None) -> StepRows:
    """Return a workload on a device as the one row that a step predictor takes.

    Args:
        workload: From a trace or the catalogue.
        device: Where it runs.
        device_name: What the tables call the device; unset for its own name.

    Examples:
        >>> from paceline.predict import Datasets, Devices, Models
        >>> from paceline.predict.work._catalogue import catalogue_workload
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
