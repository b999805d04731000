"""What happens when: spans in columns, the one language for time.

A measured, an emulated, a simulated and a predicted run are all a `Timeline`,
so one can be held against the other. `Timeline.source` says which it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.timeline._chrome import Part, read_chrome_trace, write_chrome_trace
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
from paceline.timeline._plot import plot_timeline
from paceline.timeline._summary import Summary, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Timeline:
    """Spans of one or more ranks, one array per field.

    Indexing gives a `Span`; columns are for what should be fast. A million spans take about 40 MB.

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
        ValueError: If lengths differ, a time is bad, or a code points past its table.
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
        columns = {column: [getattr(span, column) for span in rows] for column in COLUMNS}
        columns["lane"] = [lanes.setdefault(span.lane, len(lanes)) for span in rows]
        columns["name"] = [names.setdefault(span.name, len(names)) for span in rows]
        return cls.from_columns(source, lanes=tuple(lanes), names=tuple(names), **columns)

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
        seconds = np.bincount(self.kind, self.duration_s, minlength=len(Kind))
        present = np.unique(self.kind).tolist()
        if not present:
            return self._headline()
        lanes = f"steps {self.step.min()} to {self.step.max()} on lanes {', '.join(self.lanes)}"
        kinds = (f"{Kind(kind).name.lower()} {seconds[kind]:.4g} s" for kind in present)
        return "\n".join([self._headline(), lanes, ", ".join(kinds)])

    def _headline(self) -> str:
        counts = f"{len(self)} spans on {len(np.unique(self.rank))} ranks"
        begin_s = float(self.start_s.min()) if len(self) else 0.0
        return f"{self.source}: {counts}, {self.makespan_s:.4g} s starting at {begin_s:.4g} s"

    def __len__(self) -> int:
        return len(self.start_s)

    def __getitem__(self, index: int) -> Span:
        row = {column: getattr(self, column)[index].item() for column in COLUMNS}
        lane, name = self.lanes[row.pop("lane")], self.names[row.pop("name")]
        return Span(lane=lane, name=name, kind=Kind(row.pop("kind")), **row)

    def __iter__(self) -> Iterator[Span]:
        return (self[index] for index in range(len(self)))

    def select(self, rows: NDArray[Any]) -> "Timeline":
        """Return the spans that a boolean mask or an index array picks."""
        return replace(self, **{column: getattr(self, column)[rows] for column in COLUMNS})

    def aligned(self) -> "Timeline":
        """Shift each rank's clock so that collectives end at the same time everywhere.

        Ranks on different machines have different clocks. Nobody can leave an all-reduce before the
        last one has joined it, and all leave it within the time of one message, so its end is the
        best common mark. Each rank is moved by the median difference to the lowest rank, over the
        collectives that both took part in; a rank without any stays where it is.
        """
        offsets = _clock_offsets(self.rank, self.collective, self.end_s)
        return self if not offsets.any() else replace(self, start_s=self.start_s + offsets)

    def summary(self) -> Summary:
        """Return what the run cost and why; see `Summary`."""
        run = self.aligned()
        return summarize(run.source, run._columns())

    def to_chrome_trace(self, path: str | Path, *, beside: "Timeline | None" = None) -> Path:
        """Write the run as JSON that Perfetto and chrome://tracing open; return the path.

        Args:
            path: File to write.
            beside: Another timeline on the same clock, drawn below, such as the plan of this one.
        """
        runs = [self.aligned()] if beside is None else [self.aligned(), beside]
        return write_chrome_trace(
            [Part(run.source, run._columns(), run.lanes, run.names) for run in runs], path
        )

    @classmethod
    def from_chrome_trace(cls, path: str | Path) -> "list[Timeline]":
        """Read what `to_chrome_trace` wrote: the run, and the timeline beside it if there is one.

        Raises:
            ValueError: If the file cannot be read, or holds anything else.
        """
        parts = read_chrome_trace(path)
        return [
            cls(
                source=part.source,
                lanes=tuple(part.lanes),
                names=tuple(part.names),
                **part.spans._asdict(),
            )
            for part in parts
        ]

    def plot(self, axes: "Axes | None" = None) -> "Figure":
        """Return one matplotlib figure, a row for each lane of each rank; needs the `report` extra.

        In a notebook, select a few steps first: `run.timeline(num=20).plot()`.

        Args:
            axes: Where to draw, to set two timelines side by side; unset for a figure of its own.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        run = self.aligned()
        return plot_timeline(run.source, run._columns(), run.lanes, axes)

    @staticmethod
    def merge(parts: Sequence["Timeline"]) -> "Timeline":
        """Join timelines, for example one per rank, into one.

        Raises:
            ValueError: If `parts` is empty or mixes sources, such as measured and simulated.
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


def _clock_offsets(
    rank: NDArray[np.int32], collective: NDArray[np.int64], end_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the seconds to add to each span's start so that collectives end together.

    A collective with several parts on one rank counts with the last of them.
    """
    offsets = np.zeros(len(rank))
    joint = np.flatnonzero(collective >= 0)
    if not joint.size:
        return offsets
    # Last part of each (rank, collective) pair: sort by time, the later write wins.
    joint = joint[np.argsort(end_s[joint], kind="stable")]
    ranks, row = np.unique(rank[joint], return_inverse=True)
    numbers, column = np.unique(collective[joint], return_inverse=True)
    ends = np.full((len(ranks), len(numbers)), np.nan)
    ends[row, column] = end_s[joint]
    for index in range(1, len(ranks)):
        difference = ends[0] - ends[index]
        shared = np.isfinite(difference)
        if shared.any():
            offsets[rank == ranks[index]] = np.median(difference[shared])
    return offsets
