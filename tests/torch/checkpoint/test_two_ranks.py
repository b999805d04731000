"""Runs of two ranks that are saved, resumed, resumed on one, and told what went wrong."""

import json
import os
import signal
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.torch.checkpoint.runs import NUM_STEPS, SIZES, STEPS_PER_EPOCH, Run, Wrap, same
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import paceline
from paceline.comm import plan_p3
from paceline.testing import run_ranks

# The second steps with overlapping transfers from its fifth step on.
scheduled = partial(paceline.ScheduledDataParallel, choose=plan_p3, num_measure_steps=4)
WRAPS: dict[str, Wrap] = {
    "ddp": lambda model, _: DistributedDataParallel(model),
    "scheduled": scheduled,
    "sharded": partial(scheduled, sharded=True),
}
# Inside the second epoch, and between the two.
SAVED_AT = {"ddp": (STEPS_PER_EPOCH, 8), "scheduled": (8,), "sharded": (8,)}


def find_all(rank: int, folder: Path) -> None:
    found: dict[str, Any] = {}
    for name, wrap in WRAPS.items():
        found |= resumed_beside_undisturbed(folder / name, name, wrap)
    found["seen"] = resumed_from_one_rank(folder)
    for check in (other_folder, other_states, failed_save, damaged, stopped_by_rank_1):
        found[check.__name__] = check(rank, folder / check.__name__)
    (folder / f"found_{rank}.json").write_text(json.dumps(found))


def resumed_beside_undisturbed(folder: Path, name: str, wrap: Wrap) -> dict[str, Any]:
    plain = Run(folder / "plain", wrap)
    plain.train(0, NUM_STEPS)
    expected = plain.state()
    plain.close()
    found: dict[str, Any] = {}
    for at in SAVED_AT[name]:
        first = Run(folder / str(at), wrap)
        first.train(0, at + 2, lambda step, at=at: step == at)
        first.checkpoint.flush()
        first.close()
        second = Run(folder / str(at), wrap)
        step = second.checkpoint.resume()
        second.train(step, NUM_STEPS)
        is_same = same(second.state(), expected) and second.losses == plain.losses[at:]
        found[f"{name} {at}"] = [step, is_same]
        second.close()
    return found


def resumed_from_one_rank(folder: Path) -> dict[int, list[int]]:
    run = Run(folder / "one", WRAPS["sharded"])
    step = run.checkpoint.resume()
    run.train(step, NUM_STEPS)
    run.close()
    return run.seen


def told(function: Callable[[], Any]) -> str:
    try:
        return f"returned {function()}"
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def new(folder: Path, **stateful: Any) -> tuple[nn.Module, paceline.Checkpoint]:
    model = nn.Linear(2, 1)
    return model, paceline.Checkpoint(folder, model=model, **stateful)


def other_folder(rank: int, folder: Path) -> list[Any]:
    """Each rank has a disk of its own, and rank 1's holds other numbers."""
    for disk in (0, 1):
        model, saving = new(folder / str(disk))
        nn.init.constant_(model.weight, disk)
        saving.save(5)
        saving.flush()
    model, checkpoint = new(folder / str(rank))
    before = model.weight.tolist()
    said = [told(checkpoint.resume), model.weight.tolist() == before]
    model, checkpoint = new(folder / "0" if rank == 0 else folder / "nowhere")
    return [*said, told(checkpoint.resume)]


def other_states(rank: int, folder: Path) -> list[str]:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    _, checkpoint = new(folder, schedule=torch.optim.lr_scheduler.StepLR(optimizer, 3 + rank))
    said = [told(lambda: checkpoint.save(1))]
    _, checkpoint = new(folder)
    return [*said, told(lambda: checkpoint.save(1 + rank)), told(checkpoint.resume)]


def failed_save(rank: int, folder: Path) -> list[str]:
    _, checkpoint = new(folder)
    checkpoint.save(1)
    checkpoint.flush()
    if rank == 0:
        (folder / ".partial_step_00000002").write_text("in the way")
    checkpoint.save(2)
    said = [told(lambda: checkpoint.save(3)), told(checkpoint.flush)]
    return [*said, str(checkpoint.latest())[-2:]]


def damaged(rank: int, folder: Path) -> list[Any]:
    _, checkpoint = new(folder)
    for step in (1, 2):
        checkpoint.save(step)
    checkpoint.flush()
    if rank == 0:
        (folder / "step_00000002" / "index.json").write_text("{}")
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return [checkpoint.resume(), len(caught)]


def stopped_by_rank_1(rank: int, folder: Path) -> list[Any]:
    _, checkpoint = new(folder)
    with checkpoint.on_signal(signal.SIGTERM):
        for step in range(10):
            if (rank, step) == (1, 3):
                os.kill(os.getpid(), signal.SIGTERM)
            if checkpoint.should_stop():
                checkpoint.save(step + 1)
                break
    checkpoint.flush()
    return [step, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """Save in the second epoch on one rank, and resume it on two."""
    folder = tmp_path_factory.mktemp("runs")
    run = Run(folder / "one")
    with run.checkpoint:
        run.train(0, 8, lambda step: step == 8)
    run_ranks(find_all, 2, folder, timeout_s=60)
    return folder, run


@pytest.fixture(scope="module")
def found(one_rank: tuple[Path, Run]) -> list[dict[str, Any]]:
    return [json.loads((one_rank[0] / f"found_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", WRAPS)
def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(
    found: list[dict[str, Any]], name: str
) -> None:
    for at in SAVED_AT[name]:
        assert [rank[f"{name} {at}"] for rank in found] == [[at, True]] * 2


def test_two_ranks_go_on_where_one_stopped_and_each_example_comes_once(
    found: list[dict[str, Any]], one_rank: tuple[Path, Run]
) -> None:
    together = one_rank[1].seen[1] + found[0]["seen"]["1"] + found[1]["seen"]["1"]
    assert sorted(together) == list(range(len(SIZES)))


@pytest.mark.parametrize("name", WRAPS)
def test_one_rank_goes_on_where_two_stopped(
    found: list[dict[str, Any]], one_rank: tuple[Path, Run], name: str
) -> None:
    run = Run(one_rank[0] / name / "8")
    with run.checkpoint as checkpoint:
        assert checkpoint.resume() == 8
        run.train(8, NUM_STEPS)
    # Two of the six steps of epoch 1 were made.
    assert len(run.seen[1]) == len(set(run.seen[1])) == len(SIZES) * 4 // 6
    assert run.optimizer.state_dict()["state"][0]["step"] == NUM_STEPS
    assert sorted(run.seen[2]) == sorted(set(run.seen[2]))


def test_ranks_that_read_other_files_are_named_and_change_nothing(
    found: list[dict[str, Any]],
) -> None:
    for rank in found:
        differs, is_unchanged, missing = rank["other_folder"]
        assert differs.startswith("CheckpointError: rank 1: ")
        assert "step_00000005 is not the checkpoint that rank 0 read; 1 of 2 ranks" in differs
        assert is_unchanged
        assert "CheckpointError: rank 1: " in missing
        assert "nowhere/step_00000005/index.json cannot be read" in missing


def test_ranks_that_would_save_other_states_are_refused(found: list[dict[str, Any]]) -> None:
    for rank in found:
        states, steps, resumed = rank["other_states"]
        assert states.startswith("CheckpointError: the state of 'schedule' on rank 1 is not that")
        assert steps.startswith("CheckpointError: rank 1 saves step 2, and rank 0 step 1;")
        assert resumed == "returned 0"


def test_all_ranks_learn_once_that_a_save_failed(found: list[dict[str, Any]]) -> None:
    for rank in found:
        saved, flushed, newest = rank["failed_save"]
        assert saved.startswith("CheckpointError: the checkpoint of step 2 could not be written")
        assert (flushed, newest) == ("returned None", "03")


def test_all_ranks_go_back_and_one_warns(found: list[dict[str, Any]]) -> None:
    assert [rank["damaged"] for rank in found] == [[1, 1], [1, 0]]


def test_a_signal_to_one_rank_stops_both_after_the_same_step(found: list[dict[str, Any]]) -> None:
    assert [rank["stopped_by_rank_1"] for rank in found] == [[4, True]] * 2
