"""The columns that spans are stored in, and the rules that they keep."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Source = Literal["measured", "emulated", "simulated", "predicted"]
SOURCES: tuple[Source, ...] = ("measured", "emulated", "simulated", "predicted")


class Kind(IntEnum):
    """What a lane does during a span. The integer is what the `kind` column holds."""

    COMPUTE = 0
    """Work of no particular pass."""
    FORWARD = 1
    BACKWARD = 2
    OPTIMIZER = 3
    COLLECTIVE = 4
    """From the moment this rank arrives at the collective until it has the result."""
    DATA = 5
    """Waiting for the next batch, and whatever else happens between steps."""
    COPY = 6
    """Moving bytes inside one worker, beside the compute."""


# Of a step in detail: what the lane `main` holds as whole passes and one all-reduce.
LAYER_LANE, BUCKET_LANE = "layers", "buckets"
BUSY_KINDS = (Kind.COMPUTE, Kind.FORWARD, Kind.BACKWARD, Kind.OPTIMIZER)


class Span(NamedTuple):
    """One thing that one lane of one rank did.

    Attributes:
        rank: Process that did it.
        lane: Queue that it ran on: `main`, `assist`, `comm`, `copy`.
        kind: What sort of work it was.
        name: What a person would call it.
        start_s: When it began, in seconds of its rank's clock. A collective begins when its rank
            arrives, not when the last one does.
        duration_s: How long it took, in seconds.
        step: Optimizer update that it belongs to.
        collective: Equal numbers from 0 up are the ranks' parts of one collective; -1 for none.
    """

    rank: int
    lane: str
    kind: Kind
    name: str
    start_s: float
    duration_s: float
    step: int = 0
    collective: int = -1


class Columns(NamedTuple):
    """The arrays of a `Timeline`, one entry per span; see there."""

    rank: NDArray[np.int32]
    lane: NDArray[np.int32]
    kind: NDArray[np.int8]
    name: NDArray[np.int32]
    start_s: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    step: NDArray[np.int32]
    collective: NDArray[np.int64]

    @property
    def end_s(self) -> NDArray[np.float64]:
        return self.start_s + self.duration_s

    @property
    def makespan_s(self) -> float:
        return float(self.end_s.max() - self.start_s.min()) if len(self.start_s) else 0.0


COLUMNS = Columns._fields
DTYPES = dict(zip(COLUMNS, ("i4", "i4", "i1", "i4", "f8", "f8", "i4", "i8"), strict=True))


def columns_of(**values: ArrayLike) -> Columns:
    """Convert values to columns as long as `start_s`; a scalar stands for every span."""
    shape = np.shape(np.atleast_1d(np.asarray(values["start_s"])))

    def column(name: str) -> NDArray[Any]:
        array = _checked_cast(values[name], DTYPES[name])
        return np.full(shape, array) if array.ndim == 0 else array

    return Columns(*map(column, COLUMNS))


def check_columns(columns: Columns, lanes: Sequence[str], names: Sequence[str]) -> None:
    """Raise `ValueError` unless columns are equally long, times sane and codes in their tables."""
    num_spans = columns.rank.size
    for name in COLUMNS:
        column: NDArray[Any] = getattr(columns, name)
        if column.shape != (num_spans,):
            raise ValueError(
                f"all columns must have shape ({num_spans},), as long as `rank`, "
                f"but `{name}` has {column.shape}"
            )
    _check_times(columns.start_s, columns.duration_s)
    _check_codes("lane", columns.lane, len(lanes))
    _check_codes("kind", columns.kind, len(Kind))
    _check_codes("name", columns.name, len(names))


def _checked_cast(values: ArrayLike, dtype: str) -> NDArray[Any]:
    """Convert to `dtype`, but do not let a code wrap around or lose a fraction."""
    given = np.asarray(values)
    with np.errstate(invalid="ignore"):
        array: NDArray[Any] = given.astype(dtype)
    if array.dtype.kind == "i" and (array != given).any():
        bad = given[array != given].flat[0]
        raise ValueError(f"codes and numbers must be whole and fit {array.dtype}, got {bad}")
    return array


def _check_times(start_s: NDArray[np.float64], duration_s: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~(np.isfinite(start_s) & np.isfinite(duration_s) & (duration_s >= 0)))
    if bad.size:
        raise ValueError(
            "start_s must be finite and duration_s finite and non-negative, but span "
            f"{bad[0]} has start_s={start_s[bad[0]]}, duration_s={duration_s[bad[0]]}"
        )


def _check_codes(column: str, codes: NDArray[Any], table_length: int) -> None:
    bad = np.flatnonzero((codes < 0) | (codes >= table_length))
    if bad.size:
        raise ValueError(
            f"`{column}` must lie in [0, {table_length}), but span {bad[0]} has {codes[bad[0]]}"
        )
