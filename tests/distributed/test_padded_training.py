"""Two gloo ranks train on ragged sequences in micro-batches by plan, as one plain process does."""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from paceline.balance import BalanceConfig
from paceline.comm import BlockPlan, WireProblem, plan_p3
from paceline.testing import run_ranks
from paceline.torch import BalancedBatchSampler, DataLoader, ScheduledDataParallel

LENGTHS = np.random.default_rng(5).integers(2, 40, 76)
CONFIG = BalanceConfig(batch_size=16, counts="free", padded=True, microbatch_cost=1.0)
NUM_EPOCHS, NUM_STEPS = 2, 10
Found = list[dict[str, Any]]


class Sequences(Dataset[Tensor]):
    """Example `i` is a sequence of `LENGTHS[i]` vectors; its target is their mean."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(int(length), 3) for length in LENGTHS]
        self.items = [torch.randn(shape, generator=generator).double() for shape in shapes]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return self.items[index]


def padded(items: list[Tensor]) -> dict[str, Tensor]:
    lengths = torch.tensor([len(item) for item in items])
    x = nn.utils.rnn.pad_sequence(items, batch_first=True)
    return {"x": x, "is_token": torch.arange(x.shape[1]) < lengths[:, None]}


def new_model(*, has_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    norm = [nn.Flatten(0, 1), nn.BatchNorm1d(8)] if has_norm else []
    return nn.Sequential(nn.Linear(3, 8), *norm, nn.Tanh(), nn.Linear(8, 3)).double()


def losses(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Return the loss of each token, 0 for padding."""
    x = batch["x"]
    difference = model(x).view(x.shape) - x.flip(-1)
    return difference.square().sum(-1) * batch["is_token"]


def mean_loss(model: nn.Module, batch: dict[str, Any], over: str) -> Tensor:
    loss, counts = losses(model, batch), batch["is_token"].sum(1)
    return loss.sum() / counts.sum() if over == "tokens" else (loss.sum(1) / counts).mean()


def plain_training(over: str, batches: list[list[int]]) -> list[float]:
    """Train on each global batch at once, in one process."""
    model, data = new_model(), Sequences()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for examples in batches:
        mean_loss(model, padded([data[example] for example in examples]), over).backward()
        optimizer.step()
        optimizer.zero_grad()
    return flat(model)


def flat(model: nn.Module) -> list[float]:
    return torch.cat([one.detach().flatten() for one in model.parameters()]).tolist()


def new_loader(over: str) -> tuple[BalancedBatchSampler, DataLoader[Any]]:
    terms = LENGTHS if over == "tokens" else None
    batches = BalancedBatchSampler(LENGTHS, CONFIG, loss_terms=terms)
    return batches, DataLoader(
        Sequences(), batch_sampler=batches, collate_fn=padded, with_info=True
    )


def train(model: Any, step: Any, over: str) -> tuple[list[list[int]], list[list[int]]]:
    """Train on a rank's micro-batches; return global batches, and micro-batches of each step."""
    sampler, loader = new_loader(over)
    batches, counts = [], []
    for epoch in range(NUM_EPOCHS):
        sampler.set_epoch(epoch)
        plan = sampler.plan
        counts += plan.num_microbatches.tolist()
        for number in range(plan.num_steps):
            parts = [plan.step_examples(number, worker) for worker in (0, 1)]
            batches.append(np.unique(np.concatenate(parts)).tolist())
        for batch in loader:
            with nullcontext() if batch["is_step_end"] else model.no_sync():
                (mean_loss(model, batch, over) * batch["loss_weight"]).backward()
            if batch["is_step_end"]:
                step()
    return batches, counts


def stepping(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()


def with_ddp(over: str, *, has_norm: bool = False) -> dict[str, Any]:
    model = DistributedDataParallel(new_model(has_norm=has_norm))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches, counts = train(model, partial(stepping, optimizer), over)
    if has_norm:
        return {"statistics": [one.tolist() for one in model.buffers()][:1]}
    expected = plain_training(over, batches)
    return {f"ddp, {over}": difference(flat(model), expected), "counts": counts}


def thirds(problem: WireProblem) -> BlockPlan:
    return plan_p3(problem, slice_bytes=float(problem.num_bytes.sum()) / 3)


def with_schedule(over: str) -> dict[str, Any]:
    bare = new_model()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01)
    with ScheduledDataParallel(bare, optimizer, choose=thirds, num_measure_steps=3) as model:
        batches, _ = train(model, model.step, over)
        model.flush()
        return {f"scheduled, {over}": difference(flat(bare), plain_training(over, batches))}


def difference(one: list[float], other: list[float]) -> float:
    return float(np.abs(np.subtract(one, other)).max())


def find_all(rank: int, folder: str) -> None:
    found: dict[str, Any] = {}
    for over in ("examples", "tokens"):
        found |= {**with_ddp(over), **with_schedule(over)}
    found |= with_ddp("examples", has_norm=True)
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder))
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize("way", ["ddp", "scheduled"])
@pytest.mark.parametrize("over", ["examples", "tokens"])
def test_micro_batches_by_plan_train_like_one_plain_process(
    found: Found, way: str, over: str
) -> None:
    for one in found:
        assert len(one["counts"]) == NUM_STEPS
        assert max(max(counts) for counts in one["counts"]) > 1
        assert any(first != second for first, second in one["counts"])
        assert one[f"{way}, {over}"] < 1e-9


def test_batch_norm_trains_with_other_numbers_of_micro_batches_on_each_rank(found: Found) -> None:
    assert all(np.isfinite(one["statistics"]).all() for one in found)
