"""What torch elastic starts on each rank: install the recorder, then run the script as Python does.

It is started as `python -m paceline.torch.run ORDER script arguments`, where the order is JSON.
"""

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

from paceline.run import RunFolder
from paceline.torch.run._facts import hardware, versions
from paceline.torch.run._live import LiveLine
from paceline.torch.run._recorder import Recorder
from paceline.torch.run._signals import finish_on_sigterm

T = TypeVar("T")
FAILURE, INTERRUPTED = 1, 130
CHILDREN_S = 1.0


class Order(NamedTuple):
    """What the launcher tells each rank.

    Attributes:
        folder: Of the run.
        command: What the user typed.
        is_module: Whether the script is the name of a module.
        price: Dollars per hour and rank; None if not known.
        applies: Whether to change what can be changed from outside, or to "verify" that.
        bucket_cap_mb: Of DistributedDataParallel, where the script leaves it open.
    """

    folder: str
    command: list[str]
    is_module: bool
    price: float | None = None
    applies: Literal["no", "yes", "verify"] = "no"
    bucket_cap_mb: float | None = None


def main(arguments: Sequence[str]) -> int:
    """Run a script and record it; return the exit status that it would have had."""
    order, script = Order(**json.loads(arguments[0])), arguments[1]
    rank = int(os.environ.get("RANK", "0"))
    folder = RunFolder(Path(order.folder))
    folder.clear(rank)  # Torch elastic may have started this rank before.
    about = _about(order, script)
    if rank == 0:
        folder.write_info(about)
    recorder = Recorder(folder, rank, _live_line(order) if rank == 0 else None)
    recorder.install()
    applier = None
    if order.applies != "no":  # Behind it are the planners, which take a moment to import.
        from paceline.torch.run.apply import Applier, Verifier

        kind = Verifier if order.applies == "verify" else Applier
        applier = kind(recorder, bucket_cap_mb=order.bucket_cap_mb)
        applier.install()
    finish_on_sigterm(recorder.finish)
    code = FAILURE
    try:
        code = _run(script, arguments[2:], order.is_module)
    except SystemExit as stop:
        code = _status(stop)
        raise
    finally:
        if applier:
            about["applied"] = _uninterrupted(applier.finish)
        _uninterrupted(recorder.finish)
        if rank == 0:
            folder.write_info({**about, **_end(code), "hardware": hardware()})
            _tell_why_nothing(recorder)
    return code


def _live_line(order: Order) -> LiveLine:
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    live = LiveLine(dollars_per_h=None if order.price is None else num_ranks * order.price)
    for stream in (sys.stdout, sys.stderr):
        live.make_way_for(stream)
    return live


def _run(script: str, arguments: Sequence[str], is_module: bool) -> int:
    """Run `script`; what it raises is shown without the frames that are ours."""
    sys.argv = [script, *arguments]
    try:
        if is_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            path = Path(script).resolve()
            if not sys.flags.safe_path:
                sys.path[0] = str(path.parent)
            runpy.run_path(str(path), run_name="__main__")
    except (Exception, KeyboardInterrupt) as error:
        shown = error.with_traceback(_frames_of_script(error.__traceback__))
        sys.excepthook(type(shown), shown, shown.__traceback__)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILURE
    return 0


def _frames_of_script(trace: TracebackType | None) -> TracebackType | None:
    while trace and trace.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        trace = trace.tb_next
    return trace


def _status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    return FAILURE


def _uninterrupted(finish: Callable[[], T]) -> T:
    """Call `finish`; signals that arrive meanwhile are too late to matter."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    result = finish()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return result


def _about(order: Order, script: str) -> dict[str, Any]:
    return {
        "state": "running",
        "exit_code": None,
        "command": order.command,
        "script": script,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": versions(),
        "hardware": hardware(),
    }


def _end(code: int) -> dict[str, Any]:
    return {"state": state_of(code), "exit_code": code}


def state_of(code: int) -> str:
    """Return what an exit status says of a run."""
    if code in (INTERRUPTED, 128 + signal.SIGTERM):
        return "interrupted"
    return "failed" if code else "ended"


def _tell_why_nothing(recorder: Recorder) -> None:
    """Say in one line, on rank 0, why there is nothing or not all to tell."""
    line = why_nothing(recorder, sum(os.times()[2:4]))
    if line:
        sys.stderr.write(f"paceline: {line}\n")


def why_nothing(recorder: Recorder, children_s: float) -> str:
    """Return why nothing was recorded; empty if something was.

    Args:
        recorder: Of this process, finished.
        children_s: Processor seconds of processes that the script started and waited for.
    """
    loop = recorder.loop
    if loop is None and children_s > CHILDREN_S:
        return (
            f"rank 0 took no optimizer step, but the script started processes of its own "
            f"({children_s:.0f} s of processor time), which are not recorded; let paceline run "
            "start them: paceline run --nproc-per-node=N"
        )
    if loop is None:
        return "rank 0 took no step of an optimizer of torch, so no training step was recorded"
    if not loop.num_steps:
        return (
            f"rank 0 took {loop.num_seen} optimizer step, and recording begins after the first; "
            "train for some more"
        )
    return ""
