"""Claim: balance on the bound and near-random mixing at once, planned in a quarter second per 1M.

Every method runs on the same sizes, in the same run, and is measured with the same ruler. The
peers enter as installed packages; `pip install --group bench` brings those that install next to
torch. The other two need their dependencies left out:

    pip install --no-deps onnxruntime-training==1.19.2 verl==0.9.1
    pip install onnx ray tensordict==0.10.0 pandas codetiming hydra-core
"""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _balance_peers import BATCH_SIZE, LINEAR, PEERS, QUADRATIC, Prepare, as_plan
from _record import finish, parser, spread
from numpy.typing import NDArray

from paceline.balance import BalanceConfig, EpochPlan, measure_quality, plan_epoch
from paceline.cost import QuadraticCost, example_costs

COST = QuadraticCost(LINEAR, QUADRATIC)
NUM_WORKERS = (8, 64)
WARM_UP_EXAMPLES, SLOW_EXAMPLES, SLOW_S = 20_480, 102_400, 60.0
HUGE = 1024, 8192  # workers, batch size
LIBRI = Path(__file__).parents[2] / "shared" / "sizes" / "librispeech100_20ms.npy"

CUT: dict[str, Any] = {"padded": True, "counts": "free", "num_microbatches": "auto"}
Variants = dict[str, dict[str, Any]]
OURS: Variants = {
    "paceline stable": {},
    "paceline stable, free counts": {"counts": "free"},
    "paceline window 16": {"window": 16},
    "paceline window 16, free counts": {"window": 16, "counts": "free"},
    "paceline window epoch": {"window": sys.maxsize},
}
OURS_PADDED: Variants = {
    "paceline padded": {"padded": True, "counts": "free"},
    "paceline padded, window 16": {"padded": True, "counts": "free", "window": 16},
    "paceline padded, micro-batches by plan": CUT,
    "paceline padded, micro-batches by plan, window 16": CUT | {"window": 16},
}


def text_sizes(num_examples: int) -> NDArray[np.int64]:
    """Return log-normal sizes, median 350, sigma 1.1, clipped to 8..8192."""
    sizes = np.random.default_rng(0).lognormal(np.log(350), 1.1, num_examples)
    return np.clip(sizes, 8, 8192).astype(np.int64)


def size_sets(libri: Path) -> dict[str, NDArray[np.int64]]:
    sets = {"text": text_sizes(32_768)}
    if libri.exists():
        sizes = np.load(libri, allow_pickle=False).astype(np.int64)
        # Whole global batches only, so that no method's tail policy plays a part.
        sets["libri"] = sizes[: len(sizes) // BATCH_SIZE * BATCH_SIZE]
    return sets


def our_config(num_workers: int, variant: dict[str, Any]) -> BalanceConfig:
    return BalanceConfig(batch_size=BATCH_SIZE, num_workers=num_workers, tail="drop", **variant)


def rounded_quality(
    plans: list[EpochPlan], costs: NDArray[np.float64], config: BalanceConfig
) -> dict[str, Any]:
    quality = measure_quality(plans[0], costs, config, plans[1])
    return {
        "imbalance": round(quality.imbalance, 4),
        "lower_bound": round(quality.lower_bound, 4),
        "reunion": round(quality.reunion or 0.0, 3),
        "cost_autocorrelation": round(quality.cost_autocorrelation, 3),
        "examples_per_step": round(len(plans[0].examples) / quality.num_steps, 1),
        "examples_left_out": len(costs) - quality.num_examples,
    }


def our_qualities(
    costs: NDArray[np.float64], num_workers: int, variants: Variants
) -> dict[str, Any]:
    found = {}
    for name, variant in variants.items():
        config = our_config(num_workers, variant)
        plans = [plan_epoch(costs, config, epoch=epoch) for epoch in (0, 1)]
        found[name] = rounded_quality(plans, costs, config)
    return found


def peer_qualities(
    peers: dict[str, Prepare], sizes: NDArray[np.int64], num_workers: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the quality of each peer without and with padding, over two epochs."""
    costs = example_costs(COST, sizes)
    plain: dict[str, Any] = {}
    padded: dict[str, Any] = {}
    for name, prepare in peers.items():
        if num_workers > PEERS[name].most_workers:
            continue
        plan = prepare(sizes, costs, num_workers)
        ranks = [[plan(epoch, rank) for rank in range(num_workers)] for epoch in (0, 1)]
        config = our_config(num_workers, {"counts": PEERS[name].counts})
        for found, is_padded in ((plain, False), (padded, True)):
            plans = [as_plan(each, costs, padded=is_padded) for each in ranks]
            found[name] = rounded_quality(plans, costs, replace(config, padded=is_padded))
    return plain, padded


def qualities(peers: dict[str, Prepare], sets: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    found: dict[str, Any] = {"unpadded": {}, "padded": {}}
    for set_name, sizes in sets.items():
        costs = example_costs(COST, sizes)
        for num_workers in NUM_WORKERS:
            key = f"{set_name} W={num_workers}"
            plain, padded = peer_qualities(peers, sizes, num_workers)
            found["unpadded"][key] = plain | our_qualities(costs, num_workers, OURS)
            found["padded"][key] = padded | our_qualities(costs, num_workers, OURS_PADDED)
    return found


Way = Callable[[int], object]  # plans one epoch


def our_plan(costs: NDArray[np.float64], config: BalanceConfig, epoch: int) -> EpochPlan:
    return plan_epoch(costs, config, epoch=epoch)


def our_ways(num_examples: int, num_workers: int) -> dict[str, Way]:
    costs = example_costs(COST, text_sizes(num_examples))
    return {
        name: partial(our_plan, costs, our_config(num_workers, variant))
        for name, variant in (OURS | OURS_PADDED).items()
    }


def peer_way(prepare: Prepare, num_examples: int, num_workers: int) -> Way:
    """Return what one rank does per epoch; what a user has at hand is made outside."""
    sizes = text_sizes(num_examples)
    plan = prepare(sizes, example_costs(COST, sizes), num_workers)
    return lambda epoch: plan(epoch, 0)


def cpu_seconds(plan: Way, epoch: int) -> float:
    gc.collect()
    start = time.process_time()
    plan(epoch)
    return time.process_time() - start


def warm_up(ways: dict[str, Way]) -> dict[str, float]:
    """Run each way twice; return the seconds of the second time."""
    for plan in ways.values():
        plan(0)
    return {name: cpu_seconds(plan, 1) for name, plan in ways.items()}


def planning_times(
    peers: dict[str, Prepare], num_workers: int, num_examples: int, num_rounds: int
) -> dict[str, Any]:
    """Time ours and theirs in turn, round after round; slow ones on fewer examples, scaled."""
    warm_up(our_ways(WARM_UP_EXAMPLES, num_workers))
    first_s = warm_up(
        {name: peer_way(peer, WARM_UP_EXAMPLES, num_workers) for name, peer in peers.items()}
    )
    most_s = SLOW_S * WARM_UP_EXAMPLES / num_examples
    num_timed = {
        name: min(SLOW_EXAMPLES, num_examples) if seconds > most_s else num_examples
        for name, seconds in first_s.items()
    }
    ways = our_ways(num_examples, num_workers) | {
        name: peer_way(peer, num_timed[name], num_workers) for name, peer in peers.items()
    }
    rounds = [
        {name: cpu_seconds(plan, epoch) for name, plan in ways.items()}
        for epoch in range(num_rounds)
    ]
    found = {}
    for name in ways:
        num = num_timed.get(name, num_examples)
        found[name] = spread([seconds[name] * num_examples / num for seconds in rounds])
        found[name]["num_examples_timed"] = num
    return found


def plan_once(
    num_examples: int, num_workers: int, variant: dict[str, Any], batch_size: int = BATCH_SIZE
) -> dict[str, Any]:
    """Plan once in this process; return the time and the peak memory on top."""
    config = replace(our_config(1, variant), batch_size=batch_size, num_workers=num_workers)
    plan_epoch(example_costs(COST, text_sizes(WARM_UP_EXAMPLES)), config)
    costs = example_costs(COST, text_sizes(num_examples))
    before = _resident_bytes()
    _forget_peak()
    start, start_wall = time.process_time(), time.perf_counter()
    plan = plan_epoch(costs, config)
    seconds, wall_s = time.process_time() - start, time.perf_counter() - start_wall
    offsets = plan.micro_offsets, plan.worker_offsets
    kept = sum(each.nbytes for each in (plan.examples, plan.is_repeat, *offsets, plan.load))
    return {
        "num_examples": num_examples,
        "plan_cpu_s": seconds,
        "plan_wall_s": wall_s,
        "peak_bytes_per_example": round((_resident_bytes("VmHWM") - before) / num_examples, 1),
        "kept_bytes_per_example": round(kept / num_examples, 1),
    }


def _resident_bytes(field: str = "VmRSS") -> int:
    """Return the resident memory of this process, or its peak since `_forget_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def scaling(num_examples: int, large: int, huge: int) -> dict[str, Any]:
    """Plan ever more examples, each time in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        return {"skipped": "needs a /proc file system"}
    todo = [
        ("paceline stable", {}, num_examples),
        ("paceline stable", {}, large),
        ("paceline window 16", {"window": 16}, num_examples),
        ("paceline window 16", {"window": 16}, large),
        ("paceline padded, window 16", OURS_PADDED["paceline padded, window 16"], num_examples),
    ]
    context = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {}
    cases = [(*each, num_workers, BATCH_SIZE) for each in todo for num_workers in NUM_WORKERS]
    cases += [(*each[:2], huge, *HUGE) for each in (todo[0], todo[2]) if huge]
    for name, variant, num, num_workers, batch_size in cases:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            job = pool.submit(plan_once, num, num_workers, variant, batch_size)
            found[f"{name} W={num_workers} n={num}"] = job.result()
    return found


def installed_peers() -> tuple[dict[str, Prepare], dict[str, str]]:
    """Return the peers that can be imported, and why the others cannot."""
    found, missing = {}, {}
    for name, peer in PEERS.items():
        try:
            found[name] = peer.load()
        except ImportError as error:
            missing[name] = f"not installed: {peer.package} ({error})"
    return found, missing


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--examples", type=int, default=1_000_000)
    flags.add_argument("--large", type=int, default=10_000_000)
    flags.add_argument("--huge", type=int, default=100_000_000, help="0 leaves it out; 9 GB")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--libri", type=Path, default=LIBRI, help="a second set of sizes")
    options = flags.parse_args()
    warnings.simplefilter("ignore")  # of the peers
    peers, missing = installed_peers()
    sets = size_sets(options.libri)
    num_examples, large = (
        number // BATCH_SIZE * BATCH_SIZE for number in (options.examples, options.large)
    )
    result = {
        "sizes": {
            "text": "32768 log-normal, median 350, sigma 1.1, clipped to 8..8192, seed 0",
            "libri": f"{len(sets['libri'])} of {options.libri.name}"
            if "libri" in sets
            else f"skipped: no file {options.libri.name}",
        },
        "cost": f"{LINEAR} n + {QUADRATIC} n^2, global batch {BATCH_SIZE}",
        "quality_simulated": qualities(peers, sets),
        "plan_cpu_s": {
            f"W={num_workers}": planning_times(peers, num_workers, num_examples, options.rounds)
            for num_workers in NUM_WORKERS
        },
        "plan_cpu_s_num_examples": num_examples,
        "scaling": scaling(num_examples, large, options.huge),
        "notes": {name: peer.note for name, peer in PEERS.items() if peer.note},
        "missing": missing,
    }
    finish("balance", options, result, "torch", *sorted({peer.package for peer in PEERS.values()}))


if __name__ == "__main__":
    main()
