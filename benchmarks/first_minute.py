"""Claim: a fresh install plans 10,000 examples within 3 seconds, and at once afterwards.

A copy of the package stands for a fresh install: byte-compiled as pip does, with an empty home.
Processes start at the same time and each plans for eight workers by itself, as ranks do. Cold is
the first start, warm the next one in the same home.
"""

import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _record import finish, parser, spread

import paceline

RANK = """
import json, sys, time
marks = [time.perf_counter()]
def mark(): marks.append(time.perf_counter())
import torch; mark()
import paceline.torch; mark()
import numpy as np
num_examples, rank = map(int, sys.argv[1:])
sizes = np.random.default_rng(0).lognormal(5.5, 0.9, num_examples).round() + 1
mark()
from paceline.torch import BalancedBatchSampler, Replica  # Loads what balances, so it counts.
place = Replica(rank=rank, num_replicas=8)
next(iter(BalancedBatchSampler(sizes, batch_size=64, counts="free", process_group=place))); mark()
took = dict(zip(("import_torch_s", "import_paceline_torch_s", "", "first_plan_s"),
                (b - a for a, b in zip(marks, marks[1:]))))
print(json.dumps({name: s for name, s in took.items() if name}))
"""


def install(folder: Path, is_writable: bool) -> Path:
    """Copy the package to `folder`; without write permissions if asked, which root may ignore."""
    site = folder / "site"
    source = Path(paceline.__file__).parent
    shutil.copytree(source, site / "paceline", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(site, quiet=2)
    if not is_writable:
        for path in (*site.rglob("*"), site):
            path.chmod(0o555 if path.is_dir() else 0o444)
    return site


def start_ranks(site: Path, home: Path, num_ranks: int, num_examples: int) -> dict[str, Any]:
    """Start all at once; return what each took, and what they said meanwhile."""
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept.pop("NUMBA_CACHE_DIR", None)
    kept |= {"PYTHONPATH": str(site), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(num_examples), str(rank)],
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    ends = [rank.communicate() for rank in ranks]
    failed = [err for rank, (_, err) in zip(ranks, ends, strict=True) if rank.returncode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {num_ranks} ranks failed:\n{failed[0]}")
    took = [json.loads(out) for out, _ in ends]
    found: dict[str, Any] = {name: spread([one[name] for one in took]) for name in took[0]}
    found["slowest_first_plan_s"] = max(one["first_plan_s"] for one in took)
    return found | {"said": "".join(err for _, err in ends).splitlines()}


def measure(num_examples: int, num_ranks: int, is_writable: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        site = install(Path(folder), is_writable)
        before = sorted(site.rglob("*"))
        found = {
            start: start_ranks(site, Path(folder, "home"), num_ranks, num_examples)
            for start in ("cold", "warm")
        }
        written = len(set(site.rglob("*")) - set(before))
        for path in (site, *site.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return found | {"num_files_written_beside_source": written}


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--ranks", type=int, nargs="+", default=[1, 8])
    options = flags.parse_args()
    result = {
        f"{num_examples:,} examples, {num_ranks} ranks, {place}": measure(
            num_examples, num_ranks, place == "writable"
        )
        for num_examples, places in (
            (10_000, ("writable", "read-only")),
            (1_000_000, ("writable",)),
        )
        for num_ranks in options.ranks
        for place in places
    }
    finish("first_minute", options, result, "torch")


if __name__ == "__main__":
    main()
