"""Claim: a run goes on by itself when a worker or a machine is lost, and when one comes back.

Two hosts are network namespaces of this machine (needs root), each with torchrun's agent and one
rank: `--nnodes=1:2 --max-restarts`. A worker gets SIGKILL; a host loses its link and then all of
its processes; or the same, and its agent is started again. What trains is `examples/gpt2/train.py`,
whose losses are compared with those of an undisturbed run, and a small run that counts in its
parameters how often each example of each epoch came.

Losses are the same bit for bit as long as the number of ranks is, and else within rounding; no
example is lost or repeated.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _fault_runs import NUM_STEPS, ends_of
from _record import finish, parser

from paceline.testing import NetLab, netlab, why_not

ROOT = Path(__file__).parents[1]
GPT2 = ROOT / "examples/gpt2"
FAULTS = ("none", "worker killed", "host lost", "host lost and back")
# Ranks that wait for a host without a link give up then; torchrun's agents wait for late hosts.
TIMEOUT_S, LAST_CALL_S, LIMIT_S = 15, 5, 420.0
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "eth0",
    "OMP_NUM_THREADS": "1",
    # See docs/several-machines.md: torch 2.13 else keeps addresses of ranks that are gone.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
STRIKE_AT, POLL_S = 0.25, 0.05
STEP_S = 1.0  # Of the small run, emulated.
TOLERANCE = 1e-4


class Hosts:
    """Two hosts with an agent each; whatever ends this block ends all that runs on them.

    Args:
        lab: Its namespaces are the hosts.
        program: What torchrun starts, with its flags.
        log: Gets what the agents and ranks print, one file per agent.
    """

    def __init__(self, lab: NetLab, program: list[str], log: Path) -> None:
        self._lab, self._program, self._log = lab, program, log
        self._agents: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Hosts":
        for host in (0, 1):
            self.start(host)
        return self

    def __exit__(self, *_: object) -> None:
        for host in (0, 1):
            self._kill_all(host)
        for agent in self._agents:
            agent.wait()

    def start(self, host: int) -> None:
        """Start torchrun's agent; the first host keeps the rendezvous."""
        conf = f"is_host={str(host == 0).lower()},last_call_timeout={LAST_CALL_S}"
        command = [
            *("ip", "netns", "exec", self._lab.namespaces[host], sys.executable),
            *("-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"),
            *("--max-restarts=3", "--rdzv-id=restarts", "--rdzv-backend=c10d"),
            *(f"--rdzv-endpoint={self._lab.address(0)}:29400", f"--rdzv-conf={conf}"),
            f"--local-addr={self._lab.address(host)}",
            *self._program,
        ]
        environment = os.environ | ENVIRONMENT
        with (self._log / f"agent-{len(self._agents)}.log").open("wb") as log:
            self._agents.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )

    def kill_worker(self, host: int) -> None:
        """Kill the rank of a host, and not its agent."""
        agent = self._agents[host].pid
        for pid in self._pids(host):
            if _parent(pid) == agent:
                os.kill(pid, signal.SIGKILL)

    def lose(self, host: int) -> None:
        """Cut a host off, so that nobody is told, and end it."""
        self._lab.cut(host)
        self._kill_all(host)

    def bring_back(self, host: int) -> None:
        """Mend the link and start a new agent."""
        self._lab.restore(host)
        self.start(host)

    def ended(self) -> int | None:
        """Return the exit status of the first host's agent, which outlives all faults."""
        return self._agents[0].poll()

    def _kill_all(self, host: int) -> None:
        for pid in self._pids(host):
            os.kill(pid, signal.SIGKILL)

    def _pids(self, host: int) -> list[int]:
        command = ["ip", "netns", "pids", self._lab.namespaces[host]]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]


def _parent(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0
    return int(status.rpartition(")")[2].split()[1])


def newest_step(checkpoints: Path) -> int:
    """Return the steps of the newest checkpoint; 0 if there is none."""
    return max(
        (int(path.name.removeprefix("step_")) for path in checkpoints.glob("step_*")), default=0
    )


def disturb(
    lab: NetLab, fault: str, program: list[str], checkpoints: Path, strike: int
) -> dict[str, Any]:
    """Run a program on both hosts with one fault; return how it ended, and how long it took.

    The fault comes with the first checkpoint of at least `strike` steps, and a host comes back
    when there is a newer one.
    """
    log = checkpoints.parent / f"log-{fault.replace(' ', '-')}"
    log.mkdir(parents=True)
    with Hosts(lab, program, log) as hosts:
        acts: dict[str, list[Callable[[], None]]] = {
            "none": [],
            "worker killed": [lambda: hosts.kill_worker(1)],
            "host lost": [lambda: hosts.lose(1)],
            "host lost and back": [lambda: hosts.lose(1), lambda: hosts.bring_back(1)],
        }
        told, begin_s = _watch(hosts, acts[fault], checkpoints, strike)
    lab.restore(1)
    return told | {"seconds": round(time.monotonic() - begin_s, 1), "log": str(log)}


def _watch(
    hosts: Hosts, acts: list[Callable[[], None]], checkpoints: Path, strike: int
) -> tuple[dict[str, Any], float]:
    begin_s = time.monotonic()
    struck: list[tuple[float, int]] = []
    went_on_s: list[float] = []
    while hosts.ended() is None and time.monotonic() < begin_s + LIMIT_S:
        step = newest_step(checkpoints)
        if struck and len(went_on_s) < len(struck) and step > struck[-1][1]:
            went_on_s.append(round(time.monotonic() - struck[-1][0], 1))
        if len(struck) < len(acts) and len(went_on_s) == len(struck) and step >= strike:
            acts[len(struck)]()
            struck.append((time.monotonic(), newest_step(checkpoints)))
        time.sleep(POLL_S)
    told = {
        "exit_status": hosts.ended(),
        "struck_after_steps": [step for _, step in struck],
        "seconds_from_loss_to_next_checkpoint": went_on_s[0] if went_on_s else None,
    }
    return told, begin_s


def gpt2(lab: NetLab, folder: Path, fault: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train the example; return its losses, by step, and on how many ranks it was started."""
    out = folder / "run"
    flags = (
        "--size tiny --context 64 --batch-size 32 --micro-batch 1 --validate-every 0 "
        f"--checkpoint-every 5 --log-every 5 --device cpu --balanced --steps {options.steps} "
        f"--timeout-s {TIMEOUT_S} --parallel {options.parallel}"
    ).split()
    program = [str(GPT2 / "train.py"), "--data", str(options.shards), "--out", str(out), *flags]
    strike = int(options.steps * STRIKE_AT)
    told = disturb(lab, fault, program, out / "checkpoints", strike)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = {row["step"]: (row["num_tokens"], row["loss"]) for row in rows if "loss" in row}
    return told | {"losses": losses, "ranks": _starts(Path(told.pop("log")))}


def _starts(log: Path) -> list[int]:
    """Return how many ranks each start had, in the order of steps that were done."""
    found = []
    for path in log.glob("agent-*.log"):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            head, _, rest = line.partition(" rank(s) on cpu, step ")
            if rest:
                found.append((int(rest.split()[0]), int(head.rpartition(": ")[2])))
    return [ranks for _, ranks in sorted(found)]


def compared(undisturbed: dict[int, Any], losses: dict[int, Any], num_same: int) -> dict[str, Any]:
    """Hold the losses of all steps against those of the undisturbed run."""
    steps = sorted(undisturbed.keys() & losses.keys())
    before, after = (np.array([run[step] for step in steps]) for run in (undisturbed, losses))
    differences = np.abs(after[:, 1] / before[:, 1] - 1)
    return {
        "steps_on_as_many_ranks": num_same,
        "of_them_bitwise_equal": int((before[:num_same] == after[:num_same]).all(axis=1).sum()),
        "steps": len(undisturbed),
        "steps_with_the_same_tokens": int((before[:, 0] == after[:, 0]).sum()),
        "largest_relative_difference_of_a_loss": float(differences.max()),
    }


def ledger(lab: NetLab, folder: Path, fault: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train the small run; return how many examples were lost or repeated."""
    script = str(Path(__file__).with_name("_restart_ranks.py"))
    flags = ["--wrap", options.parallel, f"--step-s={STEP_S}", f"--timeout-s={TIMEOUT_S}"]
    checkpoints = folder / "run"
    checkpoints.mkdir()
    program = [script, str(checkpoints), *flags]
    told = disturb(lab, fault, program, checkpoints, int(NUM_STEPS * STRIKE_AT))
    told.pop("log")
    ends = ends_of(checkpoints)
    starts = (checkpoints / "starts.jsonl").read_text("utf-8").splitlines()
    return told | {
        "ranks": [int(line) for line in starts],
        "lost": max((end["lost"] for end in ends), default=None),
        "repeated": max((end["repeated"] for end in ends), default=None),
    }


def is_right(fault: str, row: dict[str, Any]) -> bool:
    """Tell whether a run ended as it should."""
    wanted = {"none": [2], "worker killed": [2, 2], "host lost": [2, 1]}.get(fault, [2, 1, 2])
    is_exact = (row.get("lost", 0), row.get("repeated", 0)) == (0, 0)
    found = row.get("losses_compared")
    is_same = found is None or (
        found["of_them_bitwise_equal"] == found["steps_on_as_many_ranks"]
        and found["steps_with_the_same_tokens"] == found["steps"]
        and found["largest_relative_difference_of_a_loss"] < TOLERANCE
    )
    return row["exit_status"] == 0 and row["ranks"] == wanted and is_exact and is_same


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--steps", type=int, default=120, help="of the example")
    flags.add_argument("--parallel", choices=("ddp", "scheduled"), default="ddp")
    flags.add_argument("--faults", nargs="+", choices=FAULTS[1:], default=list(FAULTS[1:]))
    flags.add_argument("--keep", type=Path, help="folder that keeps runs and logs")
    options = flags.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"the network lab cannot run here: {reason}")
    with tempfile.TemporaryDirectory(prefix="paceline-restarts-") as temporary:
        rows = measure(options.keep or Path(temporary), options)
    num_wrong = sum(not row["is_right"] for row in rows)
    result = {"wire": "two network namespaces (netlab)", "wrong": num_wrong, "rows": rows}
    finish("restarts", options, result, "torch")
    sys.exit(1 if num_wrong else 0)


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make all runs, the undisturbed ones first."""
    options.shards = folder / "shards"
    prepare = [str(GPT2 / "prepare.py"), str(Path(json.__file__).parent), "--validation", "0.2"]
    subprocess.run(
        [sys.executable, *prepare, "--out", str(options.shards)], check=True, stdout=sys.stderr
    )
    rows: list[dict[str, Any]] = []
    undisturbed: dict[int, Any] = {}
    for fault in ("none", *options.faults):
        for name, train in (("gpt2", gpt2), ("ledger", ledger)):
            own = folder / name / fault.replace(" ", "-")
            own.mkdir(parents=True)
            with netlab(2) as lab:
                row = {"program": name, "fault": fault, **train(lab, own, fault, options)}
            losses = row.pop("losses", None)
            undisturbed = losses if losses and fault == "none" else undisturbed
            if losses:
                is_whole = fault in ("none", "worker killed")
                num_same = len(losses) if is_whole else row["struck_after_steps"][0]
                row["losses_compared"] = compared(undisturbed, losses, num_same)
            row["is_right"] = is_right(fault, row)
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
