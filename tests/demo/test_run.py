"""The whole demo, as a user starts it."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from paceline.demo import DemoResult, show_verdict
from paceline.run import Run

WAYS = ("plain", "tuned", "paced", "window")
PACELINE = str(Path(sysconfig.get_path("scripts"), "paceline"))
# A machine with other work to do may take minutes; only a hang takes longer.
DEADLINE_S = 240.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_demo_prints_one_json_object_and_writes_a_trace(tmp_path: Path) -> None:
    output = tmp_path / "out"
    ended = subprocess.run(
        [PACELINE, "demo", "--seconds", "15", "--json", "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said = [text for text in ended.stderr.splitlines() if not text.startswith("paceline: ")]
    told = [text.partition(" s  ")[2] for text in said]
    predicted = [index for index, text in enumerate(told) if text.startswith("predicted tokens/s")]
    assert told[0] == "reading Python's standard library"
    assert told[predicted[0] + 1 :][:2] == ["training, warm-up", "training, round 1"]
    assert len(told) == len(said) == predicted[0] + 2 + json.loads(ended.stdout)["num_rounds"]
    result = json.loads(ended.stdout.splitlines()[-1])

    assert result["speedup"] > 0
    assert result["max_loss_difference"] < 1e-4
    assert result["predicted_step_s"] > 0
    assert result["measured_step_s"] > 0
    assert result[result["fastest"]]["over_tuned"] >= 1.0
    for way in WAYS:
        assert result[way]["tokens_per_s"] > 0
        assert 0 < result[way]["p50_s"] <= result[way]["p90_s"]
        assert len(result[way]["idle"]) == 2
        assert all(0 <= share < 1 for share in result[way]["idle"])
    assert result == json.loads((output / "summary.json").read_text(encoding="utf-8"))

    trace = Path(result["trace"])
    assert trace == output / "trace.json"
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    steps = {event["args"]["step"] for event in events if event["ph"] == "X"}
    # All ways, three steps a round, one round to warm up.
    assert steps == set(range(len(WAYS) * 3 * (result["num_rounds"] + 1)))
    lanes = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert lanes == set(WAYS)
    files = ["summary.json", "trace.json"]
    assert sorted(path.name for path in output.iterdir()) == sorted([*files, *WAYS])
    check_recorded(output, result)


def check_recorded(output: Path, result: dict[str, Any]) -> None:
    """Each way is a run; its end is the verdict over default PyTorch and where its page is."""
    for way in WAYS:
        run = Run.load(output / way)
        num_steps = 3 * (result["num_rounds"] + 1)
        assert run.num_steps + len(run.warm_up[0].begin_s) == num_steps, way
        padding = sum(int(steps.num_padding.sum()) for steps in run.steps)
        elements = sum(int(steps.num_elements.sum()) for steps in run.steps)
        # The first round is left out of the result, and not all of it is warm-up of the run.
        assert padding / elements == pytest.approx(result[way]["padding"], abs=0.2)
        # What other ways did between two turns is no part of this one.
        wide_s = run.timeline().makespan_s
        assert wide_s < 1.5 * run.step_s * run.num_steps + 1.0
    console = Console(file=io.StringIO(), width=100)
    show_verdict(DemoResult.load(output / "summary.json").recorded, console)
    told = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any(line.startswith("what   ") for line in told)
    assert told[-1] == f"report: {output / 'report.html'}"
    assert "default PyTorch" in (output / "report.html").read_text(encoding="utf-8")


def processes_of(session: int) -> Iterator[Path]:
    """Yield the folder under /proc of each live process of `session`."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                yield folder


def is_rank_at_work(folder: Path) -> bool:
    """Say whether it is a rank that has finished its imports: it listens to Ctrl-C again."""
    try:
        # The fork server itself has the same command line, but never listens.
        command = (folder / "cmdline").read_bytes()
        is_rank = b"forkserver" in command or b"spawn_main" in command
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    except OSError:
        return False
    unheard = int(status["SigIgn"], 16) | int(status["SigCgt"], 16)
    return is_rank and not unheard & 1 << (signal.SIGINT - 1)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc to see the ranks")
def test_an_interrupted_demo_ends_its_ranks_and_says_so_in_one_line(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        [PACELINE, "demo", "--seconds", "60", "--output", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(scratch)},
    ) as demo:
        try:
            wait_until(
                lambda: (
                    demo.poll() is not None
                    or sum(map(is_rank_at_work, processes_of(demo.pid))) == 2
                ),
                "two ranks at work",
            )
            os.killpg(demo.pid, signal.SIGINT)
            printed, complaints = demo.communicate(timeout=DEADLINE_S)
            wait_until(lambda: not list(processes_of(demo.pid)), "the last process to end")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(demo.pid, signal.SIGKILL)
    assert (demo.returncode, printed) == (130, "")
    assert complaints.splitlines()[-1] == "paceline: interrupted"
    assert "Traceback" not in complaints
    # Importing torch._dynamo, as the first optimizer does, makes torch's own cache folder.
    left = [path.name for path in scratch.iterdir() if not path.name.startswith("torchinductor_")]
    assert left == []
