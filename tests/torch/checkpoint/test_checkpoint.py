"""A run that is saved and resumed, on one rank."""

import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.torch.checkpoint.runs import NUM_STEPS, STEPS_PER_EPOCH, Run, same
from torch import nn

import paceline
from paceline.errors import CheckpointError, StateMismatchError
from paceline.torch import AsyncCheckpoint
from paceline.torch.checkpoint._random_state import random_state, restore, state_of_rank
from paceline.torch.checkpoint._whole import read_content

# A loop that is asked to end by its own SIGTERM, in step 3.
ASKED = """
import os, signal, sys, time, torch, paceline
model = torch.nn.Linear(2, 1)
with paceline.Checkpoint(sys.argv[1], model=model) as checkpoint:
    with checkpoint.on_signal(signal.SIGTERM):
        for step in range(checkpoint.resume(), 100):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            stopping = checkpoint.should_stop()
            if stopping:
                checkpoint.save(step + 1)
                break
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    run.train(0, NUM_STEPS)
    return run


@pytest.mark.parametrize("at", [1, 5, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2])
def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(
    undisturbed: Run, tmp_path: Path, at: int
) -> None:
    first = Run(tmp_path)
    with first.checkpoint:
        # Goes on while the checkpoint is written.
        first.train(0, at + 2, lambda step: step == at)
    torch.rand(7), np.random.rand(7), random.random()  # noqa: NPY002
    second = Run(tmp_path)
    with second.checkpoint as checkpoint:
        assert checkpoint.resume() == at
        second.train(at, NUM_STEPS)
    assert second.losses == undisturbed.losses[at:]
    assert same(second.state(), undisturbed.state())
    assert second.schedule.get_last_lr() == undisturbed.schedule.get_last_lr()


def test_with_nothing_there_a_run_begins_and_leaves_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    checkpoint = paceline.Checkpoint(folder, model=nn.Linear(1, 1))
    assert checkpoint.resume() == 0
    assert checkpoint.latest() is None
    checkpoint.flush()
    checkpoint.close()
    assert not folder.exists()


def test_the_last_are_kept(tmp_path: Path) -> None:
    with paceline.Checkpoint(tmp_path, model=nn.Linear(1, 1), keep=2) as checkpoint:
        for step in (1, 2, 3, 10):
            checkpoint.save(step)
        checkpoint.flush()
        assert checkpoint.latest() == tmp_path / "step_00000010"
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["03", "10"]


def test_without_an_optimizer_what_is_saved_is_what_was_there_at_the_call(tmp_path: Path) -> None:
    model = nn.Linear(500, 500, bias=False)
    with paceline.Checkpoint(tmp_path, model=model, keep=9) as checkpoint:
        for step in range(1, 9):
            nn.init.constant_(model.weight, float(step))
            checkpoint.save(step)
    for step, path in enumerate(sorted(tmp_path.iterdir()), start=1):
        weight = read_content(path).state["model"]["weight"]
        assert weight.unique().tolist() == [step]


def damaged_after(folder: Path) -> Path:
    """Save steps 1, 2 and 3, and damage the last."""
    model = nn.Linear(2, 1, bias=False)
    with paceline.Checkpoint(folder, model=model) as checkpoint:
        for step in (1, 2, 3):
            nn.init.constant_(model.weight, float(step))
            checkpoint.save(step)
            checkpoint.flush()
    file = folder / "step_00000003" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return file


def test_a_damaged_newest_is_told_and_the_one_before_is_used(tmp_path: Path) -> None:
    file = damaged_after(tmp_path)
    model = nn.Linear(2, 1, bias=False)
    with paceline.Checkpoint(tmp_path, model=model) as checkpoint:
        message = rf"going back to .*step_00000002, because {file} has \d+ bytes, but"
        with pytest.warns(UserWarning, match=message):
            assert checkpoint.resume() == 2
        assert model.weight.tolist() == [[2.0, 2.0]]
        nn.init.constant_(model.weight, 7.0)
        with pytest.raises(CheckpointError, match="step_00000002 is older and whole"):
            checkpoint.resume(strict=True)
        assert model.weight.tolist() == [[7.0, 7.0]]


def test_where_none_is_whole_nothing_begins_anew_in_silence(tmp_path: Path) -> None:
    damaged_after(tmp_path)
    for step in (1, 2):
        (tmp_path / f"step_0000000{step}" / "index.json").unlink()
    checkpoint = paceline.Checkpoint(tmp_path, model=nn.Linear(2, 1, bias=False))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: .*step_00000003"):
        checkpoint.resume()


def test_the_newest_that_was_written_survives_a_damaged_newer_one(tmp_path: Path) -> None:
    damaged_after(tmp_path)
    model = nn.Linear(2, 1, bias=False)
    with paceline.Checkpoint(tmp_path, model=model, keep=1) as checkpoint:
        with pytest.warns(UserWarning, match="going back"):
            checkpoint.resume()
        checkpoint.save(2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


@pytest.mark.parametrize(
    ("model", "others", "message"),
    [
        (nn.Linear(3, 1), {}, r"the model has a tensor of shape \(1, 3\) .* as 'weight'"),
        (nn.Linear(2, 1, bias=False), {}, "the model has nothing as 'bias'"),
        (nn.Linear(2, 1).double(), {}, "torch.float64 as 'weight', and .* torch.float32 was saved"),
        (nn.Linear(2, 1), {"optimizer": "other"}, r"groups of \[1\] parameters, and .* \[2\]"),
        (nn.Linear(2, 1), {"extra": nn.Linear(1, 1)}, "does not hold extra; it holds"),
    ],
)
def test_another_model_is_refused_before_anything_is_changed(
    tmp_path: Path, model: nn.Module, others: dict[str, Any], message: str
) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    made = nn.Linear(2, 1)
    with paceline.Checkpoint(tmp_path, model=made, optimizer=optimizer(made.parameters())) as one:
        one.save(1)
    is_other = others.pop("optimizer", None)
    chosen = optimizer(list(model.parameters())[: 1 if is_other else None])
    before = [parameter.clone() for parameter in model.parameters()]
    other = paceline.Checkpoint(tmp_path, model=model, optimizer=chosen, **others)
    with pytest.raises(StateMismatchError, match=message):
        other.resume()
    assert same(before, list(model.parameters()))


def test_what_is_saved_and_not_resumed_is_told(tmp_path: Path) -> None:
    model, extra = nn.Linear(2, 1), nn.Linear(1, 1)
    with paceline.Checkpoint(tmp_path, model=model, extra=extra) as checkpoint:
        checkpoint.save(1)
    checkpoint = paceline.Checkpoint(tmp_path, model=model)
    with pytest.warns(UserWarning, match="also holds extra, which is not resumed"):
        assert checkpoint.resume() == 1


def test_what_another_writer_saved_is_refused(tmp_path: Path) -> None:
    with AsyncCheckpoint(tmp_path) as other:
        other.save(1, {"model": {}})
    checkpoint = paceline.Checkpoint(tmp_path, model=nn.Linear(1, 1))
    with pytest.raises(StateMismatchError, match=r"was not written by paceline\.Checkpoint; read"):
        checkpoint.resume()


def test_what_has_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data must have state_dict and load_state_dict, got list"):
        paceline.Checkpoint(tmp_path, model=nn.Linear(1, 1), data=[])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        paceline.Checkpoint(tmp_path, model=nn.Linear(1, 1), keep=0)


def test_what_cannot_be_saved_is_named_at_once(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"names": {"a"}}

        def set_extra_state(self, state: Any) -> None:
            pass

    checkpoint = paceline.Checkpoint(tmp_path, model=Odd(1, 1))
    with pytest.raises(ValueError, match=r"\['_extra_state'\]\['names'\] is of type set"):
        checkpoint.save(1)


def test_a_failed_save_is_told_once_and_the_next_one_saves(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with paceline.Checkpoint(folder, model=nn.Linear(1, 1)) as checkpoint:
        checkpoint.save(1)
        checkpoint.flush()
        (folder / ".partial_step_00000002").write_text("in the way")
        checkpoint.save(2)
        with pytest.raises(CheckpointError, match="of step 2 could not be written: FileExists"):
            checkpoint.save(3)
        checkpoint.flush()
        assert checkpoint.latest() == folder / "step_00000003"


def test_random_states_come_back() -> None:
    random.gauss(0, 1), np.random.randn()  # noqa: NPY002  # Each keeps a second number.
    state = random_state()

    def drawn() -> list[Any]:
        numpy = np.random.randn(3).tolist()  # noqa: NPY002
        return [torch.rand(3).tolist(), random.gauss(0, 1), random.random(), numpy]

    expected = drawn()
    restore(state)
    assert drawn() == expected
    restore(state_of_rank(0, [state, state]))
    assert drawn() == expected
    new = []
    for rank in (1, 2, 1):
        restore(state_of_rank(rank, [state]))
        new.append(drawn())
    assert new[0] == new[2] != new[1] != expected


def test_a_signal_ends_a_run_with_a_checkpoint_and_status_0(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ASKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]


def test_handlers_come_back_and_other_threads_are_refused(tmp_path: Path) -> None:
    checkpoint = paceline.Checkpoint(tmp_path, model=nn.Linear(1, 1))
    before = signal.getsignal(signal.SIGUSR1)
    with suppress(KeyError), checkpoint.on_signal(signal.SIGUSR1):
        assert not checkpoint.should_stop()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert checkpoint.should_stop()
        raise KeyError
    assert signal.getsignal(signal.SIGUSR1) is before
    raised: list[str] = []

    def enter() -> None:
        try:
            with checkpoint.on_signal(signal.SIGUSR1):
                pass
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert raised == ["signals reach the main thread only; call on_signal there"]
