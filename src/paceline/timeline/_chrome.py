"""Timeline -> the JSON trace format of Chrome, which Perfetto reads too."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paceline.timeline._columns import Columns, Kind, Source

ROWS_HELD = 4096


def write_chrome_trace(
    source: Source, spans: Columns, lanes: Sequence[str], names: Sequence[str], path: str | Path
) -> Path:
    """Write spans to `path`; the first begins at zero.

    pid is the rank, tid the lane, times are microseconds. The file appears under its name only
    when it is whole. Source: "Trace Event Format", the Chromium project's public document.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("w", encoding="utf-8") as file:
            other = json.dumps({"source": source})
            file.write(f'{{"displayTimeUnit": "ms", "otherData": {other},\n"traceEvents": [\n')
            for number, event in enumerate(_events(source, spans, lanes, names)):
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


def _events(
    source: Source, spans: Columns, lanes: Sequence[str], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for rank, lane in np.unique(np.stack([spans.rank, spans.lane]), axis=1).T.tolist():
        yield _label("process_name", rank, lane, f"rank {rank} ({source})")
        yield _label("thread_name", rank, lane, lanes[lane])
    origin_s = spans.start_s.min(initial=np.inf)
    microseconds = spans._replace(
        start_s=np.round((spans.start_s - origin_s) * 1e6, 3),
        duration_s=np.round(spans.duration_s * 1e6, 3),
    )
    for rank, lane, kind, name, start_us, duration_us, step, collective in _rows(microseconds):
        yield {
            "ph": "X",
            "pid": rank,
            "tid": lane,
            "ts": start_us,
            "dur": duration_us,
            "cat": Kind(kind).name.lower(),
            "name": names[name],
            "args": {"step": step} | ({"collective": collective} if collective >= 0 else {}),
        }


def _rows(spans: Columns) -> Iterator[tuple[Any, ...]]:
    """Yield the values of each span; only a block of them is held as Python's objects."""
    for first in range(0, len(spans.rank), ROWS_HELD):
        block = (column[first : first + ROWS_HELD].tolist() for column in spans)
        yield from zip(*block, strict=True)


def _label(what: str, rank: int, lane: int, text: str) -> dict[str, Any]:
    return {"ph": "M", "pid": rank, "tid": lane, "name": what, "args": {"name": text}}
