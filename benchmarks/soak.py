"""Claim: memory is linear in the examples of a plan, and flat over the steps of a run.

Plans 100 million examples for 1,024 workers; records and simulates 10,000 steps; trains for as
many steps as a step of 0.25 s makes in two hours, with all main parts together, on two gloo ranks;
opens and closes 200 wrapped models. Runs on Linux.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _process import peak_rss_bytes, reset_peak, rss_bytes
from _record import finish, parser
from _soak_ranks import SOAKS
from simulator import training_like_graph

import paceline
from paceline.balance import BalanceConfig, plan_epoch
from paceline.testing import run_ranks
from paceline.timeline import simulate

MIB = 2**20
NUM_WORKERS, BATCH_SIZE = 1024, 8192
CONFIGS: dict[str, dict[str, Any]] = {
    "equal": {},
    "padded free auto": {"padded": True, "counts": "free", "num_microbatches": "auto"},
}
TWO_HOURS_OF_STEPS = int(2 * 3600 / 0.25)
NUM_RECORDED_STEPS = 10_000
SIMULATED_RANKS = 2
# Bounds.
RECORDING_BYTES = 50e6
GROWTH_BYTES = 20e6  # What the recorder keeps of the steps included.
LINEAR_RATIO = 1.1
WARM_UP_SHARE = 0.2


def plan(kind: str, num_examples: int) -> dict[str, float]:
    """Plan an epoch in a fresh process; return what it took besides the costs."""
    config = BalanceConfig(batch_size=BATCH_SIZE, num_workers=NUM_WORKERS, **CONFIGS[kind])
    costs = np.empty(num_examples)
    rng = np.random.default_rng(0)
    for part in np.array_split(costs, 1 + num_examples // MIB):
        part[:] = rng.lognormal(5.0, 1.0, len(part))
    plan_epoch(costs[: 16 * BATCH_SIZE], config)
    before = rss_bytes()
    reset_peak()
    start_s = time.process_time()
    made = plan_epoch(costs, config)
    took_s = time.process_time() - start_s
    arrays = (getattr(made, name) for name in made.__slots__)
    kept = sum(one.nbytes for one in arrays if isinstance(one, np.ndarray))
    return {
        "num_examples": num_examples,
        "peak_bytes_per_example": (peak_rss_bytes() - before) / num_examples,
        "plan_bytes_per_example": kept / num_examples,
        "cpu_us_per_example": took_s / num_examples * 1e6,
    }


def recorded(num_steps: int = NUM_RECORDED_STEPS) -> paceline.Timeline:
    """Return what `watch` records of a small model."""
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with paceline.watch(model, optimizer) as run:
        for _ in range(num_steps):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    return run.gather()


def simulated() -> paceline.Timeline:
    """Return a simulated run with ten tasks a step and rank."""
    return simulate(training_like_graph(10 * NUM_RECORDED_STEPS * SIMULATED_RANKS))


def recording(name: str) -> dict[str, float]:
    """Make a timeline, its summary and its trace; return what all that took at its peak."""
    make: Callable[[], paceline.Timeline] = {"recorded": recorded, "simulated": simulated}[name]
    simulate(training_like_graph(200_000)).summary()  # While kernels are compiled.
    recorded(100).summary()  # While torch starts its threads.
    before = rss_bytes()
    reset_peak()
    timeline = make()
    timeline.summary()
    with tempfile.TemporaryDirectory() as folder:
        trace = timeline.to_chrome_trace(Path(folder, "trace.json"))
        file_bytes = trace.stat().st_size
    return {
        "num_spans": len(timeline),
        "peak_bytes": peak_rss_bytes() - before,
        "trace_bytes": file_bytes,
    }


def soak(name: str, num: int) -> dict[str, Any]:
    """Run one of the soaks on two ranks; return how what they hold grew after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        run_ranks(SOAKS[name], 2, folder, num)
        found = [json.loads(Path(folder, f"{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    samples = [one.pop("samples") for one in found]
    grown = {
        f"most_more_{key}": max(_growth([sample[key] for sample in one]) for one in samples)
        for key in samples[0][0]
    }
    digests = {one.get("digest") for one in found}
    return {
        "num": num,
        "wall_s": time.perf_counter() - start_s,
        **grown,
        "is_equal": len(digests) == 1,
        "first_sample": samples[0][0],
        "last_sample": samples[0][-1],
        "step_s": found[0].get("step_s"),
    }


def _growth(values: list[int]) -> int:
    """Return by how much the last tenth exceeds the first tenth after the warm-up, at most."""
    warm, width = int(len(values) * WARM_UP_SHARE), max(len(values) // 10, 1)
    return max(values[-width:]) - max(values[warm : warm + width])


def checks(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each figure with its bound and whether it holds."""
    made: dict[str, tuple[float, float]] = {}
    for kind, rows in found["plans"].items():
        each = [row["peak_bytes_per_example"] for row in rows]
        made[f"plan, {kind}: peak bytes per example over the smallest's"] = (
            each[-1] / each[0], LINEAR_RATIO,
        )  # fmt: skip
    for kind, row in found["recordings"].items():
        made[f"{kind} run: peak bytes"] = row["peak_bytes"], RECORDING_BYTES
    for name, row in found["soaks"].items():
        made[f"{name}: bytes grown"] = row["most_more_rss_bytes"], GROWTH_BYTES
        made[f"{name}: threads grown"] = row["most_more_num_threads"], 0
        made[f"{name}: descriptors grown"] = row["most_more_num_descriptors"], 0
        made[f"{name}: ranks that differ"] = int(not row["is_equal"]), 0
    return {
        name: {"figure": figure, "bound": bound, "holds": figure <= bound}
        for name, (figure, bound) in made.items()
    }


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """Call `function` in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *args).result()


def plans_and_recordings(num_examples: int) -> dict[str, Any]:
    numbers = [num_examples // 100, num_examples // 10, num_examples]
    return {
        "recordings": {name: alone(recording, name) for name in ("recorded", "simulated")},
        "plans": {kind: [alone(plan, kind, num) for num in numbers] for kind in CONFIGS},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Plan in processes of their own while the ranks train; only memory is judged."""
    with ThreadPoolExecutor(1) as beside:
        others = beside.submit(plans_and_recordings, options.examples)
        soaks = {
            "whole": soak("whole", options.steps),
            "sharded": soak("sharded", max(options.steps // 20, 50)),
            "wrappers": soak("wrappers", options.wrappers),
        }
        return {**others.result(), "soaks": soaks}


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--examples", type=int, default=100_000_000)
    flags.add_argument("--steps", type=int, default=TWO_HOURS_OF_STEPS)
    flags.add_argument("--wrappers", type=int, default=200)
    options = flags.parse_args()
    found = measure(options)
    finish("soak", options, {"checks": checks(found), **found}, "torch")


if __name__ == "__main__":
    main()
