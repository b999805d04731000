"""Steps to predict, or measured steps to learn from, as columns.

A row is one configuration on one device. What describes the work and the
device is kept apart from what was measured, so that no measured time can
reach a feature: see `StepRows.without_times`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LABELS = ("family", "dataset", "model", "variant", "optimizer", "device")
WORK = (
    "batch_size", "precision_bits", "num_params", "depth", "train_flops_per_example",
    "activation_bytes_per_example", "num_norm_layers", "num_activation_layers", "num_kernels",
    "conv_fraction", "conv_1x1_fraction", "conv_3x3_fraction", "depthwise_fraction",
    "example_bytes",
)  # fmt: skip
DEVICE = (
    "fp32_flops", "fp16_flops", "tensor_flops", "memory_bytes_per_s", "num_cores", "num_sms",
    "num_tensor_cores", "boost_clock_hz",
)  # fmt: skip
TIMES = ("compute_s", "loader_s")


@dataclass(frozen=True, slots=True, eq=False)
class StepRows:
    """Columns of equal length, one entry per configuration and device.

    Attributes:
        columns: `LABELS` as text; `WORK` and `DEVICE` as floats, finite and
            not negative; and, where the steps were measured, both of `TIMES`,
            in seconds per step. `model` and `variant` only name what is left
            out together in an evaluation and never become features; `device` and
            `dataset` only look up what was measured on that host.

    Raises:
        ValueError: If a column is missing or unknown, lengths differ, or a
            value is out of range.
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
        """Whether the rows carry times."""
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
    """All rows of all parts, in order.

    Raises:
        ValueError: If there is no part, or only some of them were measured.
    """
    rows = list(parts)
    if not rows or len({part.is_measured for part in rows}) != 1:
        raise ValueError("there must be at least one part, and all measured or none")
    return StepRows(
        {name: np.concatenate([part[name] for part in rows]) for name in rows[0].columns}
    )


def _check_number(name: str, column: NDArray[Any]) -> None:
    value = np.asarray(column, dtype=np.float64)
    positive = name in (
        "batch_size",
        *TIMES[:1],
        "train_flops_per_example",
        "num_kernels",
        *DEVICE[:4],
    )
    bad = np.flatnonzero(~np.isfinite(value) | (value < 0) | (positive & (value == 0)))
    if bad.size:
        rule = "positive" if positive else "not negative"
        raise ValueError(
            f"{name} must be finite and {rule}, but row {bad[0]} has {column[bad[0]]} "
            f"({bad.size} bad rows)"
        )
