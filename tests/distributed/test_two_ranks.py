"""Two gloo processes. A spawn costs seconds, so the checks on a run share one, made by `found`."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from paceline.errors import RankFailedError
from paceline.testing import run_ranks
from paceline.timeline import Kind, Timeline
from paceline.torch import measure_job, watch

NUM_STEPS = 4
STEP = ["between steps", "forward", "loss", "backward", "all-reduce", "after backward", "optimizer"]
Found = list[dict[str, Any]]


class Model(nn.Module):
    """Two layers; the forward pass does `num_extra` matrix products on top."""

    def __init__(self, num_extra: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
        self.num_extra = num_extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.eye(384)
        for _ in range(self.num_extra):
            weight = weight @ weight
        result: torch.Tensor = self.layers(x)
        return result


def batches(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(4, 8, generator=generator) for _ in range(NUM_STEPS)]


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    for batch in batches(rank):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


def rows(timeline: Timeline) -> list[dict[str, Any]]:
    return [span._asdict() for span in timeline]


def parameters_of(model: nn.Module) -> list[list[float]]:
    return [parameter.detach().flatten().tolist() for parameter in model.parameters()]


def watch_a_slow_rank(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(Model(num_extra=60 if rank == 1 else 0))
    optimizer = new_optimizer(model)
    with watch(model, optimizer) as run:
        train(model, optimizer, rank)
    gathered = run.gather()
    summary = gathered.summary()
    return {
        "own": rows(run.timeline()),
        "gathered": rows(gathered),
        "slowest_rank": summary.slowest_rank,
        "waited_for_s": summary.waited_for_s.tolist(),
        "same_summary": run.summary().to_dict() == summary.to_dict(),
        "watched_parameters": parameters_of(model),
    }


def train_unwatched(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(Model())
    train(model, new_optimizer(model), rank)
    return {"unwatched_parameters": parameters_of(model)}


def accumulate(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(Model())
    optimizer = new_optimizer(model)
    first, second, *_ = batches(rank)
    with watch(model, optimizer) as run:
        with model.no_sync():
            model(first).sum().backward()
        model(second).sum().backward()
        optimizer.step()
    return {"accumulated": rows(run.timeline())}


def reduce_by_hand(rank: int) -> dict[str, Any]:
    model = Model()
    optimizer = new_optimizer(model)
    with watch(model, optimizer) as run:
        for batch in batches(rank):
            optimizer.zero_grad()
            model(batch).sum().backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
            optimizer.step()
    return {"by_hand": rows(run.timeline())}


def measure(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(Model())
    optimizer = new_optimizer(model)
    batch = batches(rank)[0]
    before = parameters_of(model)
    job = measure_job(model, batch, num_steps=5)
    left_alone = parameters_of(model) == before
    train(model, optimizer, rank)
    assert job.link is not None
    return {
        "layers": [asdict(layer) for layer in job.layers],
        "link": asdict(job.link),
        "num_workers": len(job.workers),
        "left_alone": left_alone,
        "trained_after_measuring": parameters_of(model),
    }


def find_all(rank: int, folder: str) -> None:
    parts = (watch_a_slow_rank, train_unwatched, accumulate, reduce_by_hand, measure)
    found = {key: value for part in parts for key, value in part(rank).items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder))
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def column(spans: list[dict[str, Any]], name: str) -> list[Any]:
    return [span[name] for span in spans]


def collectives(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [span for span in spans if span["kind"] == Kind.COLLECTIVE]


def seconds_in(spans: list[dict[str, Any]], name: str) -> float:
    return sum(span["duration_s"] for span in spans if span["name"] == name)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_parallel_backward_pass_ends_with_an_all_reduce(found: Found, rank: int) -> None:
    spans = found[rank]["own"]
    assert column(spans, "name") == STEP * NUM_STEPS
    assert set(column(spans, "rank")) == {rank}
    assert column(collectives(spans), "collective") == list(range(NUM_STEPS))
    assert column(collectives(spans), "step") == list(range(NUM_STEPS))


def test_every_rank_gathers_the_spans_of_all(found: Found) -> None:
    gathered = found[0]["gathered"]
    assert gathered == found[1]["gathered"]
    assert column(gathered, "rank") == [0] * 28 + [1] * 28
    assert column(gathered, "name") == STEP * NUM_STEPS * 2
    durations = column(found[0]["own"], "duration_s") + column(found[1]["own"], "duration_s")
    assert column(gathered, "duration_s") == durations


def test_collectives_end_together_on_the_gathered_clock(found: Found) -> None:
    spans = collectives(found[0]["gathered"])
    ends = np.array([span["start_s"] + span["duration_s"] for span in spans]).reshape(2, -1)
    assert np.median(ends[0] - ends[1]) == pytest.approx(0.0, abs=1e-6)


def test_the_rank_with_more_work_is_the_one_waited_for(found: Found) -> None:
    assert [one["slowest_rank"] for one in found] == [1, 1]
    (_, fast_waits), (slow_waits, _) = found[0]["waited_for_s"]
    assert fast_waits > slow_waits
    fast, slow = (one["own"] for one in found)
    assert fast_waits > (seconds_in(slow, "forward") - seconds_in(fast, "forward")) / 2
    assert seconds_in(fast, "all-reduce") > seconds_in(slow, "all-reduce")
    assert found[0]["waited_for_s"] == found[1]["waited_for_s"]
    assert [one["same_summary"] for one in found] == [True, True]


def test_watching_changes_no_bit_of_the_training(found: Found) -> None:
    for one in found:
        assert one["watched_parameters"] == one["unwatched_parameters"]
    assert found[0]["watched_parameters"] == found[1]["watched_parameters"]


def test_a_pass_that_only_accumulates_has_no_collective(found: Found) -> None:
    for one in found:
        assert column(one["accumulated"], "name") == STEP[:4] + STEP
        assert column(collectives(one["accumulated"]), "collective") == [0]


def test_an_all_reduce_by_hand_is_recorded_up_to_the_optimizer(found: Found) -> None:
    for one in found:
        assert column(one["by_hand"], "name") == [*STEP[:5], "optimizer"] * NUM_STEPS
        assert column(collectives(one["by_hand"]), "collective") == list(range(NUM_STEPS))


def test_ranks_agree_on_the_measured_job(found: Found) -> None:
    first, second = found
    assert first["layers"] == second["layers"]
    assert first["link"] == second["link"]
    assert [one["num_workers"] for one in found] == [2, 2]
    assert [(layer["name"], layer["gradient_bytes"]) for layer in first["layers"]] == [
        ("layers.0", 4 * (8 * 16 + 16)),
        ("layers.1", 4 * 32),
        ("layers.2", 4 * 17),
    ]
    assert first["link"]["alpha_s"] >= 0
    assert first["link"]["bytes_per_s"] > 0


def test_a_measured_replica_trains_like_an_unmeasured_one(found: Found) -> None:
    for one in found:
        assert one["left_alone"]
        assert one["trained_after_measuring"] == one["unwatched_parameters"]


def leave_pid(rank: int, folder: str) -> None:
    Path(folder, str(rank)).write_text(str(os.getpid()), encoding="utf-8")
    dist.barrier()


def raise_on_rank_1(rank: int, folder: str) -> None:
    leave_pid(rank, folder)
    if rank == 1:
        raise ArithmeticError("no batch today")
    dist.all_reduce(torch.zeros(3))


def kill_rank_1(rank: int, folder: str) -> None:
    leave_pid(rank, folder)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.zeros(3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raise_on_rank_1, r"(?s)^rank 1 failed:.*in raise_on_rank_1.*ArithmeticError: no batch"),
        (kill_rank_1, r"^rank 1 died: .*SIGKILL"),
    ],
)
def test_the_rank_that_failed_is_named_and_none_is_left(
    tmp_path: Path, function: Callable[..., None], message: str
) -> None:
    with pytest.raises(RankFailedError, match=message):
        run_ranks(function, 2, str(tmp_path))
    assert multiprocessing.active_children() == []
    for rank in ("0", "1"):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / rank).read_text(encoding="utf-8")), 0)


@pytest.mark.parametrize("num_ranks", [0, -1])
def test_a_job_without_ranks_is_refused(num_ranks: int) -> None:
    with pytest.raises(ValueError, match=f"num_ranks must be at least 1, got {num_ranks}"):
        run_ranks(leave_pid, num_ranks)
