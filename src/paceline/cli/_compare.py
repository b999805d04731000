"""`paceline compare`: whether a run is faster than another beyond noise, and by what."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="hold one recorded run against another",
        description="Say whether run B is faster or slower than run A beyond noise, and which part "
        "of the step accounts for it. Per example where the global batches differ in size.",
    )
    compare.add_argument("before", metavar="A", type=Path, help="folder of `paceline run`")
    compare.add_argument("after", metavar="B", type=Path, help="folder of `paceline run`")
    compare.add_argument("--json", action="store_true", help="print one JSON object")
    compare.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    from paceline.run import Run

    before, after = Run.load(options.before), Run.load(options.after)
    found = before.compare(after)
    if options.json:
        print(json.dumps(found.to_dict()))
    else:
        print(f"A  {before}\nB  {after}\n{found}")
    return 0
