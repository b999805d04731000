"""Timeline -> the JSON trace format of Chrome, which Perfetto reads too."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from paceline._files import read_json, told
from paceline.timeline._columns import Columns, Kind, Source, columns_of

ROWS_HELD = 4096
# The ranks of a second part have pids from here on.
PIDS_PER_PART = 1 << 20


class Part(NamedTuple):
    """One timeline of a trace."""

    source: Source
    spans: Columns
    lanes: Sequence[str]
    names: Sequence[str]


def write_chrome_trace(parts: Sequence[Part], path: str | Path) -> Path:
    """Write spans to `path`; the first begins at zero.

    pid is the rank, tid the lane, times are microseconds. Ranks of the second part, as of a plan
    beside what happened, stand below those of the first and have pids of their own. The file
    appears under its name only when it is whole. Source: "Trace Event Format", the Chromium
    project's public document.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    begins_s = [part.spans.start_s.min(initial=np.inf) for part in parts]
    try:
        with partial.open("w", encoding="utf-8") as file:
            other = json.dumps({"source": parts[0].source})
            file.write(f'{{"displayTimeUnit": "ms", "otherData": {other},\n"traceEvents": [\n')
            events = (_events(part, place, min(begins_s)) for place, part in enumerate(parts))
            for number, event in enumerate(chain.from_iterable(events)):
                file.write((",\n" if number else "") + json.dumps(event))
            file.write("\n]}\n")
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ValueError(
            f"the trace must go to a folder that can be written to, got {target}: {error.strerror}"
        ) from error
    return target


def _events(part: Part, place: int, origin_s: float) -> Iterator[dict[str, Any]]:
    spans, names = part.spans, part.names
    first_pid = place * PIDS_PER_PART
    for rank, lane in np.unique(np.stack([spans.rank, spans.lane]), axis=1).T.tolist():
        pid = first_pid + rank
        yield _label("process_name", pid, lane, {"name": f"rank {rank} ({part.source})"})
        yield _label("thread_name", pid, lane, {"name": part.lanes[lane]})
        if place:
            yield _label("process_sort_index", pid, lane, {"sort_index": pid})
    microseconds = spans._replace(
        start_s=np.round((spans.start_s - origin_s) * 1e6, 3),
        duration_s=np.round(spans.duration_s * 1e6, 3),
    )
    for rank, lane, kind, name, start_us, duration_us, step, collective in _rows(microseconds):
        yield {
            "ph": "X",
            "pid": first_pid + rank,
            "tid": lane,
            "ts": start_us,
            "dur": duration_us,
            "cat": Kind(kind).name.lower(),
            "name": names[name],
            "args": {"step": step} | ({"collective": collective} if collective >= 0 else {}),
        }


def read_chrome_trace(path: str | Path) -> list[Part]:
    """Read what `write_chrome_trace` wrote, part by part; times begin at zero.

    Raises:
        ValueError: If the file cannot be read, or holds anything else.
    """
    found = read_json(Path(path))
    try:
        return _parts_in(found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path} is no trace that Paceline wrote ({type(error).__name__}: {told(error)}); "
            "write one with timeline.to_chrome_trace() or `paceline trace RUN --output FILE`"
        ) from None


def _parts_in(found: Any) -> list[Part]:
    events = found["traceEvents"]
    ranks, lanes = _labels(events, "process_name"), _labels(events, "thread_name")
    places = sorted({one["pid"] // PIDS_PER_PART for one in events if one["ph"] in "MX"}) or [0]
    parts = []
    for place in places:
        titles = {text for (pid, _), text in ranks.items() if pid // PIDS_PER_PART == place}
        sources = {title.rpartition("(")[2].rstrip(")") for title in titles}
        (source,) = sources or {found["otherData"]["source"]}
        here = (one for one in events if one["pid"] // PIDS_PER_PART == place)
        spans = [one for one in here if one["ph"] == "X"]
        parts.append(_part_of(cast(Source, source), spans, lanes))
    return parts


def _labels(events: list[Any], what: str) -> dict[tuple[int, int], str]:
    """Return what processes or threads are called."""
    return {
        (one["pid"], one["tid"]): one["args"]["name"]
        for one in events
        if one["ph"] == "M" and one["name"] == what
    }


def _part_of(source: Source, spans: list[Any], lane_of: dict[tuple[int, int], str]) -> Part:
    lanes, names = _numbered(lane_of.values()), _numbered(one["name"] for one in spans)
    columns = columns_of(
        rank=[one["pid"] % PIDS_PER_PART for one in spans],
        lane=[lanes[lane_of[one["pid"], one["tid"]]] for one in spans],
        kind=[Kind[one["cat"].upper()] for one in spans],
        name=[names[one["name"]] for one in spans],
        start_s=[one["ts"] / 1e6 for one in spans],
        duration_s=[one["dur"] / 1e6 for one in spans],
        step=[one["args"]["step"] for one in spans],
        collective=[one["args"].get("collective", -1) for one in spans],
    )
    return Part(source, columns, list(lanes), list(names))


def _numbered(names: Iterable[str]) -> dict[str, int]:
    """Number names in the order in which they first come."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _rows(spans: Columns) -> Iterator[tuple[Any, ...]]:
    """Yield the values of each span; only a block of them is held as Python's objects."""
    for first in range(0, len(spans.rank), ROWS_HELD):
        block = (column[first : first + ROWS_HELD].tolist() for column in spans)
        yield from zip(*block, strict=True)


def _label(what: str, pid: int, lane: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": lane, "name": what, "args": args}
