"""What happens when: spans in columns, the one language for time.

A measured, an emulated, a simulated and a predicted run are all a `Timeline`,
so one can be held against the other. `Timeline.source` says which it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from paceline.timeline._summary import Summary

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


BUSY_KINDS = (Kind.COMPUTE, Kind.FORWARD, Kind.BACKWARD, Kind.OPTIMIZER)


class Span(NamedTuple):
    """One thing that one lane of one rank did.

    Attributes:
        rank: Process that did it.
        lane: Queue that it ran on: `main`, `assist`, `comm`, `copy`.
        kind: What sort of work it was.
        name: What a person would call it.
        start_s: When it began, in seconds of its rank's clock. A collective
            begins when its rank arrives, not when the last one does.
        duration_s: How long it took, in seconds.
        step: Optimizer update that it belongs to.
        collective: Spans that share a number of 0 or more are the ranks' parts of
            one collective; -1 for work of one rank alone.
    """

    rank: int
    lane: str
    kind: Kind
    name: str
    start_s: float
    duration_s: float
    step: int = 0
    collective: int = -1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Timeline:
    """Spans of one or more ranks, one array per field.

    Indexing gives a `Span`; the columns are for everything that should be fast.
    A million spans take about 40 MB.

    Attributes:
        source: Whether the times were measured, emulated, simulated or predicted.
        rank: Shape `(num_spans,)`, like all columns.
        lane: Index into `lanes`.
        kind: A `Kind`.
        name: Index into `names`.
        start_s: Begin in seconds.
        duration_s: Length in seconds, finite and not negative.
        step: Optimizer update.
        collective: Which collective, or -1.
        lanes: Lane names.
        names: Span names.

    Raises:
        ValueError: If the columns differ in length, if a time is not finite or a
            duration negative, or if a code points past its table.
    """

    source: Source
    rank: NDArray[np.int32]
    lane: NDArray[np.int32]
    kind: NDArray[np.int8]
    name: NDArray[np.int32]
    start_s: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    step: NDArray[np.int32]
    collective: NDArray[np.int64]
    lanes: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {self.source!r}")
        for column in COLUMNS:
            if getattr(self, column).shape != (self.rank.size,):
                raise ValueError(
                    f"all columns must have shape ({self.rank.size},), as long as `rank`, "
                    f"but `{column}` has {getattr(self, column).shape}"
                )
        _check_times(self.start_s, self.duration_s)
        _check_codes("lane", self.lane, len(self.lanes))
        _check_codes("kind", self.kind, len(Kind))
        _check_codes("name", self.name, len(self.names))

    @classmethod
    def from_columns(
        cls,
        source: Source,
        *,
        start_s: ArrayLike,
        duration_s: ArrayLike,
        rank: ArrayLike = 0,
        lane: ArrayLike = 0,
        kind: ArrayLike = Kind.COMPUTE,
        name: ArrayLike = 0,
        step: ArrayLike = 0,
        collective: ArrayLike = -1,
        lanes: Sequence[str] = ("main",),
        names: Sequence[str] = ("",),
    ) -> "Timeline":
        """Build a timeline from arrays; a scalar stands for every span.

        Examples:
            >>> run = Timeline.from_columns("measured", start_s=[0.0, 1.0], duration_s=[1.0, 0.5])
            >>> run.makespan_s
            1.5
        """
        start = np.atleast_1d(np.asarray(start_s, dtype=np.float64))

        def column(values: ArrayLike, dtype: type) -> NDArray[Any]:
            array = _checked_cast(values, dtype)
            return np.full(start.shape, array, dtype) if array.ndim == 0 else array

        return cls(
            source=source,
            rank=column(rank, np.int32),
            lane=column(lane, np.int32),
            kind=column(kind, np.int8),
            name=column(name, np.int32),
            start_s=start,
            duration_s=column(duration_s, np.float64),
            step=column(step, np.int32),
            collective=column(collective, np.int64),
            lanes=tuple(lanes),
            names=tuple(names),
        )

    @classmethod
    def from_spans(cls, source: Source, spans: Iterable[Span]) -> "Timeline":
        """Build a timeline from `Span` objects, in their order.

        Examples:
            >>> span = Span(0, "main", Kind.FORWARD, "forward", start_s=0.0, duration_s=0.25)
            >>> Timeline.from_spans("measured", [span])[0] == span
            True
        """
        rows = list(spans)
        lanes: dict[str, int] = {}
        names: dict[str, int] = {}
        return cls.from_columns(
            source,
            rank=[span.rank for span in rows],
            lane=[lanes.setdefault(span.lane, len(lanes)) for span in rows],
            kind=[span.kind for span in rows],
            name=[names.setdefault(span.name, len(names)) for span in rows],
            start_s=[span.start_s for span in rows],
            duration_s=[span.duration_s for span in rows],
            step=[span.step for span in rows],
            collective=[span.collective for span in rows],
            lanes=tuple(lanes),
            names=tuple(names),
        )

    @property
    def end_s(self) -> NDArray[np.float64]:
        """When each span ended, in seconds."""
        return self.start_s + self.duration_s

    @property
    def makespan_s(self) -> float:
        """Seconds from the first begin to the last end; 0 for no spans."""
        return float(self.end_s.max() - self.start_s.min()) if len(self) else 0.0

    def __len__(self) -> int:
        return len(self.start_s)

    def __getitem__(self, index: int) -> Span:
        return Span(
            rank=int(self.rank[index]),
            lane=self.lanes[self.lane[index]],
            kind=Kind(int(self.kind[index])),
            name=self.names[self.name[index]],
            start_s=float(self.start_s[index]),
            duration_s=float(self.duration_s[index]),
            step=int(self.step[index]),
            collective=int(self.collective[index]),
        )

    def __iter__(self) -> Iterator[Span]:
        return (self[index] for index in range(len(self)))

    def select(self, rows: NDArray[Any]) -> "Timeline":
        """Return the spans that a boolean mask or an index array picks."""
        return replace(self, **{column: getattr(self, column)[rows] for column in COLUMNS})

    def aligned(self) -> "Timeline":
        """Shift each rank's clock so that collectives end at the same time everywhere.

        Ranks on different machines have different clocks. Nobody can leave an
        all-reduce before the last one has joined it, and all leave it within the
        time of one message, so its end is the best common mark. Each rank is moved
        by the median difference to the lowest rank, over the collectives that both
        took part in; a rank without any stays where it is.
        """
        from paceline.timeline._collectives import clock_offsets

        offsets = clock_offsets(self.rank, self.collective, self.end_s)
        return self if not offsets.any() else replace(self, start_s=self.start_s + offsets)

    def summary(self) -> "Summary":
        """Return what the run cost and why; see `Summary`."""
        from paceline.timeline._summary import summarize

        return summarize(self)

    def to_chrome_trace(self, path: str | Path) -> Path:
        """Write the run as JSON that Perfetto and chrome://tracing open; return the path."""
        from paceline.timeline._chrome import write_chrome_trace

        return write_chrome_trace(self, path)

    @staticmethod
    def merge(parts: Sequence["Timeline"]) -> "Timeline":
        """Join timelines, for example one per rank, into one.

        Raises:
            ValueError: If `parts` is empty or mixes sources: what was measured and
                what was simulated never stand in one timeline.
        """
        sources = sorted({part.source for part in parts})
        if len(sources) != 1:
            raise ValueError(f"merge needs timelines of one source, got {sources or 'none'}")
        lanes, lane_codes = _joined_table([part.lanes for part in parts])
        names, name_codes = _joined_table([part.names for part in parts])
        columns = {c: np.concatenate([getattr(part, c) for part in parts]) for c in COLUMNS}
        columns["lane"] = np.concatenate(
            [code[part.lane] for code, part in zip(lane_codes, parts, strict=True)]
        )
        columns["name"] = np.concatenate(
            [code[part.name] for code, part in zip(name_codes, parts, strict=True)]
        )
        return Timeline(source=parts[0].source, lanes=lanes, names=names, **columns)


COLUMNS = tuple(
    field.name for field in fields(Timeline) if field.name not in ("source", "lanes", "names")
)


def _joined_table(
    tables: Sequence[tuple[str, ...]],
) -> tuple[tuple[str, ...], list[NDArray[np.int32]]]:
    joined: dict[str, int] = {}
    codes = [
        np.array([joined.setdefault(word, len(joined)) for word in table], dtype=np.int32)
        for table in tables
    ]
    return tuple(joined), codes


def _checked_cast(values: ArrayLike, dtype: type) -> NDArray[Any]:
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
