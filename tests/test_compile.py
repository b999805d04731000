"""Kernels: what is interpreted, what is compiled, by whom, and where the machine code lies."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paceline import _compile
from paceline.timeline import Kind, TaskGraph, simulate

PLAN = """
import sys
import numpy as np
from paceline.balance import BalanceConfig, plan_epoch
sizes = np.random.default_rng(0).integers(30, 2000, {num})
plan = plan_epoch(sizes, BalanceConfig(num_workers=8, batch_size=64, counts="free"))
print("numba" in sys.modules, int((plan.examples * np.arange(len(plan.examples)) % 9973).sum()))
"""
# A kernel of one's own that compiles in a moment, and what its process did with it.
KERNEL = """
import sys
from numba.core import event
from paceline import _compile
_compile.SAY_AFTER_S = {say_after_s}
compiles = []
class Listener(event.Listener):
    def on_start(self, event): compiles.append(event)
    def on_end(self, event): pass
event.register("numba:compile", Listener())
from kernel import twice
print(twice(21), len(compiles))
"""
SOURCE = """
from paceline._compile import compiled
from called import plus
@compiled
def twice(x: int) -> int:
    return plus(x, x)
"""
CALLED = """
from paceline._compile import compiled
@compiled
def plus(x: int, y: int) -> int:
    return x + y + {offset}
"""


def command(code: str) -> list[str]:
    return [sys.executable, "-W", "error", "-c", code]


def environment(folder: Path, **others: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    path = os.pathsep.join([str(folder), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "HOME": str(folder), "XDG_CACHE_HOME": ""} | others


def run(code: str, folder: Path, **others: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(code),
        env=environment(folder, **others),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with a kernel that calls one of another file; also a home."""
    (tmp_path / "kernel.py").write_text(SOURCE)
    (tmp_path / "called.py").write_text(CALLED.format(offset=0))
    return tmp_path


def test_a_first_plan_needs_neither_numba_nor_a_file(tmp_path: Path) -> None:
    result = run(PLAN.format(num=10_000), tmp_path)
    assert (result.stdout.split()[0], result.stderr) == ("False", "")
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_processes_compiles_and_says_so(house: Path) -> None:
    both = [
        subprocess.Popen(
            command(KERNEL.format(say_after_s=0.0)),
            env=environment(house),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ends = [process.communicate(timeout=100) for process in both]
    # The kernel and what it calls, in one process only.
    assert sorted(out for out, _ in ends) == ["42 0\n", "42 0\n", "42 2\n"]
    (said,) = [err for out, err in ends if err]
    assert said.count("\n") == 1
    assert str(house / ".cache/paceline") in said
    assert run(KERNEL.format(say_after_s=0.0), house).stdout == "42 0\n"
    # A change to what is called counts, though it is in another file.
    (house / "called.py").write_text(CALLED.format(offset=1))
    assert run(KERNEL.format(say_after_s=100.0), house).stdout == "43 2\n"


def test_without_a_place_to_write_each_process_compiles(house: Path) -> None:
    (house / "file").touch()
    result = run(KERNEL.format(say_after_s=0.0), house, XDG_CACHE_HOME=str(house / "file"))
    assert result.stdout == "42 2\n"
    assert "set NUMBA_CACHE_DIR" in result.stderr
    assert not (house / ".cache").exists()
    assert not list(house.rglob("*.nbi"))


def test_a_full_disk_is_no_error(house: Path) -> None:
    full = """
from numba.core import caching
def fail(*args): raise OSError(28, "No space left on device")
caching.IndexDataCacheFile.save = fail
"""
    assert run(full + KERNEL.format(say_after_s=100.0), house).stdout == "42 2\n"


def test_the_cache_of_numba_is_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert _compile.cache_folder() == tmp_path / "paceline"


def test_what_was_interpreted_for_long_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(costs: object, *_: object) -> None:
        calls.append(costs)

    kernel = _compile.compiled_beyond(10)(count)
    monkeypatch.setattr(kernel, "_compile", lambda args: setattr(kernel, "_call", lambda *_: None))
    kernel(np.zeros(4), (np.zeros(6),))
    assert len(calls) == 1
    monkeypatch.setattr(_compile, "INTERPRETED_S", 0.0)
    kernel(np.zeros(4))
    assert len(calls) == 1


def test_what_is_large_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = _compile.compiled_beyond(10)(calls.append)
    monkeypatch.setattr(kernel, "_compile", lambda args: setattr(kernel, "_call", lambda *_: None))
    kernel(np.zeros(11))
    assert calls == []


def test_a_simulation_is_the_same_interpreted_and_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    num_steps, num_ranks = 40, 3
    rank = np.tile(np.arange(num_ranks), 2 * num_steps)
    is_wire = np.repeat(np.arange(2 * num_steps) % 2, num_ranks)
    graph = TaskGraph.from_columns(
        rng.random(len(rank)),
        edges=[(task, task + num_ranks) for task in range(len(rank) - num_ranks)],
        rank=rank,
        lane=is_wire,
        kind=np.where(is_wire, Kind.COLLECTIVE, Kind.COMPUTE),
        collective=np.where(is_wire, np.arange(len(rank)) // num_ranks, -1),
        lanes=("main", "comm"),
    )
    with monkeypatch.context() as patch:
        patch.setattr(_compile._Kernel, "__call__", _compile._Kernel._interpret)
        slow = simulate(graph)
        slow_path = slow.summary().critical_path
    with monkeypatch.context() as patch:
        patch.setattr(_compile._Kernel, "_is_small", lambda *_: False)
        fast = simulate(graph)
        fast_path = fast.summary().critical_path
    assert slow.end_s.tobytes() == fast.end_s.tobytes()
    assert slow_path.tobytes() == fast_path.tobytes()
