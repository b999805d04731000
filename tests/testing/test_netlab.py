"""A few seconds per lab: a spawn of two ranks costs most of it, so checks share one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from paceline.errors import LabError, RankFailedError
from paceline.testing import bytes_per_s, netlab, why_not
from paceline.testing._netlab import BURST_BYTES, NAMESPACES, PREFIX

REASON = why_not()
needs_lab = pytest.mark.skipif(REASON is not None, reason=f"no network lab: {REASON}")
NUM_BYTES, NUM_REPEATS, RATE = 1_000_000, 4, "100mbit"
CUT_S = 1.0


def own_namespaces(pid: int | None = None) -> list[str]:
    pattern = f"{PREFIX}-{pid or os.getpid()}-*"
    return sorted(path.name for path in NAMESPACES.glob(pattern))


def leftover_ranks(namespaces: tuple[str, ...]) -> str:
    commands = [["ip", "netns", "pids", name] for name in namespaces]
    return "".join(subprocess.check_output(command, text=True) for command in commands)


def time_all_reduces(rank: int, out: str) -> None:
    payload = torch.ones(NUM_BYTES // 4)
    dist.all_reduce(torch.ones(1))
    start_s = time.perf_counter()
    for _ in range(NUM_REPEATS):
        dist.all_reduce(payload)
    found = {
        "seconds": time.perf_counter() - start_s,
        "value": payload[0].item(),
        "environment": [os.environ[key] for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR")],
        "interfaces": sorted(path.name for path in Path("/proc/self/net/dev_snmp6").glob("*")),
        "num_threads": torch.get_num_threads(),
    }
    Path(out, str(rank)).write_text(json.dumps(found), encoding="utf-8")


def reduce_until_the_cut(rank: int, flag: str) -> None:
    while True:
        dist.all_reduce(torch.ones(1000))
        Path(flag).touch()


def reduce_through_a_cut(rank: int, folder: str) -> None:
    """Go on until a step had to wait for the link to come back, on any rank."""
    seconds, longest_s = 0.0, 0.0
    while longest_s < CUT_S / 2:
        start_s = time.monotonic()
        # How long the step before took; all ranks learn the same, so none ends alone.
        slowest = torch.tensor(seconds)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        seconds, longest_s = time.monotonic() - start_s, slowest.item()
        Path(folder, "running").touch()
    Path(folder, f"done {rank}").touch()


def sleep_on(rank: int) -> None:
    time.sleep(600)


def raise_on_rank_1(rank: int) -> None:
    if rank == 1:
        raise ValueError("this rank is out of order")
    dist.barrier()


@pytest.mark.parametrize(
    ("rate", "expected"), [("1gbit", 1.25e8), ("1.5mbit", 187500.0), ("8bit", 1.0)]
)
def test_rates_are_read_as_tc_reads_them(rate: str, expected: float) -> None:
    assert bytes_per_s(rate) == expected


@pytest.mark.parametrize("rate", ["", "fast", "0mbit", "-1mbit", "1 gbit", "1tbit", "1mbit; ls"])
def test_other_rates_are_refused_with_an_example(rate: str) -> None:
    with pytest.raises(ValueError, match=r'got .*for example "100mbit"'):
        bytes_per_s(rate)


@pytest.mark.parametrize("num_ranks", [0, 65])
def test_a_lab_has_1_to_64_ranks(num_ranks: int) -> None:
    with pytest.raises(ValueError, match=rf"num_ranks must lie in \[1, 64\], got {num_ranks}"):
        netlab(num_ranks).__enter__()


def test_without_root_the_lab_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="cannot run here: it needs root"):
        netlab(2).__enter__()


def test_without_tools_the_lab_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda tool: None if tool == "tc" else tool)
    assert why_not() == "tc not found; install iproute2"


@needs_lab
def test_ranks_meet_over_links_of_the_given_rate(tmp_path: Path) -> None:
    with netlab(2, RATE) as lab:
        assert lab.address(1) == "10.88.0.2"
        assert own_namespaces() == sorted([*lab.namespaces, lab.namespaces[0][:-2] + "sw"])
        lab.start(time_all_reduces, str(tmp_path), limit_s=30)
        assert leftover_ranks(lab.namespaces) == ""
    assert own_namespaces() == []
    found = [json.loads((tmp_path / str(rank)).read_text(encoding="utf-8")) for rank in (0, 1)]
    # Physics: what the buckets do not let through at once cannot travel faster than the rate.
    least_s = (NUM_REPEATS * NUM_BYTES - BURST_BYTES) / bytes_per_s(RATE)
    for rank, seen in enumerate(found):
        assert seen["seconds"] > least_s
        assert seen["value"] == 2.0**NUM_REPEATS
        assert seen["environment"] == [str(rank), "2", "10.88.0.1"]
        assert "eth0" in seen["interfaces"]
        assert seen["num_threads"] == 1


@needs_lab
def test_a_cut_link_is_an_error_that_names_a_rank(tmp_path: Path) -> None:
    flag = tmp_path / "running"
    with netlab(2) as lab:
        with pytest.raises(RankFailedError, match=r"(?s)rank [01] failed:.*all_reduce"):
            lab.start(
                reduce_until_the_cut,
                str(flag),
                timeout_s=2,
                limit_s=30,
                while_waiting=lambda: lab.cut(1) if flag.exists() else None,
            )
        assert leftover_ranks(lab.namespaces) == ""
        lab.restore(1)
        lab.set_rate("10mbit", rank=0)
        assert lab.bytes_per_s == bytes_per_s("1gbit")
        lab.set_rate("10mbit")
        assert lab.bytes_per_s == bytes_per_s("10mbit")
        with pytest.raises(ValueError, match=r"rank must lie in \[0, 2\), got 2"):
            lab.cut(2)


@needs_lab
def test_a_link_that_comes_back_lets_the_run_go_on(tmp_path: Path) -> None:
    def cut_once() -> None:
        nonlocal cut_at_s
        if not (tmp_path / "running").exists():
            return
        if cut_at_s == 0:
            lab.cut(1)
            cut_at_s = time.monotonic()
        elif time.monotonic() > cut_at_s + CUT_S:
            lab.restore(1)

    cut_at_s = 0.0
    with netlab(2) as lab:
        lab.start(
            reduce_through_a_cut, str(tmp_path), timeout_s=15, limit_s=30, while_waiting=cut_once
        )
    assert (tmp_path / "done 0").exists()
    assert (tmp_path / "done 1").exists()


@needs_lab
def test_a_rank_that_raises_is_named_and_the_lab_removed() -> None:
    with (
        pytest.raises(RankFailedError, match=r"(?s)rank 1 failed:.*out of order"),
        netlab(2) as lab,
    ):
        lab.start(raise_on_rank_1, limit_s=30)
    assert own_namespaces() == []


@needs_lab
def test_ranks_that_hang_are_killed_at_the_limit() -> None:
    with netlab(1) as lab:
        with pytest.raises(RankFailedError, match=r"still running after limit_s \(0.5 s\)"):
            lab.start(sleep_on, limit_s=0.5)
        assert leftover_ranks(lab.namespaces) == ""


@needs_lab
def test_an_interrupted_process_leaves_no_namespace() -> None:
    code = (
        "from paceline.testing import netlab; import time\n"
        "with netlab(2): print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=-3)
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == b"up\n"
        assert len(own_namespaces(child.pid)) == 3
        child.send_signal(signal.SIGINT)
        child.wait(timeout=20)
    assert own_namespaces(child.pid) == []


@needs_lab
def test_namespaces_of_a_killed_process_go_with_the_next_lab() -> None:
    code = (
        "from paceline.testing._netlab import netlab; import os, signal\n"
        "with netlab(1): os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    child.wait(timeout=30)
    assert len(own_namespaces(child.pid)) == 2
    with netlab(1):
        assert own_namespaces(child.pid) == []
