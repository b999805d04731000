"""`paceline trace`: sum up the spans of a few steps, and write them for Perfetto."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

MOST_ROWS = 10


def add_trace(commands: Any) -> None:
    trace = commands.add_parser(
        "trace",
        help="sum up a saved trace, or the traced steps of a recorded run",
        description="Sum up a trace that to_chrome_trace() wrote, or the traced steps of a run "
        "that `paceline run` recorded: one of them by layer and by bucket, the plan beside it.",
    )
    trace.add_argument("path", metavar="FILE", type=Path, help="a trace, or the folder of a run")
    trace.add_argument("--output", type=Path, help="also write JSON that ui.perfetto.dev opens")
    trace.add_argument("--json", action="store_true", help="print one JSON object")
    trace.set_defaults(run=run_trace)


def run_trace(options: argparse.Namespace) -> int:
    from paceline.run import Trace
    from paceline.timeline import Timeline

    if options.path.is_dir():
        found = Trace.load(options.path)
        parts = [found.measured] + ([found.plan] if found.plan is not None else [])
    else:
        parts = Timeline.from_chrome_trace(options.path)
    if options.output is not None:
        parts[0].to_chrome_trace(options.output, beside=next(iter(parts[1:]), None))
    if options.json:
        print(json.dumps([_to_dict(part) for part in parts]))
        return 0
    print("\n\n".join("\n".join(_lines(part)) for part in parts))
    if options.output is not None:
        print(f"\nwritten to {options.output}; open it at ui.perfetto.dev")
    return 0


def _whole_steps(part: Any) -> Any:
    """Return the lanes that hold whole steps: what others hold in detail must not count twice."""
    from paceline.timeline import LAYER_LANE

    if LAYER_LANE not in part.lanes:
        return part
    return part.select(part.lane == part.lanes.index("main"))


def _lines(part: Any) -> list[str]:
    rows = _rows(part)
    lines = [str(_whole_steps(part).summary())]
    for lane in dict.fromkeys(row["lane"] for row in rows):
        mine = [row for row in rows if row["lane"] == lane]
        lines.append(f"lane {lane}, {part.source}, ms per step and rank, longest first:")
        lines += [
            f"{1e3 * row['seconds']:10.4g}  {row['kind']:<11}{row['name']}"
            for row in mine[:MOST_ROWS]
        ]
        rest_s = sum(row["seconds"] for row in mine[MOST_ROWS:])
        if len(mine) > MOST_ROWS:
            lines.append(f"{1e3 * rest_s:10.4g}  {len(mine) - MOST_ROWS} others")
    return lines


def _rows(part: Any) -> list[dict[str, Any]]:
    """Return mean seconds per step and rank of each name, lane by lane, longest first."""
    keys = np.stack([part.lane, part.kind, part.name])
    found, row = np.unique(keys, axis=1, return_inverse=True)
    seconds = np.bincount(row.ravel(), part.duration_s, found.shape[1])
    rows = []
    for (lane, kind, name), total_s in zip(found.T.tolist(), seconds.tolist(), strict=True):
        mine = part.lane == lane
        times = np.unique(np.stack([part.rank[mine], part.step[mine]]), axis=1).shape[1]
        rows.append({"lane": part.lanes[lane], "kind": _kind(kind), "name": part.names[name],
                     "seconds": total_s / times})  # fmt: skip
    return sorted(rows, key=lambda one: (part.lanes.index(one["lane"]), -one["seconds"]))


def _kind(code: int) -> str:
    from paceline.timeline import Kind

    return Kind(code).name.lower()


def _to_dict(part: Any) -> dict[str, Any]:
    return {**_whole_steps(part).summary().to_dict(), "spans": _rows(part)}
