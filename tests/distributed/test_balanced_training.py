"""Two gloo ranks train on ragged examples. One spawn serves all checks; `found` makes it."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from paceline.balance import BalanceConfig, EpochPlan
from paceline.errors import PlanMismatchError, RankStalledError
from paceline.testing import run_ranks
from paceline.timeline import Kind, Timeline
from paceline.torch import BalancedBatchSampler, BalancedSampler, DataLoader, watch
from paceline.torch.ranks import meet

SIZES = np.random.default_rng(3).integers(1, 60, 76)
BATCH_SIZE = 16
Found = list[dict[str, Any]]


class Ragged(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Example `i` is two numbers and a target, and remembers its size."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(len(SIZES), 2, generator=generator, dtype=torch.float64)
        self.y = torch.randn(len(SIZES), 1, generator=generator, dtype=torch.float64)

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:  # type: ignore[override]
        return self.x[index], self.y[index], int(SIZES[index])


class Model(nn.Module):
    """Two layers; a slow rank does matrix products for each token on top."""

    def __init__(self, num_extra: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.num_extra = num_extra

    def forward(self, x: torch.Tensor, num_tokens: int = 0) -> torch.Tensor:
        weight = torch.eye(128)
        for _ in range(self.num_extra * num_tokens):
            weight = weight @ weight
        result: torch.Tensor = self.layers(x)
        return result


def sampler_of(mesh: DeviceMesh | None = None, **options: Any) -> BalancedBatchSampler:
    config = BalanceConfig(batch_size=BATCH_SIZE, **options)
    return BalancedBatchSampler(SIZES, config, process_group=mesh)


def mean_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(x), y)


def gradients_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def balanced_gradients(num_microbatches: int) -> tuple[list[torch.Tensor], BalancedBatchSampler]:
    batches = sampler_of(counts="free", num_microbatches=num_microbatches)
    loader = DataLoader(Ragged(), batch_sampler=batches)
    model = DistributedDataParallel(Model())
    gradients = []
    for x, y, _ in loader:
        with nullcontext() if loader.is_step_end else model.no_sync():
            (mean_loss(model, x, y) * loader.loss_weight).backward()
        if loader.is_step_end:
            gradients.append(gradients_of(model))
            model.zero_grad()
    return gradients, batches


def plain_gradients(plan: EpochPlan, rank: int) -> list[torch.Tensor]:
    """Return what plain data-parallel training with equal counts makes of the same batches."""
    model, data, gradients = DistributedDataParallel(Model()), Ragged(), []
    for step in range(plan.num_steps):
        batch = np.unique(np.concatenate([plan.step_examples(step, w) for w in (0, 1)]))
        assert len(batch) % 2 == 0
        mine = batch[rank::2]
        mean_loss(model, data.x[mine], data.y[mine]).backward()
        gradients.append(gradients_of(model))
        model.zero_grad()
    return gradients


def compare_gradients(rank: int) -> dict[str, Any]:
    differences, counts = [], []
    for num_microbatches in (1, 2):
        ours, batches = balanced_gradients(num_microbatches)
        batches.set_epoch(0)
        theirs = plain_gradients(batches.plan, rank)
        differences.append([float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)])
        steps = range(batches.plan.num_steps)
        counts += [[len(batches.plan.step_examples(s, w)) for w in (0, 1)] for s in steps]
    return {"differences": differences, "counts": counts}


def refit_to_a_slow_rank(rank: int) -> dict[str, Any]:
    batches = sampler_of(counts="free")
    loader = DataLoader(Ragged(), batch_sampler=batches)
    model = DistributedDataParallel(Model(num_extra=2 if rank == 1 else 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = batches.plan.load.sum(axis=0).tolist()
    with watch(model, optimizer) as run:
        for epoch in range(2):
            batches.set_epoch(epoch)
            for x, y, sizes in loader:
                loss = nn.functional.mse_loss(model(x, int(sizes.sum())), y)
                (loss * loader.loss_weight).backward()
                optimizer.step()
                optimizer.zero_grad()
    batches.refit(run.gather())
    batches.set_epoch(2)
    return {
        "load_before": before,
        "load_after": batches.plan.load.sum(axis=0).tolist(),
        "speeds": [worker.speed for worker in batches.workers],
        "examples": [example for batch in batches for example in batch],
        "state": loader.state_dict(),
    }


def refit_with_other_clocks(rank: int) -> dict[str, Any]:
    batches = sampler_of(init_device_mesh("cpu", (2,)), window=2, tail="drop", shuffle=False)
    plan = batches.plan
    list(batches)
    seconds = np.tile(plan.load * [1.0, 2.0 + rank], (2, 1))
    steps, ranks = np.indices(seconds.shape)
    timeline = Timeline.from_columns(
        "measured",
        rank=ranks.ravel(),
        step=steps.ravel(),
        start_s=steps.ravel(),
        duration_s=seconds.ravel(),
        kind=Kind.BACKWARD,
    )
    return {"place": [batches.num_replicas, batches.rank], **agreed(batches, timeline)}


def agreed(batches: BalancedBatchSampler, timeline: Timeline) -> dict[str, Any]:
    batches.refit(timeline)
    return {"agreed": [worker.speed for worker in batches.workers]}


def refused(make: Callable[[], Any]) -> str:
    """Return why the first batch is refused; empty if it is not."""
    batches = iter(make())
    try:
        next(batches)
    except PlanMismatchError as error:
        return str(error)
    return ""


def plan_differently(rank: int) -> dict[str, Any]:
    sizes = SIZES + rank
    short = [SIZES, SIZES[:-1]][rank]
    make = partial(BalancedBatchSampler, batch_size=BATCH_SIZE)
    found = {
        "seed": refused(lambda: make(SIZES, seed=5 * rank)),
        "sizes": refused(lambda: make(sizes)),
        "number": refused(lambda: make(short)),
        "batch size": refused(lambda: make(SIZES, batch_size=16 + 2 * rank)),
        "epoch": refused(lambda: set_to(make(SIZES), rank)),
        "terms": refused(lambda: make(SIZES, loss_terms=sizes)),
        "equal": refused(lambda: make(SIZES)),
        "flag": refused(lambda: make(SIZES, seed=5 * rank, check_plan=False)),
        "chunks": refused(lambda: BalancedSampler(sizes, batch_size=BATCH_SIZE)),
        "loader": refused(lambda: DataLoader(Ragged(), batch_sampler=make(SIZES, seed=rank))),
    }
    return {"refused": found}


def set_to(batches: BalancedBatchSampler, epoch: int) -> BalancedBatchSampler:
    batches.set_epoch(epoch)
    return batches


def stalled(call: Callable[[], Any]) -> str:
    try:
        call()
    except RankStalledError as error:
        return str(error)
    return ""


def come_alone(rank: int) -> dict[str, Any]:
    """Ask on rank 0 only for what all ranks must ask for; then on both."""
    batches = sampler_of(window=2, tail="drop", shuffle=False)
    model = DistributedDataParallel(Model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Ragged(), batch_sampler=batches)
    with watch(model, optimizer) as run:
        for x, y, _ in loader:
            mean_loss(model, x, y).backward()
            optimizer.step()
    timeline = run.gather()
    alone = ["", ""]
    if rank == 0:
        short = partial(meet, timeout_s=0.05)
        with mock.patch("paceline.torch.balance._refit.meet", short):
            alone[0] = stalled(lambda: batches.refit(timeline))
        alone[1] = stalled(lambda: run.summary(timeout_s=0.05))
    dist.barrier()
    batches.refit(timeline)
    return {"alone": alone, "together": len(run.summary(timeout_s=20.0).ranks)}


def find_all(rank: int, folder: str) -> None:
    parts = (
        compare_gradients,
        refit_to_a_slow_rank,
        refit_with_other_clocks,
        plan_differently,
        come_alone,
    )
    found = {key: value for part in parts for key, value in part(rank).items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder))
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_gradients_of_ragged_ranks_are_those_of_plain_training(found: Found) -> None:
    for one in found:
        assert any(first != second for first, second in one["counts"])
        plain, accumulated = one["differences"]
        assert len(plain) == len(accumulated) == 5
        assert max(plain + accumulated) < 1e-12


def test_a_refit_moves_work_away_from_the_slow_rank(found: Found) -> None:
    for one in found:
        fast, slow = one["load_after"]
        assert fast > 1.5 * slow
        assert one["load_before"][0] < 1.5 * one["load_before"][1]
    assert found[0]["speeds"] == found[1]["speeds"]
    assert found[0]["state"] == found[1]["state"]
    assert {*found[0]["examples"], *found[1]["examples"]} == set(range(len(SIZES)))


def test_ranks_agree_on_rank_0s_speeds(found: Found) -> None:
    assert [one["place"] for one in found] == [[2, 0], [2, 1]]
    assert found[0]["agreed"] == found[1]["agreed"]
    fast, slow = found[0]["agreed"]
    assert fast == pytest.approx(2.0 * slow)


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("seed", "seed (rank 1: 5, rank 0: 0), plan ("),
        ("sizes", "sizes ("),
        ("number", "number of examples (rank 1: 75, rank 0: 76)"),
        ("batch size", "batch_size (rank 1: 18, rank 0: 16)"),
        ("epoch", "epoch (rank 1: 1, rank 0: 0)"),
        ("terms", "loss_terms ("),
        ("chunks", "sizes ("),
        ("loader", "seed (rank 1: 1, rank 0: 0), plan ("),
    ],
)
def test_ranks_that_plan_differently_are_refused_before_the_first_batch(
    found: Found, name: str, difference: str
) -> None:
    first, second = (one["refused"][name] for one in found)
    assert first == second
    assert first.startswith("before the first batch: rank 1 differs from rank 0")
    assert difference in first


def test_equal_plans_pass_and_a_flag_leaves_the_comparison_out(found: Found) -> None:
    assert {one["refused"][name] for one in found for name in ("equal", "flag")} == {""}


def test_a_rank_that_comes_alone_is_told_who_did_not(found: Found) -> None:
    refit, summary = found[0]["alone"]
    assert refit.startswith("rank 0 has waited 0.05 s in refit for rank 1, which did not come")
    assert "in gather, summary or gather_timeline for rank 1, which did not come" in summary
    assert [one["together"] for one in found] == [2, 2]
