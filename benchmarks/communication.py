"""Claim: our block planner comes near the bound where PyTorch's buckets leave the wire exposed.

On a real wire (`--wire netlab`: network namespaces with token buckets, as root on Linux), with
compute that is real or emulated (sleeping, with gradients of true size), against
DistributedDataParallel with several bucket sizes; or simulated (`--wire simulated`) on
published models, against all other policies.
"""

import argparse
import sys
from typing import Any

from _record import finish, parser

EMULATED_MB, REAL_MB = 36.0, 25.4


def main() -> None:
    options = _options()
    if options.wire == "simulated":
        from _comm_grid import grid
        from _comm_rows import rows_grid

        result = grid(options.ranks or [2, 8, 64, 1024])
        result["rows_first"] = rows_grid([n for n in options.ranks or [2, 8, 64] if n <= 64])
        finish("communication_simulated", options, result, "tokenizers")
        return
    from paceline.testing import why_not

    reason = why_not()
    if reason is not None:
        sys.exit(f"--wire netlab cannot run here: {reason}; --wire simulated needs nothing")
    result = {"wire": "netlab (tbf)", "compute": options.compute, "rows": _wire_rows(options)}
    finish(f"communication_{options.compute}", options, result, "torch")


def _options() -> argparse.Namespace:
    flags = parser(__doc__ or "")
    flags.add_argument("--wire", choices=("netlab", "simulated"), default="netlab")
    flags.add_argument("--rate", default="1gbit", help="of each link, as tc writes it")
    flags.add_argument("--ranks", type=int, nargs="+", help="one or several numbers of ranks")
    flags.add_argument("--compute", choices=("emulated", "real"), default="emulated")
    flags.add_argument("--gradient-mb", type=float, nargs="+", help="one or several sizes")
    flags.add_argument(
        "--wire-over-compute", type=float, nargs="+", help="emulated: sizes so, whatever the ranks"
    )
    flags.add_argument("--forward-ms", type=float, default=100.0, help="emulated; backward twice")
    flags.add_argument("--layers", type=int, default=24, help="emulated: equal layers")
    flags.add_argument("--tokens", type=int, default=256, help="real: per sequence")
    flags.add_argument("--buckets-mb", type=float, nargs="+", default=[25, 10, 4, 2, 1])
    flags.add_argument("--rounds", type=int, default=7)
    flags.add_argument("--steps", type=int, default=4, help="timed per round and method")
    flags.add_argument("--measure-steps", type=int, default=8, help="of our scheduler, untimed")
    flags.add_argument("--limit-s", type=float, default=600.0, help="of one row")
    options = flags.parse_args()
    if 25 not in options.buckets_mb:
        flags.error("--buckets-mb must hold 25, the default of DistributedDataParallel")
    if options.wire_over_compute and (options.gradient_mb or options.compute == "real"):
        flags.error("--wire-over-compute goes with emulated compute and without --gradient-mb")
    return options


def _wire_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    from _comm_wire import Case, wire_row

    rows = []
    for num_ranks in options.ranks or [2]:
        for gradient_mb in _sizes_mb(options, num_ranks):
            case = Case(
                compute=options.compute,
                rate=options.rate,
                ranks=num_ranks,
                gradient_mb=gradient_mb,
                forward_ms=options.forward_ms,
                layers=options.layers,
                tokens=options.tokens,
                buckets_mb=tuple(options.buckets_mb),
                rounds=options.rounds,
                steps=options.steps,
                measure_steps=options.measure_steps,
            )
            rows.append(wire_row(case, limit_s=options.limit_s))
            _tell(rows[-1])
    return rows


def _sizes_mb(options: argparse.Namespace, num_ranks: int) -> list[float]:
    from _comm_wire import wire_seconds

    if options.wire_over_compute:
        second_mb = 1e-6 / wire_seconds(1.0, num_ranks, options.rate)
        compute_s = 3e-3 * options.forward_ms
        return [share * compute_s * second_mb for share in options.wire_over_compute]
    return options.gradient_mb or [EMULATED_MB if options.compute == "emulated" else REAL_MB]


def _tell(row: dict[str, Any]) -> None:
    ours = row["paceline_s"]
    said = row["paceline_skipped"] if ours is None else f"paceline {ours * 1e3:.0f} ms"
    print(
        f"{row['ranks']} ranks, {row['gradient_mb']:.1f} MB, {row['compute']} compute: "
        f"ddp 25 MB {row['ddp_25_s'] * 1e3:.0f} ms, best ({row['ddp_best_bucket_mb']:g} MB) "
        f"{row['ddp_best_s'] * 1e3:.0f} ms, {said}, bound {row['bound_s'] * 1e3:.0f} ms",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
