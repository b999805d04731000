"""Launch a script on every rank through torch elastic, with a recorder in each."""

import argparse
import json
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import NamedTuple

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from paceline.run import Run, RunFolder
from paceline.torch.run._entry import Order, state_of

ENTRY = "paceline.torch.run"
RUNS = Path("paceline-runs")
# Those that torch elastic handles while it runs, and leaves handled.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Launched(NamedTuple):
    """How a launch ended.

    Attributes:
        folder: What was recorded.
        exit_code: The script's; 128 more than the signal that ended it.
    """

    folder: RunFolder
    exit_code: int


def launch(options: argparse.Namespace, command: Sequence[str]) -> Launched:
    """Run `options.training_script` on every rank and record it.

    Args:
        options: What torchrun's parser returns, with `output`, a folder or None, `price`, dollars
            per hour and rank or None, `applies` as in `Order`, and `before`, an earlier run's
            folder or None.
        command: What the user typed; kept in the folder.

    Returns:
        The folder and the exit status.

    Raises:
        ValueError: If there is no such script, it is no Python, or the folder holds another run.
    """
    _check(options)
    bucket_cap_mb = _bucket_cap_mb(options.before)
    folder = _new_folder(options)
    order = Order(
        str(folder.path.resolve()),
        list(command),
        bool(options.module),
        price=options.price,
        applies=options.applies,
        bucket_cap_mb=bucket_cap_mb,
    )
    options.training_script_args = [
        json.dumps(order._asdict()), options.training_script, *options.training_script_args
    ]  # fmt: skip
    options.training_script, options.module, options.run_path = ENTRY, True, False
    options.standalone = options.standalone or _is_alone(options)
    exit_code = _exit_code(options)
    _note_end(folder, exit_code)
    return Launched(folder, exit_code)


def _bucket_cap_mb(before: Path | None) -> float | None:
    """Return the buckets that an earlier run should have had; None to leave them."""
    if before is None:
        return None
    found = Run.load(before).better_bucket_cap()
    return found.cap_mb if found else None


def _check(options: argparse.Namespace) -> None:
    script = options.training_script
    if options.no_python:
        raise ValueError(
            f"paceline run records Python, but --no-python says that {script} is none; start it "
            "with torchrun instead"
        )
    if not options.module and not Path(script).is_file():
        raise ValueError(
            f"there is no script {script}; write paceline run [torchrun's arguments] train.py "
            "[its arguments]"
        )
    if options.price is not None and not 0 <= options.price < inf:
        raise ValueError(f"price must be finite and not negative, got {options.price:g}")
    try:
        torchrun.config_from_args(options)
    except AssertionError as error:
        raise ValueError(f"torchrun's arguments do not fit: {error}") from None


def _new_folder(options: argparse.Namespace) -> RunFolder:
    path = options.output
    if path is None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        stem = re.sub(r"[^\w.-]", "-", Path(options.training_script).stem)
        path = _unused(RUNS / f"{stem}-{now}")
    folder = RunFolder(path)
    if folder.is_run():
        raise ValueError(f"{path} holds another run; give --output a new folder")
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def _unused(path: Path) -> Path:
    """Two runs of one script may begin in the same second."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _is_alone(options: argparse.Namespace) -> bool:
    """Return whether nothing says where ranks meet: then they are all here."""
    says_where = options.rdzv_backend != "static" or options.rdzv_endpoint or options.master_port
    return options.nnodes in ("1", "1:1") and not says_where


def _exit_code(options: argparse.Namespace) -> int:
    try:
        with _own_signals():
            torchrun.run(options)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt:  # Before torch elastic had begun to handle it.
        return 128 + signal.SIGINT
    return 0


@contextmanager
def _own_signals() -> Iterator[None]:
    own = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)


def _note_end(folder: RunFolder, exit_code: int) -> None:
    """Say how the run ended; rank 0 could not if it was killed. Other nodes keep no `run.json`."""
    if folder.is_run():
        state = state_of(exit_code)
        folder.write_info({**folder.read_info(), "state": state, "exit_code": exit_code})
