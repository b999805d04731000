"""`paceline whatif`: a measured run simulated on more ranks, another wire, a faster device."""

import argparse
import json
from pathlib import Path
from typing import Any

from paceline._files import shown
from paceline.cli._estimate import parse_link


def add_whatif(commands: Any) -> None:
    whatif = commands.add_parser(
        "whatif",
        help="simulate a recorded run with something changed",
        description="Simulate a recorded run on other numbers of ranks, each with the work per "
        "step that it had, and with another wire, device, balance or communication.",
    )
    whatif.add_argument("folder", metavar="RUN", type=Path, help="folder of `paceline run`")
    whatif.add_argument(
        "--workers", default="1..4096", help="64, or 1,2,8, or 1..4096 for powers of two (default)"
    )
    whatif.add_argument("--link", help="between ranks: 100Gbit/s, 25GB/s, 10Gbit/s+20us")
    whatif.add_argument("--latency-us", type=float, help="of a hop in microseconds (default 5)")
    whatif.add_argument("--device-speed", type=float, default=1.0, help="times faster (default 1)")
    whatif.add_argument("--balance", default="none", help="none (default), window or perfect")
    whatif.add_argument("--comm", default="ddp", help="ddp (default) or overlapped")
    whatif.add_argument("--cores", type=int, help="of one machine that all ranks share")
    whatif.add_argument("--json", action="store_true", help="print one JSON object")
    whatif.set_defaults(run=run_whatif)


def run_whatif(options: argparse.Namespace) -> int:
    from paceline.run import Run

    bytes_per_s, hop_s = parse_link(options.link) if options.link is not None else (None, None)
    if options.latency_us is not None:
        hop_s = 1e-6 * options.latency_us
    curve = Run.load(options.folder).what_if(
        parse_workers(options.workers),
        bytes_per_s=bytes_per_s,
        hop_s=hop_s,
        device_speed=options.device_speed,
        balance=options.balance,
        comm=options.comm,
        num_cores=options.cores,
    )
    print(json.dumps(curve.to_dict()) if options.json else curve)
    return 0


def parse_workers(text: str) -> list[int]:
    """Return the numbers of ranks that `64`, `1,2,8` or `1..4096` stand for.

    Examples:
        >>> parse_workers("1..6"), parse_workers("2,64")
        ([1, 2, 4, 6], [2, 64])
    """
    from paceline.run import powers_of_two

    first, dots, last = text.partition("..")
    try:
        if dots and 1 <= int(first) <= int(last):
            return powers_of_two(int(first), int(last))
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"workers must be a number, a list 1,2,8 or a range 1..4096, got {shown(text)}"
        ) from None
