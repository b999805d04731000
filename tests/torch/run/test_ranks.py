"""The recorder on two ranks, under what averages gradients, and whole launches of scripts."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from paceline.run import Run, RunFolder, Trace
from paceline.testing import run_ranks
from paceline.timeline import Kind
from paceline.torch import ScheduledDataParallel
from paceline.torch.run._recorder import Recorder

CLI = [sys.executable, "-c", "import sys; from paceline.cli import main; sys.exit(main())"]
TRAIN = """
import os, sys, torch
from torch import distributed as dist

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x)

def train(model, num_steps, num_examples=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(num_steps):
        model(torch.ones(num_examples, 4)).sum().backward()
        optimizer.step()
"""
CRASH = """
if __name__ == "__main__":
    print(sys.argv[1:], os.path.basename(__file__), sys.path[0] == os.path.dirname(__file__))
    train(Net(), 20)
    raise ArithmeticError("planned")
"""
STUCK = """
import signal, threading
from datetime import timedelta
if __name__ == "__main__":
    train(Net(), 20)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    store.wait(["what nobody sets"], timedelta(seconds=60))
"""
WAITS = """
import signal
if __name__ == "__main__":
    train(Net(), 30)
    print("pid", os.getpid(), flush=True)
    os.kill(os.getppid(), signal.SIGINT)  # As a terminal would.
    signal.pause()
"""


def record_two_ways(rank: int, path: str) -> None:
    torch.manual_seed(0)
    micro_batches = [torch.ones(rank + 1, 4)] * 3
    for name in ("ddp", "scheduled"):
        recorder = Recorder(RunFolder(Path(path) / name), rank)
        recorder.install()
        module = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 1))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        if name == "ddp":
            train_accumulating(DistributedDataParallel(module), optimizer, micro_batches)
        else:
            with ScheduledDataParallel(module, optimizer) as model:
                for _ in range(12):
                    for x in micro_batches:
                        model(x).sum().backward()
                    model.step()
        recorder.finish()


def train_accumulating(
    model: DistributedDataParallel, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]
) -> None:
    for _ in range(12):
        with model.no_sync():
            for x in batches[:-1]:
                model(x).sum().backward()
        model(batches[-1]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_two_ranks_agree_on_what_a_step_is(tmp_path: Path) -> None:
    run_ranks(record_two_ways, 2, str(tmp_path))
    for name, parallel in (
        ("ddp", "DistributedDataParallel"),
        ("scheduled", "ScheduledDataParallel"),
    ):
        folder = RunFolder(tmp_path / name)
        assert folder.ranks() == [0, 1]
        for rank in folder.ranks():
            steps, facts = folder.read_steps(rank), folder.read_facts(rank)
            assert facts is not None
            assert (facts["parallel"], facts["gradient_bytes"]) == (parallel, 4 * 385)
            assert steps.num_microbatches.tolist() == [3] * 11, (name, rank)
            assert steps.num_examples.tolist() == [3 * (rank + 1)] * 11
            assert (steps.collective_s > 0).all()
            assert (steps.arrival_s > steps.begin_s).all()
            # One all-reduce in each step: none under no_sync.
            assert (steps.arrival_s[:-1] < steps.begin_s[1:]).all()
    ends = [end_of_collectives(RunFolder(tmp_path / "ddp"), rank) for rank in (0, 1)]
    assert np.abs(ends[0] - ends[1]).max() < 0.05
    for name in ("ddp", "scheduled"):
        RunFolder(tmp_path / name).write_info({"state": "ended", "num_ranks": 2})
    check_detail(Trace.load(tmp_path / "ddp"))
    assert Trace.load(tmp_path / "scheduled").measured.lanes == ("main",)


def check_detail(trace: Trace) -> None:
    """Of three micro-batches through two layers, DDP sends one bucket, in the last backward."""
    run = trace.measured
    assert run.lanes == ("main", "layers", "buckets")
    layers, sent = (run.select(run.lane == run.lanes.index(lane)) for lane in run.lanes[1:])
    assert (layers.step == 2).all()
    counts = Counter((span.rank, span.kind, span.name) for span in layers)
    # A forward pass ends once for a layer, and its weight and its bias get a gradient each.
    for rank in (0, 1):
        for name in ("0", "1"):
            assert counts[rank, Kind.FORWARD, name] == 3
            assert counts[rank, Kind.BACKWARD, name] == 6
    assert [(span.rank, span.name) for span in sent] == [
        (rank, "bucket 0, 1,540 bytes") for rank in (0, 1)
    ]
    joint = run.select((run.step == 2) & (run.kind == Kind.COLLECTIVE) & (run.lane == 0))
    for rank in (0, 1):
        (whole,) = (span for span in joint if span.rank == rank)
        (bucket,) = (span for span in sent if span.rank == rank)
        assert bucket.start_s < whole.start_s + 1e-3
        assert bucket.start_s + bucket.duration_s <= whole.start_s + whole.duration_s + 1e-9
    assert trace.plan is not None
    assert (trace.plan.source, trace.plan.lanes) == ("simulated", ("main", "buckets"))
    assert "bucket 0, 1,540 bytes" in trace.plan.names


def end_of_collectives(
    folder: RunFolder, rank: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    steps = folder.read_steps(rank)
    ends: np.ndarray[tuple[int], np.dtype[np.float64]] = steps.arrival_s + steps.collective_s
    return ends


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.py"
    path.write_text(TRAIN + text)
    return path


def enter(tmp_path: Path, text: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Start one rank as torch elastic would."""
    order = {"folder": str(tmp_path / "run"), "command": ["paceline", "run"], "is_module": False}
    command = [sys.executable, "-m", "paceline.torch.run", json.dumps(order)]
    return subprocess.run(
        [*command, str(script(tmp_path, text)), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_script_runs_as_python_runs_it_and_its_crash_is_its_own(tmp_path: Path) -> None:
    ended = enter(tmp_path, CRASH, "--lr", "3")
    assert (ended.returncode, ended.stdout) == (1, "['--lr', '3'] train.py True\n")
    (head, *frames, error) = [
        line for line in ended.stderr.splitlines() if not line.startswith("paceline: step")
    ]
    assert (head, error) == ("Traceback (most recent call last):", "ArithmeticError: planned")
    assert all("train.py" in frame for frame in frames if "File" in frame)
    folder = RunFolder(tmp_path / "run")
    info = folder.read_info()
    assert (info["state"], info["exit_code"], info["num_ranks"]) == ("failed", 1, 1)
    assert len(folder.read_steps(0).begin_s) == 19


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGTERM")
def test_a_rank_that_is_ended_inside_a_collective_keeps_its_steps(tmp_path: Path) -> None:
    """The main thread waits in C++, where Python runs no handler of signals."""
    ended = enter(tmp_path, STUCK)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert len(RunFolder(tmp_path / "run").read_steps(0).begin_s) == 19


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no sessions of processes")
def test_ctrl_c_keeps_and_tells_what_was_measured(tmp_path: Path) -> None:
    path = script(tmp_path, WAITS)
    output = tmp_path / "out"
    launched = subprocess.run(
        [*CLI, "run", "--json", f"--output={output}", str(path)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert launched.returncode == 130, launched.stderr
    said, line = launched.stdout.splitlines()
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.split()[1]), 0)
    told = json.loads(line)
    run = Run.load(output)
    assert told["run"] == str(output)
    assert told["step_s"] == pytest.approx(run.step_s)
    assert (run.info["state"], run.info["exit_code"], run.num_ranks) == ("interrupted", 130, 1)
    assert run.num_steps == 30 - 1 - len(run.warm_up[0].begin_s)
    assert str(run) in launched.stderr
