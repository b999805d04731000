"""What is saved is what was there, and a process that dies leaves the previous checkpoint whole."""

import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paceline.errors import TaskError
from paceline.torch.overlap._lanes import Lanes
from paceline.torch.overlap.async_checkpoint import PIECE_BYTES, AsyncCheckpoint, _PieceWriter

# Prints a line and stops where `stop_in` is called for the second checkpoint.
DIES = """
import os, sys, threading, torch
from paceline.torch.overlap.async_checkpoint import AsyncCheckpoint
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
    raw, value = Raw(), torch.arange(700_000, dtype=torch.int32).numpy()
    with _PieceWriter(raw) as stream:
        assert stream.write(b"head") == 4
        assert stream.write(value.data) == value.nbytes
    assert max(map(len, raw.parts)) <= PIECE_BYTES
    assert b"".join(raw.parts) == b"head" + value.tobytes()


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


def test_a_write_that_fails_is_told_at_the_next_save(tmp_path: Path) -> None:
    checkpoint = AsyncCheckpoint(tmp_path / "a")
    (tmp_path / "a").rmdir()
    (tmp_path / "a").write_text("in the way")
    checkpoint.save(1, {"x": torch.ones(1)})
    with pytest.raises(TaskError, match="'write checkpoint'"):
        checkpoint.save(2, {"x": torch.ones(1)})
    checkpoint.close()


def test_bad_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        AsyncCheckpoint(tmp_path, keep=0)
    with AsyncCheckpoint(tmp_path) as checkpoint:
        assert checkpoint.latest() is None
        with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
            checkpoint.load({"x": torch.ones(1)})
