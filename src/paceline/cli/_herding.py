"""`paceline herding`: how far each order lets random rows stray, beside ours."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

# NumPy and numba take most of a second to import, which no other command should wait for:
# what needs them is imported inside the functions.
if TYPE_CHECKING:
    from paceline.order import HerdingRun, OrderPolicy

REFERENCE = "d-grab"
# Enough rows to compile every loop that the whole simulation will run.
WARM_UP_EXAMPLES, WARM_UP_WORKERS = 300, 4


def add_herding(commands: Any) -> None:
    """Add the command to the subparsers of `paceline`."""
    herding = commands.add_parser(
        "herding",
        help="simulate how well each order of examples balances random gradients",
        description="Show each order policy the same Gaussian unit vectors, centred per worker, in "
        "every round, and print the largest absolute coordinate of any sum over whole steps: "
        "simulated. Times are measured, relative to the pass of D-GraB in the same run.",
    )
    herding.add_argument("--dim", type=int, default=1000, help="columns (default 1000)")
    herding.add_argument("--examples", type=int, default=1000, help="per worker (default 1000)")
    herding.add_argument("--workers", type=int, default=16, help="examples per step (default 16)")
    herding.add_argument("--rounds", type=int, default=5, help="epochs to learn from (default 5)")
    herding.add_argument("--trials", type=int, default=1, help="to average over (default 1)")
    herding.add_argument("--policies", help="names with commas between (default all)")
    herding.add_argument("--seed", type=int, default=1, help="of the first trial (default 1)")
    herding.add_argument("--json", action="store_true", help="print one JSON object")
    herding.set_defaults(run=run_herding)


def run_herding(options: argparse.Namespace) -> int:
    """Simulate and print."""
    for name in ("rounds", "trials"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    result = measure_herding(
        dim=options.dim,
        num_examples=options.examples,
        num_workers=options.workers,
        num_rounds=options.rounds,
        num_trials=options.trials,
        seed=options.seed,
        policies=options.policies.split(",") if options.policies else None,
    )
    print(json.dumps(result) if options.json else _table(result))
    return 0


def measure_herding(
    *,
    dim: int,
    num_examples: int,
    num_workers: int,
    num_rounds: int,
    num_trials: int = 1,
    seed: int = 1,
    policies: list[str] | None = None,
) -> dict[str, Any]:
    """Return bounds and times of some policies as plain values; the reference is always there."""
    made = order_policies()
    names = list(made) if policies is None else list(dict.fromkeys([REFERENCE, *policies]))
    unknown = [name for name in names if name not in made]
    if unknown:
        raise ValueError(f"policies must be among {', '.join(made)}, got {unknown[0]!r}")
    runs = _runs(
        [made[name] for name in names],
        dim=dim,
        num_examples=num_examples,
        num_workers=num_workers,
        num_rounds=num_rounds,
        seeds=range(seed, seed + num_trials),
    )
    reference_s = _pass_cpu_s(runs[names.index(REFERENCE)])
    return {
        "dim": dim,
        "examples": num_examples,
        "workers": num_workers,
        "rounds": num_rounds,
        "trials": num_trials,
        "source": "simulated; pass_cpu_s and relative_time measured",
        "bound": "largest absolute coordinate of any sum over whole steps; mean over trials",
        "reference": REFERENCE,
        "policies": {
            name: {**_summary(of_one), "relative_time": _pass_cpu_s(of_one) / reference_s}
            for name, of_one in zip(names, runs, strict=True)
        },
    }


def order_policies() -> "dict[str, Callable[[int, int, int], OrderPolicy]]":
    """Return what makes each policy of (number of examples, number of workers, seed)."""
    from paceline import order

    return {
        "random-reshuffling": lambda n, _, seed: order.random_reshuffling(n, seed=seed),
        "shuffle-once": lambda n, _, seed: order.shuffle_once(n, seed=seed),
        "flip-flop": lambda n, _, seed: order.flip_flop(n, seed=seed),
        "grab": lambda n, _, seed: order.mean_balance(n, seed=seed),
        "pair-balance": lambda n, _, seed: order.pair_balance(n, seed=seed),
        "i-b": lambda n, workers, seed: order.independent_mean_balance(n, workers, seed=seed),
        "i-pb": lambda n, workers, seed: order.independent_pair_balance(n, workers, seed=seed),
        "d-grab": lambda n, workers, seed: order.coordinated_pair_balance(n, workers, seed=seed),
        "recursive-mean-balance": lambda n, _, seed: order.recursive_mean_balance(n, seed=seed),
        "recursive-pair-balance": lambda n, _, seed: order.recursive_pair_balance(n, seed=seed),
        "self-balancing-walk": lambda n, _, seed: order.self_balancing_walk(n, seed=seed),
        "windowed-greedy": lambda n, _, seed: order.windowed_greedy(n, seed=seed),
        "halve-and-herd": lambda n, _, seed: order.halve_and_herd(n, seed=seed),
    }


def _runs(
    policies: "list[Callable[[int, int, int], OrderPolicy]]",
    *,
    dim: int,
    num_examples: int,
    num_workers: int,
    num_rounds: int,
    seeds: range,
) -> "list[list[HerdingRun]]":
    from paceline.order import gaussian_unit_rows, simulate_herding

    rows = gaussian_unit_rows(dim, WARM_UP_EXAMPLES, WARM_UP_WORKERS)
    for make in policies:
        policy = make(len(rows), WARM_UP_WORKERS, 0)
        simulate_herding(policy, rows, batch_size=WARM_UP_WORKERS, num_rounds=1)
    runs: list[list[HerdingRun]] = [[] for _ in policies]
    for seed in seeds:
        rows = gaussian_unit_rows(dim, num_examples, num_workers, seed=seed)
        for make, of_one in zip(policies, runs, strict=True):
            policy = make(len(rows), num_workers, seed)
            run = simulate_herding(policy, rows, batch_size=num_workers, num_rounds=num_rounds)
            of_one.append(run)
    return runs


def _summary(runs: "list[HerdingRun]") -> dict[str, Any]:
    rounds = list(zip(*(run.bounds for run in runs), strict=True))
    per_step = [sum(bound.per_step for bound in trials) / len(runs) for trials in rounds]
    per_example = [sum(bound.per_example for bound in trials) / len(runs) for trials in rounds]
    return {
        "bounds": per_step,
        "bounds_of_any_prefix": per_example,
        "smallest_of_a_trial": [min(bound.per_step for bound in trials) for trials in rounds],
        "largest_of_a_trial": [max(bound.per_step for bound in trials) for trials in rounds],
        "floor": min(per_step[1:]),
        "pass_cpu_s": _pass_cpu_s(runs),
    }


def _pass_cpu_s(runs: "list[HerdingRun]") -> float:
    from statistics import median

    return median(pass_cpu_s for run in runs for pass_cpu_s in run.pass_cpu_s)


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['examples']} x {result['workers']} vectors of {result['dim']} columns; "
        f"bound: {result['bound']}",
        f"{'':<24}{'time':>7}{'floor':>7}  rounds from 0",
    ]
    for name, policy in result["policies"].items():
        bounds = " ".join(f"{bound:6.2f}" for bound in policy["bounds"])
        lines.append(f"{name:<24}{policy['relative_time']:6.2f}x{policy['floor']:7.2f}  {bounds}")
    return "\n".join(lines)
