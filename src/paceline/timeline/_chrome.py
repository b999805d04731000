"""Timeline -> the JSON trace format of Chrome, which Perfetto reads too."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paceline.timeline._timeline import Kind, Timeline


def write_chrome_trace(timeline: Timeline, path: str | Path) -> Path:
    """Write `timeline` to `path`, all ranks on one clock that starts at zero.

    pid is the rank, tid the lane, times are microseconds. The file appears under
    its name only when it is whole.

    Raises:
        ValueError: If the folder does not exist or cannot be written to.

    References:
        "Trace Event Format", the Chromium project's public document.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("w", encoding="utf-8") as file:
            source = json.dumps(timeline.source)
            file.write(f'{{"displayTimeUnit": "ms", "otherData": {{"source": {source}}},\n')
            file.write('"traceEvents": [\n')
            file.write(",\n".join(json.dumps(event) for event in _events(timeline.aligned())))
            file.write("\n]}\n")
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ValueError(
            f"the trace must go to a folder that can be written to, got {target}: {error.strerror}"
        ) from error
    return target


def _events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for rank, lane in np.unique(np.stack([timeline.rank, timeline.lane]), axis=1).T.tolist():
        yield _label("process_name", rank, lane, f"rank {rank} ({timeline.source})")
        yield _label("thread_name", rank, lane, timeline.lanes[lane])
    origin_s = timeline.start_s.min(initial=np.inf)
    rows = zip(
        timeline.rank.tolist(),
        timeline.lane.tolist(),
        timeline.kind.tolist(),
        timeline.name.tolist(),
        np.round((timeline.start_s - origin_s) * 1e6, 3).tolist(),
        np.round(timeline.duration_s * 1e6, 3).tolist(),
        timeline.step.tolist(),
        timeline.collective.tolist(),
        strict=True,
    )
    for rank, lane, kind, name, start_us, duration_us, step, collective in rows:
        yield {
            "ph": "X",
            "pid": rank,
            "tid": lane,
            "ts": start_us,
            "dur": duration_us,
            "cat": Kind(kind).name.lower(),
            "name": timeline.names[name],
            "args": {"step": step} | ({"collective": collective} if collective >= 0 else {}),
        }


def _label(what: str, rank: int, lane: int, text: str) -> dict[str, Any]:
    return {"ph": "M", "pid": rank, "tid": lane, "name": what, "args": {"name": text}}
