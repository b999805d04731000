"""What is saved is what was there, and a process that dies leaves the previous checkpoint whole."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from paceline.errors import CheckpointError, StateMismatchError
from paceline.torch import AsyncCheckpoint, Lanes
from paceline.torch.checkpoint._safetensors import PIECE_BYTES, write_pieces

# Prints a line and stops where `stop_in` is called for the second checkpoint.
DIES = """
import os, sys, threading, torch
from paceline.torch import AsyncCheckpoint
folder, stop_in = sys.argv[1:]
checkpoint = AsyncCheckpoint(folder)
checkpoint.save(1, {"x": torch.ones(1000), "step": 1})
checkpoint.flush()
def stop(*_):
    print("stopped", flush=True)
    threading.Event().wait()
setattr(os, stop_in, stop)
checkpoint.save(2, {"x": torch.zeros(1000), "step": 2})
checkpoint.flush()
"""


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7}


class Raw(io.RawIOBase):
    """Takes half of what it is given at a time, as a file may."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Take the first half."""
        self.parts.append(bytes(data[: (len(data) + 1) // 2]))
        return len(self.parts[-1])


def test_what_is_large_is_written_in_pieces_and_whole() -> None:
    raw, value = Raw(), torch.arange(700_000, dtype=torch.int32).numpy().tobytes()
    with io.BufferedWriter(raw) as stream:
        write_pieces(stream, memoryview(b"head"))
        assert write_pieces(stream, memoryview(value)) == sha256(value).hexdigest()
    assert max(map(len, raw.parts)) <= PIECE_BYTES
    assert b"".join(raw.parts) == b"head" + value


def test_what_comes_back_is_what_was_there_while_training_went_on(tmp_path: Path) -> None:
    model, optimizer = trained()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with AsyncCheckpoint(tmp_path, optimizer) as checkpoint:
        handle = checkpoint.save(1, state(model, optimizer))
        step(model, optimizer)  # Waits for the snapshot before it changes the parameters.
        assert handle.wait() == tmp_path / "step_00000001" == checkpoint.latest()
        assert not torch.equal(model.state_dict()["0.weight"], expected["0.weight"])
        found = state(model, optimizer) | {"epoch": 0}
        checkpoint.load(found)
    model.load_state_dict(found["model"])
    assert found["epoch"] == 7
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with Lanes() as lanes, AsyncCheckpoint(tmp_path, lanes=lanes, keep=2) as checkpoint:
        for number in (5, 30, 200, 30):
            checkpoint.save(number, {"x": torch.full((3,), float(number))})
        checkpoint.flush()
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "step_00000030",
            "step_00000200",
        ]
        found = {"x": torch.zeros(3)}
        checkpoint.load(found, tmp_path / "step_00000030")
        assert found["x"].tolist() == [30.0] * 3
        names = [span.name for span in lanes.timeline()]
        assert names.count("snapshot") == names.count("write checkpoint") == 4


@pytest.mark.parametrize("stop_in", ["fsync", "replace"])
def test_a_killed_process_leaves_the_previous_checkpoint_whole(
    tmp_path: Path, stop_in: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path), stop_in], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped\n"
    process.kill()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert any(path.name.startswith(".partial") for path in tmp_path.iterdir())
    with AsyncCheckpoint(tmp_path) as checkpoint:
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
        found = {"x": torch.zeros(1000), "step": 0}
        checkpoint.load(found)
    assert found["step"] == 1
    assert torch.equal(found["x"], torch.ones(1000))


def test_a_write_that_fails_is_told_once_and_the_next_save_saves(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    checkpoint = AsyncCheckpoint(folder)
    folder.rmdir()
    folder.write_text("in the way")
    handle = checkpoint.save(1, {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match="of step 1 could not be written: FileExistsError"):
        checkpoint.flush()
    checkpoint.flush()
    with pytest.raises(CheckpointError, match="of step 1 could not be written"):
        handle.wait()
    checkpoint.save(2, {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match="of step 2"):
        checkpoint.save(3, {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match="of step 3"):
        checkpoint.flush()
    folder.unlink()
    checkpoint.save(4, {"x": torch.ones(1)})
    checkpoint.close()
    assert [path.name for path in folder.iterdir()] == ["step_00000004"]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount 1 MiB, or let writes fail after as much where mounting is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    if is_mounted:
        yield
        subprocess.run(["umount", str(folder)], check=True)
        return

    def full(file: Any, data: memoryview) -> str:
        if len(data) > PIECE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_pieces(file, data)

    with patch("paceline.torch.checkpoint._safetensors.write_pieces", full):
        yield


def test_a_full_disk_is_named_and_nothing_partial_stays_on_it(tmp_path: Path) -> None:
    with small_disk(tmp_path), AsyncCheckpoint(tmp_path) as checkpoint:
        checkpoint.save(1, {"x": torch.ones(1000)})
        checkpoint.save(2, {"x": torch.ones(1 << 20)})
        with pytest.raises(CheckpointError, match=r"OSError.*No space left on device"):
            checkpoint.save(3, {"x": torch.full((1000,), 3.0)})
        checkpoint.flush()
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["step_00000001", "step_00000003"]


def test_what_only_the_forward_pass_changes_is_saved_as_it_was(tmp_path: Path) -> None:
    """Batch norms change their buffers before the optimizer steps and waits for the snapshot."""
    model = nn.BatchNorm1d(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Lanes() as lanes, AsyncCheckpoint(tmp_path, optimizer, lanes=lanes) as checkpoint:
        is_free = threading.Event()
        lanes.submit(is_free.wait, lane="copy")  # So that the snapshot comes late.
        checkpoint.save(1, {"model": model.state_dict()})
        model(torch.randn(5, 3))
        is_free.set()
        found = {"model": model.state_dict()}
        checkpoint.flush()
        checkpoint.load(found)
    assert model.num_batches_tracked == 0
    assert torch.equal(model.running_mean, torch.zeros(3))


def test_loading_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    with AsyncCheckpoint(tmp_path) as checkpoint:
        checkpoint.save(1, {"x": torch.ones(3), "y": [torch.ones(2), 5], "n": 1}).wait()
        here = {"x": torch.zeros(3), "y": [torch.zeros(1), 0]}
        with pytest.raises(StateMismatchError, match=r"\['y'\]\[0\] is a tensor of shape \(1,\)"):
            checkpoint.load(here)
        with pytest.raises(StateMismatchError, match=r"does not hold \['z'\]"):
            checkpoint.load({"x": here["x"], "z": 1})
        assert here["x"].tolist() == [0, 0, 0]
        here["y"][0] = torch.zeros(2)
        checkpoint.load(here)
        assert here["x"].tolist() == [1, 1, 1]
        assert here["y"][0].tolist() == [1, 1]
        assert here["y"][1] == 5


def test_a_kill_between_two_renames_loses_no_checkpoint(tmp_path: Path) -> None:
    with AsyncCheckpoint(tmp_path, keep=1) as checkpoint:
        checkpoint.save(1, {"n": 1}).wait()
    (tmp_path / "step_00000001").rename(tmp_path / ".replaced_step_00000001")
    (tmp_path / ".partial_step_00000001").mkdir()
    with AsyncCheckpoint(tmp_path, keep=1) as checkpoint:
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
        found = {"n": 0}
        checkpoint.load(found)
        assert found == {"n": 1}


def test_bad_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        AsyncCheckpoint(tmp_path, keep=0)
    with AsyncCheckpoint(tmp_path) as checkpoint:
        assert checkpoint.latest() is None
        with pytest.raises(ValueError, match=r"state\['a'\]\[1\] is of type set, which is not"):
            checkpoint.save(1, {"a": [1, {2}]})
        with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
            checkpoint.load({"x": torch.ones(1)})
