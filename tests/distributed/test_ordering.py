"""Two gloo ranks train on ragged examples in a learnt order. One spawn serves all checks."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from paceline.balance import BalanceConfig
from paceline.order import OrderPolicy, mean_balance, pair_balance
from paceline.testing import run_ranks
from paceline.torch import BalancedBatchSampler, DataLoader, Replica
from paceline.torch.order._gradient_order import GradientOrder
from paceline.torch.order._gradient_sketch import GradientSketch

NUM, BATCH, NUM_STEPS, NUM_EPOCHS = 76, 16, 5, 3
SIZES = np.random.default_rng(3).integers(1, 60, NUM)
ORDERS = ("pair-balance", "grab")
ALONE = Replica(rank=0, num_replicas=1)

Found = list[dict[str, Any]]


def sampler_of(order: str, **options: Any) -> BalancedBatchSampler:
    chosen = mean_balance(NUM) if order == "grab" else order
    return BalancedBatchSampler(
        SIZES,
        BalanceConfig(batch_size=BATCH, counts="free", num_microbatches=2),
        order=chosen,  # type: ignore[arg-type]
        **options,
    )


class Job:
    """A training run with a learnt order, and what it found."""

    def __init__(self, order: str, **options: Any) -> None:
        torch.manual_seed(0)
        # In double precision, how rows are rounded does not depend on who computes them.
        self.model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.is_parallel = dist.is_initialized()
        self.batches = sampler_of(order, **options)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(NUM, 2, generator=generator, dtype=torch.float64)
        y = torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
        data = [(i, x[i], y[i]) for i in range(NUM)]
        self.loader = DataLoader(data, batch_sampler=self.batches)  # type: ignore[arg-type]
        self.policy = self.batches.order
        assert isinstance(self.policy, OrderPolicy)
        self.orders: dict[int, list[int]] = {}
        self.steps: list[list[int]] = []
        self.states: list[Any] = []

    def load(self, state: Any) -> None:
        self.model.load_state_dict(
            {k: torch.tensor(v, dtype=torch.float64) for k, v in state["model"].items()}
        )
        self.loader.load_state_dict(state["data"])

    def run(self, *, saves: bool = False) -> "Job":
        model = DistributedDataParallel(self.model) if self.is_parallel else self.model
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        assert self.policy is not None
        with GradientSketch(self.model, dim=64) as sketch:
            order = GradientOrder(sketch, self.batches)
            for epoch in range(self.batches.epoch, NUM_EPOCHS):
                self.loader.set_epoch(epoch)
                self.orders[epoch] = self.policy.order(epoch).tolist()
                self._train(model, optimizer, order, saves)
        return self

    def _train(self, model: nn.Module, optimizer: Any, order: GradientOrder, saves: bool) -> None:
        received: list[int] = []
        for ids, x, y in self.loader:
            is_whole = self.loader.is_step_end or not isinstance(model, DistributedDataParallel)
            with nullcontext() if is_whole else model.no_sync():
                (nn.functional.mse_loss(model(x), y) * self.loader.loss_weight).backward()
            received += ids.tolist() if self.loader.loss_weight else []
            if self.loader.is_step_end:
                order.observe()
                optimizer.step()
                optimizer.zero_grad()
                self.steps.append(received)
                received = []
                if saves:
                    self._save()

    def _save(self) -> None:
        model = {key: value.tolist() for key, value in self.model.state_dict().items()}
        state = {"model": model, "data": self.loader.state_dict()}
        self.states.append(json.loads(json.dumps(copy.deepcopy(state))))


def find(rank: int, order: str) -> dict[str, Any]:
    straight = Job(order).run(saves=True)
    resumed = []
    for state in straight.states[:-1:3]:
        job = Job(order)
        job.load(state)
        resumed.append(job.run().orders)
    return {
        "orders": straight.orders,
        "steps": straight.steps,
        "states": straight.states,
        "resumed": resumed,
    }


def find_all(rank: int, folder: str) -> None:
    found = {order: find(rank, order) for order in ORDERS}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder))
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize("order", ORDERS)
def test_all_ranks_have_one_order_and_one_state(found: Found, order: str) -> None:
    first, second = (one[order] for one in found)
    assert first["orders"] == second["orders"]
    assert [s["data"] for s in first["states"]] == [s["data"] for s in second["states"]]
    learnt = [first["orders"][str(epoch)] for epoch in range(NUM_EPOCHS)]
    assert learnt[0] == pair_balance(NUM).order(0).tolist()
    assert learnt[1] not in (learnt[0], np.random.default_rng([0, 1]).permutation(NUM).tolist())
    assert learnt[2] != learnt[1]


@pytest.mark.parametrize("order", ORDERS)
def test_each_global_batch_is_a_slice_of_the_order_whoever_computes_it(
    found: Found, order: str
) -> None:
    pairs = list(zip(*(one[order]["steps"] for one in found), strict=True))
    assert len(pairs) == NUM_STEPS * NUM_EPOCHS
    assert any(len(mine) != len(other) for mine, other in pairs)
    for number, (mine, other) in enumerate(pairs):
        epoch, step = divmod(number, NUM_STEPS)
        expected = found[0][order]["orders"][str(epoch)][step * BATCH : (step + 1) * BATCH]
        assert sorted(mine + other) == sorted(expected)


@pytest.mark.parametrize("order", ORDERS)
def test_resumed_on_as_many_ranks_the_orders_stay_the_same(found: Found, order: str) -> None:
    straight = found[0][order]["orders"]
    for one in found:
        assert len(one[order]["resumed"]) == 5
        for orders in one[order]["resumed"]:
            assert orders == {epoch: straight[epoch] for epoch in orders}
            assert str(NUM_EPOCHS - 1) in orders


@pytest.mark.parametrize("order", ORDERS)
def test_resumed_at_every_step_by_one_worker_the_orders_stay_the_same(
    found: Found, order: str
) -> None:
    straight = found[0][order]["orders"]
    for state in found[0][order]["states"][:-1]:
        job = Job(order, process_group=ALONE)
        job.load(state)
        orders = job.run().orders
        assert {str(epoch): ids for epoch, ids in orders.items()} == {
            str(epoch): straight[str(epoch)] for epoch in orders
        }
        assert NUM_EPOCHS - 1 in orders


def test_without_ranks_the_orders_are_the_same_too(found: Found) -> None:
    orders = Job("pair-balance", process_group=ALONE).run().orders
    assert {str(epoch): ids for epoch, ids in orders.items()} == found[0]["pair-balance"]["orders"]
