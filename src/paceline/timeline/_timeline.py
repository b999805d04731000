"""What happens when: spans in columns, the one language for time.

A measured, an emulated, a simulated and a predicted run are all a `Timeline`,
so one can be held against the other. `Timeline.source` says which it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.timeline._chrome import write_chrome_trace
from paceline.timeline._collectives import clock_offsets
from paceline.timeline._columns import (
    COLUMNS,
    SOURCES,
    Columns,
    Kind,
    Source,
    Span,
    check_columns,
    columns_of,
)
from paceline.timeline._summary import Summary, summarize


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
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
        check_columns(self._columns(), self.lanes, self.names)

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
        columns = columns_of(
            rank=rank,
            lane=lane,
            kind=kind,
            name=name,
            start_s=start_s,
            duration_s=duration_s,
            step=step,
            collective=collective,
        )
        return cls(source=source, lanes=tuple(lanes), names=tuple(names), **columns._asdict())

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
        return self._columns().end_s

    @property
    def makespan_s(self) -> float:
        """Seconds from the first begin to the last end; 0 for no spans."""
        return self._columns().makespan_s

    def _columns(self) -> Columns:
        return Columns(*(getattr(self, column) for column in COLUMNS))

    def __repr__(self) -> str:
        return f"<Timeline {self._headline()}>"

    def __str__(self) -> str:
        """Say what is there, and the seconds of each kind, summed over all spans."""
        seconds = np.bincount(self.kind, self.duration_s, minlength=len(Kind))
        present = np.unique(self.kind).tolist()
        lines = [f"{Kind(kind).name.lower():<12}{seconds[kind]:10.4g} s" for kind in present]
        return "\n".join([self._headline(), *lines])

    def _headline(self) -> str:
        counts = f"{len(self)} spans on {len(np.unique(self.rank))} ranks"
        begin_s = float(self.start_s.min()) if len(self) else 0.0
        return f"{self.source}: {counts}, {self.makespan_s:.4g} s starting at {begin_s:.4g} s"

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
        offsets = clock_offsets(self.rank, self.collective, self.end_s)
        return self if not offsets.any() else replace(self, start_s=self.start_s + offsets)

    def summary(self) -> Summary:
        """Return what the run cost and why; see `Summary`."""
        run = self.aligned()
        return summarize(run.source, run._columns())

    def to_chrome_trace(self, path: str | Path) -> Path:
        """Write the run as JSON that Perfetto and chrome://tracing open; return the path."""
        run = self.aligned()
        return write_chrome_trace(run.source, run._columns(), run.lanes, run.names, path)

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
        for column, codes in (("lane", lane_codes), ("name", name_codes)):
            recoded = [code[getattr(part, column)] for code, part in zip(codes, parts, strict=True)]
            columns[column] = np.concatenate(recoded)
        return Timeline(source=parts[0].source, lanes=lanes, names=names, **columns)


def _joined_table(
    tables: Sequence[tuple[str, ...]],
) -> tuple[tuple[str, ...], list[NDArray[np.int32]]]:
    joined: dict[str, int] = {}
    codes = [
        np.array([joined.setdefault(word, len(joined)) for word in table], dtype=np.int32)
        for table in tables
    ]
    return tuple(joined), codes
