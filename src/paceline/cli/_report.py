"""`paceline report`: a recorded run as one page."""

import argparse
import webbrowser
from pathlib import Path
from typing import Any

from paceline.cli._model_flags import needing

DEFAULT_NAME = "report.html"


def add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="write one HTML page about a recorded run",
        description="Write one HTML page about a run that `paceline run` recorded: verdict, "
        "timeline, step times, who waited for whom. The page needs no network and no other file.",
    )
    report.add_argument("folder", metavar="RUN", type=Path, help="folder that `paceline run` wrote")
    report.add_argument(
        "--output", type=Path, help=f"file to write (default {DEFAULT_NAME} in the folder)"
    )
    report.add_argument("--open", action="store_true", help="open the page in a browser")
    report.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    with needing("the report", "report"):
        import bokeh  # noqa: F401

        from paceline.report import write_report
    from paceline.run import Run

    run = Run.load(options.folder)
    path = write_report(run, options.output or options.folder / DEFAULT_NAME)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if options.open and not webbrowser.open(path.resolve().as_uri()):
        print(f"no browser was found; open {path} in one")
    return 0
