"""The `paceline` command."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from paceline import __version__
from paceline.cli._collect import add_collect
from paceline.cli._compare import add_compare
from paceline.cli._estimate import add_estimate
from paceline.cli._fit import add_fit
from paceline.cli._herding import add_herding
from paceline.cli._model_flags import needing
from paceline.cli._report import add_report
from paceline.cli._run import add_run
from paceline.cli._trace import add_trace
from paceline.cli._verify import add_verify
from paceline.cli._whatif import add_whatif
from paceline.cli.plan import add_plan
from paceline.errors import MissingExtraError, PacelineError

USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130
MAX_LINE = 800


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {_line(message)} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status.

    0 for success, 1 for a run that failed, 2 for what the user passed, 130 for Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("paceline: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, MissingExtraError) as error:
        print(f"paceline: error: {_line(error)}", file=sys.stderr)
        return USAGE_ERROR
    except MemoryError as error:
        print(f"paceline: error: not enough memory for this: {_line(error)}", file=sys.stderr)
        return USAGE_ERROR
    except (PacelineError, OSError) as error:
        print(f"paceline: {_line(error)}", file=sys.stderr)
        return FAILURE


def _line(message: object) -> str:
    """Return a message on one line, its middle left out if it is long."""
    text = " ".join(str(message).split())
    return (
        text if len(text) <= MAX_LINE else f"{text[: MAX_LINE // 2]} ... {text[-MAX_LINE // 2 :]}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="paceline",
        description="Keep every worker of a distributed training job moving at the same pace.",
    )
    parser.add_argument("--version", action="version", version=f"paceline {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    adders = (_add_demo, add_run, add_plan, add_estimate, add_collect, add_fit, add_herding)
    for add in (*adders, add_report, add_trace, add_compare, add_whatif, add_verify):
        add(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[OneLineParser]") -> None:
    demo = commands.add_parser(
        "demo",
        help="compare default PyTorch, tuned PyTorch and Paceline on real text",
        description="Train one model on real text in four ways at once, default and tuned PyTorch "
        "among them, and end with the verdict over the default. The folder keeps each way as a run "
        "for report, compare and whatif.",
    )
    demo.add_argument("--ranks", type=int, default=2, help="gloo processes (default 2)")
    demo.add_argument(
        "--seconds", type=float, default=60.0, help="time to aim for, 15 to 90 (default 60)"
    )
    demo.add_argument(
        "--output", type=Path, default=Path("paceline-demo"), help="folder (default paceline-demo)"
    )
    demo.add_argument("--seed", type=int, default=0, help="of weights and order (default 0)")
    demo.add_argument("--json", action="store_true", help="print one JSON object, last line")
    demo.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> int:
    with needing("the demo", "torch,report"):
        import bokeh  # noqa: F401
        from rich.console import Console

        from paceline.demo import DemoConfig, run_demo, show, show_verdict
    config = DemoConfig(
        num_ranks=options.ranks, seconds=options.seconds, output=options.output, seed=options.seed
    )
    result = run_demo(config)
    if options.json:
        print(json.dumps(result.to_dict()))
    else:
        show(result, Console())
        show_verdict(result.recorded, Console())
    if not result.losses_agree:
        print(
            "paceline: the losses of default PyTorch and Paceline differ; please report this",
            file=sys.stderr,
        )
    return 0 if result.losses_agree else FAILURE
