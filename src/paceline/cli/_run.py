"""`paceline run`: launch a script, record it, and say what slowed it."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paceline.cli._model_flags import needing

TOLD = ("outcome", "gain", "predicted", "why_not", "bucket_cap_mb")
DESCRIPTION = (
    "Launch a training script as torchrun does, record every rank's steps without an edit to the "
    "script, and say what slowed it. Arguments in front of the script are torchrun's, and ours: "
    "--output, --price, --apply, --json. Those behind it are the script's."
)


def add_run(commands: Any) -> None:
    # All that follows is torchrun's to parse. Nothing begins with this prefix, so nothing looks
    # like a flag of this parser.
    run = commands.add_parser(
        "run",
        help="launch a script as torchrun does, record it, and say what slowed it",
        prefix_chars="\0",
        add_help=False,
    )
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    run.set_defaults(run=partial(_run, type(run)))


def _run(kind: type[argparse.ArgumentParser], options: argparse.Namespace) -> int:
    if options.arguments[:1] in (["-h"], ["--help"]) and find_spec("torch") is None:
        run_parser(kind).print_help()
        return 0
    with needing("paceline run", "torch"):
        from torch.distributed.run import get_args_parser

        from paceline.torch.run import launch
    parsed = _parsed(run_parser(kind, get_args_parser()), options.arguments)
    folder, exit_code = launch(parsed, ["paceline", "run", *options.arguments])
    _tell(folder.path, exit_code, as_json=parsed.json, before=parsed.before)
    return exit_code


def run_parser(
    kind: type[argparse.ArgumentParser], *theirs: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """Return torchrun's parser with our arguments in front, and errors on one line."""
    parser = kind(
        prog="paceline run", description=DESCRIPTION, parents=theirs, conflict_handler="resolve"
    )
    ours = parser.add_argument_group("of paceline")
    ours.add_argument("--output", type=Path, help="folder (default paceline-runs/SCRIPT-TIME)")
    ours.add_argument("--price", type=float, help="dollars per hour and rank, for the cost so far")
    ours.add_argument(
        "--apply",
        action="store_true",
        help="change what can be changed without an edit, and say what it gained; RUN, an earlier "
        "run's folder, may follow to be compared with",
    )
    ours.add_argument("--json", action="store_true", help="print one JSON object, last line")
    return parser


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse; after `--apply` a run's folder may stand where the script would, and belongs to it."""
    from paceline.run import RunFolder

    options = parser.parse_args(arguments)
    first, before = options.training_script, None
    if options.apply and RunFolder(Path(first)).is_run():
        place, before = list(arguments).index(first), Path(first)
        options = parser.parse_args([*arguments[:place], *arguments[place + 1 :]])
    options.applies, options.before = "yes" if options.apply else "no", before
    return options


def _tell(path: Path, exit_code: int, *, as_json: bool, before: Path | None) -> None:
    """Print the verdict to standard error, as the rest is the script's, and JSON where it goes."""
    from paceline.run import Run, RunFolder

    lines = []
    told: dict[str, Any] = {"run": str(path), "step_s": None, "causes": []}
    if RunFolder(path).ranks():  # Else rank 0 said why.
        run = Run.load(path)
        verdict = run.verdict()
        lines = [str(verdict)]
        applied = run.info.get("applied")
        if applied:
            told["applied"] = {name: applied.get(name) for name in TOLD}
        if before is not None:
            comparison = Run.load(before).compare(run)
            lines.append(f"against {before}: {comparison}")
            told["compared"] = comparison.to_dict()
        told |= {"step_s": run.step_s, "causes": [_cause(one) for one in verdict.causes]}
    ended = f", the script ended with exit status {exit_code}" if exit_code else ""
    print(*lines, f"recorded in {path}{ended}", sep="\n", file=sys.stderr)
    if as_json:
        print(json.dumps(told))


def _cause(cause: Any) -> dict[str, Any]:
    return {
        "cause": cause.cause, "share": cause.share, "gain": [cause.gain_low, cause.gain_high]
    }  # fmt: skip
