"""Faults under torchrun, which starts the ranks again by itself."""

import os
import random
import subprocess
import sys
from pathlib import Path

from _fault_runs import LIMIT_S, Runs
from _fault_tally import Tally

DROPOUT = 0.3
# For what else may fail on a busy machine, such as a port that somebody took.
NUM_SPARE_RESTARTS = 2


def kill_under_torchrun(runs: Runs, tally: Tally, rng: random.Random, num: int) -> None:
    """SIGKILL at random steps of one launch with `--max-restarts`; nobody starts it again."""
    wrap = rng.choice(("ddp", "sharded"))
    kills = [f"{rng.randrange(2)}:{rng.randrange(4)}" for _ in range(num)]
    folder = runs.new_folder()
    story = f"{wrap} under torchrun, kills {kills}"
    done = _torchrun(folder, num + NUM_SPARE_RESTARTS, "--wrap", wrap, "--kill", *kills)
    if done is None:
        tally.add("hangs", 1, story)
        return
    starts = (folder / "starts.jsonl").read_text(encoding="utf-8").splitlines()
    num_struck = min(len(starts) - 1, num)
    tally.add("tried", num_struck)
    if done.returncode:
        tally.add("unclear", 1, f"{story}: {done.stderr[-200:]}")
    elif runs.is_as_undisturbed(tally, folder, wrap, DROPOUT, [2], story):
        tally.add("recovered", num_struck)


def _torchrun(
    folder: Path, num_restarts: int, *flags: str
) -> subprocess.CompletedProcess[str] | None:
    """Return how the launch ended; None if it did not in time."""
    script = str(Path(__file__).with_name("_restart_ranks.py"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += [f"--max-restarts={num_restarts}", script, str(folder), f"--dropout={DROPOUT}"]
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(
            [sys.executable, *launch, *flags],
            capture_output=True,
            text=True,
            timeout=num_restarts * LIMIT_S,
            check=False,
            env=os.environ | environment | {"GLOO_SOCKET_IFNAME": "lo"},
        )
    except subprocess.TimeoutExpired:
        return None
