"""`paceline herding`: how well each order balances random rows."""

import argparse
import json
from typing import Any


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
    # NumPy and numba take most of a second to import, which no other command should wait for.
    from paceline.order import measure_herding

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
