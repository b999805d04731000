"""Claim: planned micro-batches train faster than default PyTorch, at equal losses.

The demo's four ways: default; tuned (length-grouped batches, best DDP bucket size); Paceline with
the same global batches as the default; Paceline with a window of 8 steps.
"""

import tempfile
from pathlib import Path

from _record import finish, parser
from rich.console import Console

from paceline.demo import DemoConfig, run_demo, show


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--ranks", type=int, default=2)
    flags.add_argument("--seconds", type=float, default=60.0)
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = DemoConfig(
            num_ranks=options.ranks, seconds=options.seconds, output=Path(folder) / "paceline-demo"
        )
        result = run_demo(config)
        if not options.json:
            show(result, Console())
    values = result.to_dict()
    del values["trace"], values["summary"], values["recorded"]  # gone with the folder
    finish("demo", options, values, "torch")


if __name__ == "__main__":
    main()
