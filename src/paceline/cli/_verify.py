"""`paceline verify`: whether divided batches have the gradients of plain ones."""

import argparse
import json
import sys
from functools import partial
from typing import Any

from paceline.cli._model_flags import needing
from paceline.cli._run import run_parser

FAILURE = 1


def add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="compare gradients of divided batches with plain ones, on a script's model and data",
        prefix_chars="\0",
        add_help=False,
    )
    verify.add_argument("arguments", nargs=argparse.REMAINDER)
    verify.set_defaults(run=partial(_verify, type(verify)))


def _verify(kind: type[argparse.ArgumentParser], options: argparse.Namespace) -> int:
    with needing("paceline verify", "torch"):
        from torch.distributed.run import get_args_parser

        from paceline.torch.run import launch
    parser = run_parser(kind, get_args_parser())
    parser.prog = "paceline verify"
    parsed = parser.parse_args(options.arguments)
    parsed.applies, parsed.before = "verify", None
    folder, exit_code = launch(parsed, ["paceline", "verify", *options.arguments])
    if exit_code or not folder.is_run():
        print(f"the script ended with exit status {exit_code}", file=sys.stderr)
        return exit_code or FAILURE
    return _tell(folder.read_info().get("applied") or {}, as_json=parsed.json)


def _tell(applied: dict[str, Any], *, as_json: bool) -> int:
    from paceline.run import checks_of

    checks = checks_of(applied)
    passed = all(check.passed is not False for check in checks)
    print(*checks, sep="\n", file=sys.stderr)
    if as_json:
        rows = [check._asdict() for check in checks]
        print(json.dumps({"passed": passed, "checks": rows, "measured": applied}))
    return 0 if passed else FAILURE
