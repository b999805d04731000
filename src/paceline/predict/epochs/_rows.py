"""Training runs as columns: what was configured, and when each stopped improving."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._files import shown, told

Shift = Literal["known", "dataset", "model", "both"]
SHIFTS: tuple[Shift, ...] = get_args(Shift)
PROBES = ("gradient_norm_log10", "initial_loss_log10")
ALIASES = {"family": "architecture", "max_epochs": "max_epochs_used"}
OPTIONAL: dict[str, float] = {
    "max_epochs": np.inf,
    "T_conv": np.nan,
    "gradient_norm_log10": np.nan,
    "initial_loss_log10": np.nan,
}
ABSENT = object()
NAMES = ("family", "model", "dataset", "optimizer")


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Configurations of training runs, one array entry each, names in lower case."""

    family: NDArray[np.str_]  # kind of architecture: "cnn", "mlp", "transformer"
    model: NDArray[np.str_]  # name of the model
    dataset: NDArray[np.str_]  # name of the dataset
    optimizer: NDArray[np.str_]  # name of the optimizer
    dataset_size: NDArray[np.float64]  # examples per epoch
    learning_rate: NDArray[np.float64]  # as the run started
    batch_size: NDArray[np.float64]  # examples per optimizer update
    param_count: NDArray[np.float64]  # trainable parameters
    patience_P: NDArray[np.float64]  # epochs without improvement after which the run stops
    min_delta: NDArray[np.float64]  # smallest drop of the validation loss that counts
    max_epochs: NDArray[np.float64]  # where the run would stop in any case; infinite if unknown
    T_conv: NDArray[np.float64]  # epochs that the run took; not a number where it has not run
    gradient_norm_log10: NDArray[np.float64]  # probe at initialization, optional
    initial_loss_log10: NDArray[np.float64]  # probe at initialization, optional

    def __len__(self) -> int:
        return int(self.family.size)

    def take(self, rows: NDArray[Any]) -> Self:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def is_sgd(self) -> NDArray[np.bool_]:
        """Whether the optimizer scales all gradients alike; the others adapt per parameter."""
        return np.char.startswith(self.optimizer, "sgd")

    @property
    def fewest(self) -> NDArray[np.float64]:
        """The first epoch counts as the best so far, then patience runs out: P + 1 epochs."""
        return self.patience_P + 1.0

    @classmethod
    def from_columns(cls, columns: Mapping[str, ArrayLike]) -> Self:
        """Read columns as they stand in a table of measured runs; others are ignored.

        Args:
            columns: Equally long columns by the names of the attributes. `family`
                may be called `architecture`, `max_epochs` may be called
                `max_epochs_used`; `max_epochs`, `T_conv` and the probes may be missing.

        Raises:
            ValueError: If a column is missing, of another length, or holds values
                that are no numbers or not positive.
        """
        found = dict(columns)
        for name, alias in ALIASES.items():
            if name not in found and alias in found:
                found[name] = found[alias]
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in found | OPTIONAL]:
            raise ValueError(
                f"a table of runs needs the columns {', '.join(missing)}, which are missing "
                f"(found: {shown(', '.join(columns)) or 'none'})"
            )
        length = np.asarray(found["model"]).size
        return cls(*(_column(name, found.get(name), length) for name in names))

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Self:
        """Read configurations given one by one; see `from_columns` for the names."""
        columns: dict[str, list[Any]] = {}
        for name in (field.name for field in fields(cls)):
            found = [row.get(name, row.get(ALIASES.get(name, name), ABSENT)) for row in rows]
            absent = [place for place, value in enumerate(found) if value is ABSENT]
            if len(absent) < len(rows) and absent and name not in OPTIONAL:
                raise ValueError(f"rows[{absent[0]}] lacks {name}, which other rows have")
            if len(absent) < len(rows):
                columns[name] = [OPTIONAL[name] if v is ABSENT else v for v in found]
        return cls.from_columns(columns)


def plain_name(name: str) -> str:
    """A name without case and punctuation, so that "DeiT-Tiny" and "deit_tiny" are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _column(name: str, values: ArrayLike | None, length: int) -> NDArray[Any]:
    array = np.full(length, OPTIONAL[name]) if values is None else np.atleast_1d(np.asarray(values))
    if array.shape != (length,):
        raise ValueError(f"column {name} has shape {array.shape}, but model has {length} rows")
    if name in NAMES:
        return np.array([plain_name(str(value)) for value in array], dtype=np.str_)
    try:
        number = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name} must hold numbers: {told(error)}") from error
    wrong = ~np.isfinite(number) | (number <= 0) if name not in OPTIONAL else number <= 0
    if name in PROBES:
        wrong = np.isinf(number)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"column {name} must be positive and finite, got {number[row]} in row {row}"
        )
    return number


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Rows to fit on and rows to predict; none of the first shares the held-out unit."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]
    unit: str


def folds(
    runs: Runs, family: str, shift: Shift, *, seed: int = 0, parts: int = 5
) -> Iterator[Fold]:
    """Hold out what `shift` calls new, among the runs of `family`.

    "known" holds out `parts` random parts of the rows, "dataset" and "model" one name at a time,
    and "both" a model on a dataset while nothing of either stays to be fitted on. Runs of other
    families stay for fitting unless they share the held-out name.
    """
    own = np.flatnonzero(runs.family == family)
    everything = np.arange(len(runs))
    if shift == "known":
        order = np.random.default_rng([seed, own.size]).permutation(own)
        for part in range(min(parts, own.size)):
            test = np.sort(order[part::parts])
            yield Fold(np.setdiff1d(everything, test), test, f"part {part}")
        return
    of_dataset = runs.dataset if shift != "model" else np.full(len(runs), "")
    of_model = runs.model if shift != "dataset" else np.full(len(runs), "")
    pairs = sorted(set(zip(of_dataset[own].tolist(), of_model[own].tolist(), strict=True)))
    for dataset, model in pairs:
        same_dataset, same_model = of_dataset == dataset, of_model == model
        shared = same_dataset & same_model if shift != "both" else same_dataset | same_model
        test = own[(same_dataset & same_model)[own]]
        yield Fold(np.flatnonzero(~shared), test, " ".join((dataset, model)).strip())
