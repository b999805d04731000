"""A small network inside this machine, slow enough to be worth hiding.

Each rank lives in a Linux network namespace of its own; veth pairs join them to a bridge
in one more namespace, and a token bucket at both ends of each pair limits the rate in
both directions. Nothing leaves the machine, and the machine's own network is untouched.

    rank 0 [eth0]--tbf--[p0]--+
                              | bridge br0
    rank 1 [eth0]--tbf--[p1]--+
"""

import ctypes
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from paceline._files import shown
from paceline.errors import LabError, RankFailedError
from paceline.testing._spawn import run_ranks

NAMESPACES = Path("/run/netns")
PREFIX = "paceline"
# What a token bucket lets through at once, and how long it may hold a packet back.
BURST_BYTES = 512 * 1024
BUCKET = f"burst {BURST_BYTES} latency 100ms"
COMMAND_S = 10.0
MAX_RANKS = 64
CLONE_NEWNET = 0x40000000
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_lab_numbers = itertools.count()


class NetLab:
    """Ranks joined by slow links; made by `netlab`.

    Attributes:
        namespaces: Network namespace of each rank, for `ip netns exec`.
    """

    def __init__(self, namespaces: Sequence[str], switch: str, rate: str) -> None:
        self.namespaces = tuple(namespaces)
        self._switch = switch
        self._rate = rate

    @property
    def num_ranks(self) -> int:
        """Ranks in the lab."""
        return len(self.namespaces)

    @property
    def bytes_per_s(self) -> float:
        """Nominal rate of a link, as last set for all; headers take 3 to 6 % of it."""
        return bytes_per_s(self._rate)

    def address(self, rank: int) -> str:
        """Return the IPv4 address of `rank` in the lab, for launchers that are told it."""
        return _address(self._checked(rank))

    def start(
        self,
        function: Callable[..., None],
        *args: Any,
        timeout_s: float = 30.0,
        limit_s: float = 300.0,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Run `function(rank, *args)` on every rank, as `run_ranks` does, each in its namespace.

        Each is a process with one thread of torch in a default gloo group over `eth0`;
        RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set for code that asks them.
        Ranks meet through a file, so a cut link cannot hide an error from the others.

        Args:
            function: Importable by name; its arguments must be picklable.
            *args: Passed on.
            timeout_s: How long one collective may take before it is an error.
            limit_s: How long all of it may take; then the ranks are killed.
            while_waiting: Called about ten times a second meanwhile; the place to `cut`
                and `restore` links from.

        Raises:
            RankFailedError: If a rank raised or died (names it), or at the limit.
        """
        deadline_s = time.monotonic() + limit_s

        def wait() -> None:
            if time.monotonic() > deadline_s:
                raise RankFailedError(f"the ranks were still running after limit_s ({limit_s:g} s)")
            while_waiting()

        enter = partial(_enter, self.namespaces)
        run_ranks(
            function, self.num_ranks, *args, timeout_s=timeout_s, while_waiting=wait, enter=enter
        )

    def cut(self, rank: int) -> None:
        """Take the link of `rank` down; packets are lost until `restore`."""
        self._set_link(rank, "down")

    def restore(self, rank: int) -> None:
        """Bring the link of `rank` back.

        TCP notices at its next try only, which comes after a pause as long as the cut was
        (at most two minutes).
        """
        self._set_link(rank, "up")

    def set_rate(self, rate: str, *, rank: int | None = None) -> None:
        """Limit the link of `rank`, or of all ranks, to `rate` in both directions.

        Args:
            rate: For example `"100mbit"`.
            rank: Whose; all ranks by default.
        """
        bytes_per_s(rate)
        for number in range(self.num_ranks) if rank is None else (self._checked(rank),):
            ends = ((self.namespaces[number], "eth0"), (self._switch, f"p{number}"))
            for namespace, device in ends:
                _run(f"tc -n {namespace} qdisc replace dev {device} root tbf rate {rate} {BUCKET}")
        if rank is None:
            self._rate = rate

    def _set_link(self, rank: int, state: str) -> None:
        _run(f"ip -n {self._switch} link set p{self._checked(rank)} {state}")

    def _checked(self, rank: int) -> int:
        if not 0 <= rank < self.num_ranks:
            raise ValueError(f"rank must lie in [0, {self.num_ranks}), got {rank}")
        return rank


@contextmanager
def netlab(num_ranks: int, rate: str = "1gbit") -> Iterator[NetLab]:
    """Build namespaces joined by links of `rate`, and remove them however the block ends.

    Needs Linux, root, `ip` and `tc` (Debian: `iproute2`); see `why_not`. Namespaces carry
    this process's id, so labs of several processes do not meet. Those of processes that
    were killed before they could remove them go when the next lab is built.

    Args:
        num_ranks: 1 to 64.
        rate: Of each link, each direction: `"100mbit"`, `"1gbit"`.

    Raises:
        ValueError: If an argument is out of range.
        LabError: If the lab may not run here, or a command fails.
    """
    if not 1 <= num_ranks <= MAX_RANKS:
        raise ValueError(f"num_ranks must lie in [1, {MAX_RANKS}], got {num_ranks}")
    bytes_per_s(rate)
    reason = why_not()
    if reason is not None:
        raise LabError(f"the network lab cannot run here: {reason}")
    _remove_stale()
    prefix = _new_prefix()
    names = [f"{prefix}-r{rank}" for rank in range(num_ranks)]
    with ExitStack() as stack:
        for name in (f"{prefix}-sw", *names):
            stack.callback(_remove, name)
            _run(f"ip netns add {name}")
        yield _wired(names, f"{prefix}-sw", rate)


def why_not() -> str | None:
    """Return why the lab cannot run here, or None if it can; tries a namespace to find out."""
    if sys.platform != "linux":
        return f"it needs Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "it needs root, to make network namespaces"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found; install iproute2"
    name = f"{_new_prefix()}-probe"
    try:
        _run(f"ip netns add {name}")
        _run(f"ip -n {name} link add eth0 type veth peer name p0")
        _run(f"tc -n {name} qdisc add dev eth0 root tbf rate 1mbit {BUCKET}")
        _run(f"ip -n {name} link add br0 type bridge")
    except LabError as error:
        return str(error)
    finally:
        _remove(name)
    return None


def bytes_per_s(rate: str) -> float:
    """Return the bytes per second of a rate as `tc` writes it.

    Raises:
        ValueError: If it is not a positive number followed by bit, kbit, mbit or gbit.

    Examples:
        >>> bytes_per_s("100mbit")
        12500000.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", rate)
    if match is None or not 0 < float(match[1]) < math.inf:
        raise ValueError(
            f"rate must be a positive number of bit, kbit, mbit or gbit, got {shown(rate)}; "
            'for example "100mbit"'
        )
    return float(match[1]) * _SCALE[match[2]] / 8


def _new_prefix() -> str:
    return f"{PREFIX}-{os.getpid()}-{next(_lab_numbers)}"


def _wired(names: Sequence[str], switch: str, rate: str) -> NetLab:
    _run(f"ip -n {switch} link add br0 type bridge")
    _run(f"ip -n {switch} link set br0 up")
    for rank, name in enumerate(names):
        port = f"p{rank}"
        _run(f"ip link add eth0 netns {name} type veth peer name {port} netns {switch}")
        _run(f"ip -n {switch} link set {port} master br0 up")
        _run(f"ip -n {name} addr add {_address(rank)}/24 dev eth0")
        _run(f"ip -n {name} link set lo up")
        _run(f"ip -n {name} link set eth0 up")
    lab = NetLab(names, switch, rate)
    lab.set_rate(rate)
    return lab


def _address(rank: int) -> str:
    return f"10.88.0.{rank + 1}"


def _remove(name: str) -> None:
    if (NAMESPACES / name).exists():
        _run(f"ip netns del {name}")


def _remove_stale() -> None:
    """Remove namespaces of processes that are gone."""
    for path in NAMESPACES.glob(f"{PREFIX}-*-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            _remove(path.name)


def _run(command: str) -> None:
    """Run a command of iproute2, out of reach of Ctrl-C, so that removing is never cut short."""
    try:
        done = subprocess.run(
            command.split(),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"`{command}` did not end in {COMMAND_S:g} s") from None
    if done.returncode != 0:
        raise LabError(f"`{command}` failed: {done.stderr.strip()}")


def _enter(namespaces: Sequence[str], rank: int) -> None:
    """Move this thread, and all that it starts, into the namespace of `rank`."""
    # os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    with (NAMESPACES / namespaces[rank]).open("rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise LabError(f"rank {rank} cannot enter its namespace: {os.strerror(code)}")
    os.environ |= {
        "GLOO_SOCKET_IFNAME": "eth0",
        "MASTER_ADDR": _address(0),
        "MASTER_PORT": "29500",
        "RANK": str(rank),
        "WORLD_SIZE": str(len(namespaces)),
    }
