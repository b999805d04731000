"""`paceline plan`: what a plan of one's own would reach, before anything runs."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paceline.cli.plan._buckets import JOB, run_buckets
from paceline.cli.plan._frontier import frontier_text

# NumPy and numba take most of a second to import, which no other command should wait for:
# what needs them is imported inside the functions.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from paceline.balance import BalanceConfig
    from paceline.cost import ExampleCost

COSTS = "linear[:PER_TOKEN[,FIXED]] or quadratic:LINEAR,QUADRATIC[,FIXED]"
# Enough steps to compile every loop that the whole plan will run.
WARM_UP_STEPS = 2


def add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="plan one epoch from example sizes, or gradient buckets, and say what it gains",
        description="Plan one epoch from example sizes and say what it gains. All but plan_cpu_s, "
        "the measured CPU time of planning once with compiled loops, is simulated from the costs. "
        "With --buckets, simulate gradient buckets for a job instead.",
    )
    plan.add_argument("--buckets", metavar="JOB", help=f"bucket sizes for a job: {JOB}")
    plan.add_argument("--sizes", type=Path, help=".npy file of example sizes")
    plan.add_argument("--workers", type=int, help="data-parallel ranks")
    plan.add_argument("--batch-size", type=int, help="examples per step, all workers")
    plan.add_argument("--cost", default="linear", help=f"{COSTS} (default linear)")
    plan.add_argument("--padded", action="store_true", help="micro-batches are padded")
    plan.add_argument("--counts", choices=("equal", "free"), default="equal")
    plan.add_argument("--window", default="1", help="steps to move over, or epoch (default 1)")
    plan.add_argument("--mixing", type=float, help="instead: 1 plain shuffle, 0 most even")
    plan.add_argument("--speeds", help="relative speed of each worker: 1,1,0.5,...")
    plan.add_argument("--microbatches", default="1", help="per worker and step, or auto (1)")
    plan.add_argument("--max-tokens", type=float, help="summed size of a micro-batch at most")
    plan.add_argument("--max-cost", type=float, help="summed cost of a micro-batch at most")
    plan.add_argument("--max-examples", type=float, help="examples of a micro-batch at most")
    tails = ("drop", "pad", "wrap", "zero-weight")
    plan.add_argument("--tail", choices=tails, default="zero-weight", help="of a last short batch")
    plan.add_argument("--frontier", action="store_true", help="try windows: even against mixed")
    plan.add_argument("--seed", type=int, default=0, help="of the shuffle (default 0)")
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    plan.set_defaults(run=run_plan)


def run_plan(options: argparse.Namespace) -> int:
    sizes, workers, batch_size = options.sizes, options.workers, options.batch_size
    needed = {"--sizes": sizes, "--workers": workers, "--batch-size": batch_size}
    given = [flag for flag, value in needed.items() if value is not None]
    if options.buckets is not None:
        if given:
            raise ValueError(f"--buckets plans from a job alone; leave {given[0]} out")
        return run_buckets(options.buckets, is_json=options.json)
    if missing := [flag for flag in needed if flag not in given]:
        raise ValueError(f"the following arguments are required: {', '.join(missing)}")
    return _run_epoch(options)


def _run_epoch(options: argparse.Namespace) -> int:
    """Plan two epochs, measure the first, and print what came out."""
    from paceline.balance import measure_quality, mixing_frontier, plan_epoch, regime_of
    from paceline.cost import Worker, example_costs

    config, workers = _config(options), None
    if options.speeds is not None:
        workers = tuple(Worker(speed=speed) for speed in _numbers("speeds", options.speeds))
    sizes = _read_sizes(options.sizes)
    costs = example_costs(_cost_model(options.cost), sizes)
    config = config.with_window(len(costs))
    if options.frontier:
        stops = mixing_frontier(costs, config, sizes=sizes, workers=workers)
        print(frontier_text(stops, is_json=options.json))
        return 0
    num_first = max(WARM_UP_STEPS * config.batch_size, config.num_workers)
    first = slice(0, num_first)
    plan_epoch(costs[first], config, sizes=sizes[first], workers=workers)
    start = time.process_time()
    plan = plan_epoch(costs, config, sizes=sizes, workers=workers)
    plan_cpu_s = time.process_time() - start
    next_plan = plan_epoch(costs, config, epoch=1, sizes=sizes, workers=workers)
    quality = measure_quality(plan, costs, config, next_plan)
    result = {
        **asdict(quality),
        "plan_cpu_s": plan_cpu_s,
        "regime": str(regime_of(costs, config, workers=workers)),
        "workers": config.num_workers,
        "batch_size": config.batch_size,
        "counts": config.counts,
        "window": options.window if options.mixing is None else str(config.window),
        "source": "simulated",
    }
    print(json.dumps(result) if options.json else _table(result))
    return 0


def _config(options: argparse.Namespace) -> "BalanceConfig":
    from paceline.balance import BalanceConfig, Limits

    limits = {
        name: getattr(options, name)
        for name in ("max_tokens", "max_cost", "max_examples")
        if getattr(options, name) is not None
    }
    return BalanceConfig(
        batch_size=options.batch_size,
        num_workers=options.workers,
        counts=options.counts,
        padded=options.padded,
        window=_window(options.window),
        mixing=options.mixing,
        num_microbatches=_microbatches(options.microbatches),
        limits=Limits(**limits),
        tail=options.tail,
        seed=options.seed,
    )


def _microbatches(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"microbatches must be a number or 'auto', got {text!r}") from None


def _window(text: str) -> int:
    if text == "epoch":
        return sys.maxsize
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"window must be a number of steps or 'epoch', got {text!r}") from None


def _cost_model(text: str) -> "ExampleCost":
    from paceline.cost import LinearCost, QuadraticCost

    name, _, rest = text.partition(":")
    numbers = _numbers("cost", rest) if rest else []
    if name == "linear" and len(numbers) <= 2:
        return LinearCost(*numbers)
    if name == "quadratic" and len(numbers) in (2, 3):
        return QuadraticCost(*numbers)
    raise ValueError(f"cost must be {COSTS}, got {text!r}")


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must hold numbers with commas between, got {text!r}") from None


def _read_sizes(path: Path) -> "NDArray[np.float64]":
    """Read one column of numbers; never unpickles."""
    from paceline._files import read_array
    from paceline.cost import checked_column

    sizes = read_array(path)
    if sizes.dtype.kind not in "iuf":
        raise ValueError(f"{path} must hold numbers, got {sizes.dtype}")
    if not sizes.size:
        raise ValueError(f"{path} holds no sizes; a plan needs one per example")
    return checked_column("sizes", sizes)


def _table(result: dict[str, Any]) -> str:
    meaning = {
        "imbalance": "makespan over (total / workers), 1 is perfect; simulated",
        "lower_bound": "of the imbalance, for these steps",
        "reunion": "times likelier than by chance that a pair meets again",
        "cost_autocorrelation": "of step cost, lag 1",
        "plan_cpu_s": "CPU seconds to plan one epoch, compiled loops",
        "num_steps": "optimizer steps per epoch",
        "num_examples": "examples per epoch, repeats not counted",
    }
    lines = [f"{key:<22}{result[key]:<12.6g}{text}" for key, text in meaning.items()]
    return "\n".join([*lines, "", result["regime"]])
