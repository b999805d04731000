"""Steps to predict, or measured steps to learn from, as columns.

A row is one configuration on one device. What describes the work and the device is kept apart from
what was measured, so that no measured time can reach a feature: see `StepRows.without_times`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.predict.work import Device, Workload

FloatArray = NDArray[np.float64]

LABELS = ("family", "dataset", "model", "variant", "optimizer", "device")
WORK = (
    "batch_size", "precision_bits", "num_params", "depth", "train_flops_per_example",
    "activation_bytes_per_example", "num_norm_layers", "num_activation_layers", "num_kernels",
    "conv_fraction", "conv_1x1_fraction", "conv_3x3_fraction", "depthwise_fraction",
    "example_bytes",
)  # fmt: skip
DEVICE = (
    "fp32_flops", "fp16_flops", "tensor_flops", "memory_bytes_per_s", "num_cores", "num_sms",
    "num_tensor_cores", "boost_clock_hz", "fp8_flops",
)  # fmt: skip
PROXY_WIDTHS = 5
TIMES = ("compute_s", "loader_s")
POSITIVE = {"batch_size", "compute_s", "train_flops_per_example", "num_kernels", *DEVICE[:4]}


@dataclass(frozen=True, slots=True, eq=False)
class StepRows:
    """Columns of equal length, one entry per configuration and device.

    Attributes:
        columns: `LABELS` as text; `WORK` and `DEVICE` as floats, finite and not negative; and,
            where the steps were measured, both of `TIMES`, in seconds per step. `model` and
            `variant` only name what is left out together in an evaluation and never become
            features; `device` and `dataset` only look up what was measured on that host.

    Raises:
        ValueError: If a column is missing or unknown, lengths differ, or a value is out of range.
    """

    columns: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        names = set(self.columns)
        missing = set(LABELS + WORK + DEVICE) - names
        unknown = names - set(LABELS + WORK + DEVICE + TIMES)
        if missing or unknown or len(names & set(TIMES)) == 1:
            raise ValueError(
                f"step rows lack {sorted(missing) or 'nothing'} and have unknown "
                f"{sorted(unknown) or 'nothing'}; both of {TIMES} or neither"
            )
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"columns must have one length, got {sorted(lengths)}")
        for name, column in self.columns.items():
            if name not in LABELS:
                _check_number(name, column)

    def __len__(self) -> int:
        return len(self.columns["batch_size"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    @property
    def is_measured(self) -> bool:
        return TIMES[0] in self.columns

    @property
    def total_s(self) -> NDArray[np.float64]:
        """Measured seconds per step: compute plus the wait for the loader."""
        return np.asarray(self["compute_s"] + self["loader_s"], dtype=np.float64)

    def take(self, index: ArrayLike) -> "StepRows":
        """The rows at `index`, or where a mask is true, in that order."""
        at = np.asarray(index)
        at = at if at.size else at.astype(np.intp)
        return StepRows({name: column[at] for name, column in self.columns.items()})

    def without_times(self) -> "StepRows":
        """The same rows as a user has them before a run."""
        return StepRows({name: self.columns[name] for name in LABELS + WORK + DEVICE})

    def keys(self, *names: str) -> NDArray[np.str_]:
        """One text per row that joins the given columns, to group by."""
        parts = [self[name].astype(str) for name in names]
        return np.array(["|".join(row) for row in zip(*parts, strict=True)], dtype=np.str_)


def concatenate(parts: Iterable[StepRows]) -> StepRows:
    """All rows of all parts, in order; all of them measured, or none."""
    rows = list(parts)
    if not rows or len({part.is_measured for part in rows}) != 1:
        raise ValueError("there must be at least one part, and all measured or none")
    return StepRows(
        {name: np.concatenate([part[name] for part in rows]) for name in rows[0].columns}
    )


def block_activation_bytes(proxy: Any, depth: Any) -> Any:
    """Bytes of one value per position and channel in every block, as for perceptrons.

    The tables count five such values of one block only, however many blocks a transformer has, so
    that a deep one would seem to move no more than a shallow one.
    """
    return proxy / PROXY_WIDTHS * depth


def step_row(workload: Workload, device: Device, *, device_name: str | None = None) -> StepRows:
    """Return a workload on a device as the one row that a step predictor takes.

    `device_name` is what the tables call the device; unset for its own name.
    """
    by_class = workload.flops_by_class
    conv = by_class.get("conv", 0.0) + by_class.get("depthwise", 0.0)
    conv_fraction = 1.0 if workload.family == "CNN" else conv / (sum(by_class.values()) or 1.0)
    width = f"-{workload.width}" if workload.family == "MLP" else ""
    labels = {
        "family": workload.family,
        "dataset": workload.dataset,
        "model": workload.name,
        "variant": workload.name + width,  # The tables keep widths of one model apart.
        "optimizer": workload.optimizer,
        "device": device_name or device.name,
    }
    numbers = {
        **{name: getattr(workload, name) for name in WORK if name != "conv_fraction"},
        **{name: getattr(device, name) for name in DEVICE},
        "conv_fraction": conv_fraction,
        "num_kernels": max(workload.num_kernels, 1),
    }
    if workload.family == "Transformer":
        proxy = workload.activation_bytes_per_example
        numbers["activation_bytes_per_example"] = block_activation_bytes(proxy, workload.depth)
    columns = labels | {name: float(value) for name, value in numbers.items()}
    return StepRows({name: np.array([value]) for name, value in columns.items()})


def _check_number(name: str, column: NDArray[Any]) -> None:
    value = np.asarray(column, dtype=np.float64)
    positive = name in POSITIVE
    bad = np.flatnonzero(~np.isfinite(value) | (value < 0) | (positive & (value == 0)))
    if bad.size:
        rule = "positive" if positive else "not negative"
        raise ValueError(
            f"{name} must be finite and {rule}, but row {bad[0]} has {column[bad[0]]} "
            f"({bad.size} bad rows)"
        )
