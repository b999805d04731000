"""Claim: what breaks is an error that names rank and block within the timeout, or a completed run.

Each fault happens to `ScheduledDataParallel` on a real wire (network namespaces, needs root), in
the middle of training with emulated compute: a rank dies, a rank built another model, a link
stops and comes back, a link stays down. Reported: what every rank saw, after how many seconds,
and whether the replicas that ended their run are equal.
"""

import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _record import finish, parser

import paceline
from paceline.comm import plan_p3
from paceline.errors import PacelineError, RankFailedError
from paceline.testing import EmulatedModel, NetLab, netlab, why_not

NUM_STEPS, FAULT_STEP, NUM_LAYERS = 24, 12, 8
TIMEOUT_S = 60.0
SHORT_TIMEOUT_S = 10.0


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    flags.add_argument("--outage-s", type=float, default=20.0, help="of the link that comes back")
    options = flags.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"the network lab cannot run here: {reason}")
    rows = [run(fault, ranks, options.outage_s) for ranks in options.ranks for fault in FAULTS]
    finish("communication_faults", options, {"wire": "netlab (tbf)", "rows": rows}, "torch")


def run(fault: str, num_ranks: int, outage_s: float) -> dict[str, Any]:
    """Let one fault happen in a lab of its own; say what came of it."""
    timeout_s = TIMEOUT_S if fault == "link returns" else SHORT_TIMEOUT_S
    with tempfile.TemporaryDirectory() as folder, netlab(num_ranks, "1gbit") as lab:
        breaker = Breaker(lab, Path(folder), fault, outage_s)
        ended = "completed"
        try:
            lab.start(
                train, folder, fault, timeout_s=timeout_s, limit_s=200, while_waiting=breaker.poll
            )
        except RankFailedError as error:
            ended = str(error).splitlines()[0]
        states = [path.read_text() for path in sorted(Path(folder).glob("state-*"))]
        errors = [path.read_text() for path in sorted(Path(folder).glob("error-*"))]
    row = {
        "fault": fault,
        "ranks": num_ranks,
        "timeout_s": timeout_s,
        "ended": ended,
        "errors": errors,
        "seconds_after_fault": breaker.seconds(),
        "ranks_completed": len(states),
        "replicas_equal": len(set(states)) == 1 if states else None,
    }
    print(row, file=sys.stderr, flush=True)
    return row


class Breaker:
    """Breaks a link of the lab once ranks have reached the step of the fault."""

    def __init__(self, lab: NetLab, folder: Path, fault: str, outage_s: float) -> None:
        self._lab, self._mark, self._fault = lab, folder / "fault", fault
        self._outage_s = outage_s
        self._since_s: float | None = None
        self._is_cut = False

    def poll(self) -> None:
        """Break or mend what is due."""
        if self._since_s is None and self._mark.exists():
            self._since_s = time.monotonic()
            if self._fault.startswith("link"):
                self._lab.cut(1)
                self._is_cut = True
        is_over = self._since_s is not None and time.monotonic() - self._since_s > self._outage_s
        if self._is_cut and self._fault == "link returns" and is_over:
            self._lab.restore(1)
            self._is_cut = False

    def seconds(self) -> float | None:
        """Return how long ago the fault happened."""
        return None if self._since_s is None else time.monotonic() - self._since_s


def train(rank: int, folder: str, fault: str) -> None:
    """Train until the end or the fault; write down what this rank saw."""
    try:
        state = _steps(rank, Path(folder), fault)
    except PacelineError as error:
        Path(folder, f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise
    Path(folder, f"state-{rank}").write_text(state)


def _steps(rank: int, folder: Path, fault: str) -> str:
    torch.manual_seed(0)
    layer_bytes = (2_000_000 if fault == "other model" and rank == 1 else 1_000_000,) * NUM_LAYERS
    model = EmulatedModel([0.005] * NUM_LAYERS, [0.01] * NUM_LAYERS, layer_bytes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if fault == "other model":
        (folder / "fault").touch()
    scheduled = paceline.ScheduledDataParallel(
        model, optimizer, choose=plan_p3, num_measure_steps=4
    )
    for step in range(NUM_STEPS):
        if step == FAULT_STEP and rank == 1:
            (folder / "fault").touch()
            FAULTS[fault]()
        scheduled(torch.full((4,), float(rank + 1))).square().mean().backward()
        scheduled.step()
    flat = torch.cat([parameter.detach().flatten() for parameter in scheduled.parameters()])
    scheduled.close()
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _go_on() -> None:
    pass


FAULTS: dict[str, Callable[[], None]] = {
    "rank dies": _die,
    "other model": _go_on,
    "link returns": _go_on,
    "link stays down": _go_on,
}


if __name__ == "__main__":
    main()
