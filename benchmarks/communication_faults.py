"""Claim: what breaks is an error that names rank and block within the timeout, or a completed run.

Each fault happens to `ScheduledDataParallel` on a real wire (network namespaces, needs root), in
the middle of training with emulated compute, in each mode: a rank dies, stops for a while or for
good, a rank built another model, a link stops and comes back, slows down to 1 %, stays down.
Reported: what every rank saw, after how many seconds, whether an error names the rank, and
whether the replicas that ended their run are equal.
"""

import hashlib
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _record import finish, parser
from torch import distributed as dist

import paceline
from paceline.comm import WireProblem, plan_ddp, plan_p3
from paceline.errors import PacelineError, RankFailedError
from paceline.testing import EmulatedModel, NetLab, netlab, why_not
from paceline.torch.comm import _control
from paceline.torch.comm._candidates import Candidate

NUM_STEPS, FAULT_STEP, NUM_LAYERS = 24, 12, 8
SHORT_TIMEOUT_S = 10.0
RATE, SLOW_RATE = "1gbit", "10mbit"
VICTIM = 1
MODES: dict[str, dict[str, Any]] = {
    "whole": {"choose": plan_p3},
    "sharded": {"choose": plan_p3, "sharded": True},
    "plain": {},
}
# Those that end by themselves after the outage, so that the run is to complete.
PASSING = ("link returns", "link slows down", "rank stops for a while")
FAULTS = ("rank dies", "rank stops for good", "other model", "link stays down", *PASSING)


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    flags.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    flags.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    flags.add_argument(
        "--outage-s", type=float, nargs="+", default=[5.0], help="of what passes; also 20 and 60"
    )
    options = flags.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"the network lab cannot run here: {reason}")
    rows = [
        run(fault, mode, ranks, outage_s)
        for ranks in options.ranks
        for mode in options.modes
        for fault in options.faults
        for outage_s in (options.outage_s if fault in PASSING else options.outage_s[:1])
    ]
    finish("communication_faults", options, {"wire": "netlab (tbf)", "rows": rows}, "torch")


def run(fault: str, mode: str, num_ranks: int, outage_s: float) -> dict[str, Any]:
    """Let one fault happen in a lab of its own; say what came of it."""
    # After an outage TCP tries again only after a pause that is as long.
    timeout_s = 3 * outage_s + 30 if fault in PASSING else SHORT_TIMEOUT_S
    with tempfile.TemporaryDirectory() as folder, netlab(num_ranks, RATE) as lab:
        breaker = Breaker(lab, Path(folder), fault, outage_s)
        arguments = (folder, fault, mode, timeout_s)
        ended = "completed"
        try:
            lab.start(train, *arguments, timeout_s=60, limit_s=300, while_waiting=breaker.poll)
        except RankFailedError as error:
            ended = str(error).splitlines()[0]
        states = [path.read_text() for path in sorted(Path(folder).glob("state-*"))]
        errors = [path.read_text() for path in sorted(Path(folder).glob("error-*"))]
    row = {
        "fault": fault,
        "mode": mode,
        "ranks": num_ranks,
        "outage_s": outage_s if fault in PASSING else None,
        "timeout_s": timeout_s,
        "ended": ended,
        "errors": errors,
        "errors_that_name_the_rank": sum(f"rank {VICTIM} " in text for text in errors),
        "seconds_after_fault": breaker.seconds(),
        "ranks_completed": len(states),
        "replicas_equal": len(set(states)) == 1 if states else None,
    }
    print(row, file=sys.stderr, flush=True)
    return row


class Breaker:
    """Breaks what is due once ranks have reached the step of the fault, and mends it."""

    def __init__(self, lab: NetLab, folder: Path, fault: str, outage_s: float) -> None:
        self._lab, self._folder, self._fault = lab, folder, fault
        self._outage_s = outage_s
        self._since_s: float | None = None
        self._is_broken = False

    def poll(self) -> None:
        """Break or mend what is due."""
        mark = self._folder / "fault"
        if self._since_s is None and mark.exists() and mark.read_text():
            self._since_s = time.monotonic()
            self._set(is_broken=True)
        if self._is_broken and self._is_over():
            self._set(is_broken=False)

    def seconds(self) -> float | None:
        """Return how long ago the fault happened."""
        return None if self._since_s is None else time.monotonic() - self._since_s

    def _is_over(self) -> bool:
        if self._fault in PASSING:
            return (self.seconds() or 0.0) > self._outage_s
        # A process that stands still could not end.
        num_errors = len(list(self._folder.glob("error-*")))
        return self._fault == "rank stops for good" and num_errors == self._lab.num_ranks - 1

    def _set(self, *, is_broken: bool) -> None:
        self._is_broken = is_broken
        if self._fault in ("link returns", "link stays down"):
            (self._lab.cut if is_broken else self._lab.restore)(VICTIM)
        elif self._fault == "link slows down":
            self._lab.set_rate(SLOW_RATE if is_broken else RATE, rank=VICTIM)
        elif self._fault.startswith("rank stops"):
            pid = int((self._folder / "fault").read_text())
            os.kill(pid, signal.SIGSTOP if is_broken else signal.SIGCONT)


def train(rank: int, folder: str, fault: str, mode: str, timeout_s: float) -> None:
    """Train until the end or the fault; write down what this rank saw."""
    # Sent when another rank has failed; this one is to see that for itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # As in a job, the store is on rank 0 and is reached over the same wire.
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    try:
        state = _steps(rank, Path(folder), fault, mode)
    except PacelineError as error:
        Path(folder, f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise
    Path(folder, f"state-{rank}").write_text(state)


def _steps(rank: int, folder: Path, fault: str, mode: str) -> str:
    torch.manual_seed(0)
    layer_bytes = 2_000_000 if fault == "other model" and rank == VICTIM else 1_000_000
    layers = [layer_bytes] * NUM_LAYERS
    model = EmulatedModel([0.005] * NUM_LAYERS, [0.01] * NUM_LAYERS, layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with ExitStack() as stack:
        if mode == "plain":
            stack.enter_context(patch.object(_control, "candidates", _buckets))
        scheduled = stack.enter_context(
            paceline.ScheduledDataParallel(model, optimizer, num_measure_steps=4, **MODES[mode])
        )
        for step in range(NUM_STEPS):
            if step == FAULT_STEP and rank == VICTIM:
                _reach(folder, fault)
            scheduled(torch.full((4,), float(rank + 1))).square().mean().backward()
            scheduled.step()
        flat = torch.cat([parameter.detach().flatten() for parameter in scheduled.parameters()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def _buckets(problem: WireProblem, _planner: object) -> list[Candidate]:
    """Leave nothing to choose but DistributedDataParallel's default."""
    return [Candidate(plan_ddp(problem), 1.0, 25)]


def _reach(folder: Path, fault: str) -> None:
    """Tell the breaker that this is the step of the fault."""
    (folder / "fault").write_text(str(os.getpid()))
    if fault == "rank dies":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
