"""FSDP2 over data ranks, tensor parallelism inside them. One spawn of four ranks serves all."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.data import TensorDataset

from paceline.balance import BalanceConfig
from paceline.testing import run_ranks
from paceline.torch import BalancedBatchSampler, DataLoader, Replica

SIZES = np.random.default_rng(5).integers(1, 60, 43)
CONFIG = BalanceConfig(batch_size=16, counts="free", padded=True, num_microbatches=2)
Found = dict[str, Any]


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(len(SIZES), 3, generator=generator, dtype=torch.float64)
    return TensorDataset(numbers[:, :2], numbers[:, 2:], torch.arange(len(SIZES)))


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def train(model: Any, sampler: BalancedBatchSampler) -> Found:
    """Train for two epochs; return the examples of each batch, and the parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(data(), batch_sampler=sampler, with_info=True)
    batches = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for (x, y, index), info in loader:
            batches.append(index.tolist())
            if isinstance(model, torch.distributed.fsdp.FSDPModule):
                model.set_requires_gradient_sync(info.is_step_end)
            (nn.functional.mse_loss(model(x), y) * info.loss_weight).backward()
            if info.is_step_end:
                optimizer.step()
                optimizer.zero_grad()
    return {"batches": batches, "parameters": [whole(one) for one in model.parameters()]}


def whole(parameter: Any) -> Any:
    one: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return one.detach().flatten().tolist()


def on_a_mesh(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    tensors: Any = model_of()
    parallelize_module(tensors, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(tensors, mesh=mesh["dp"])
    shared: Any = fully_shard(model_of(), mesh=mesh)  # replicas of shards: all four have data
    every = mesh._flatten("every")
    of_data, of_all = (
        BalancedBatchSampler(SIZES, CONFIG, process_group=axis) for axis in (mesh["dp"], every)
    )
    found = {"tensor parallel": train(tensors, of_data), "hybrid shards": train(shared, of_all)}
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(on_a_mesh, 4, folder)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(4)]


def test_ranks_of_one_tensor_group_get_the_same_batches(found: list[dict[str, Found]]) -> None:
    batches = [rank["tensor parallel"]["batches"] for rank in found]
    assert batches[0] == batches[1] != batches[2] == batches[3]


@pytest.mark.parametrize("way", ["tensor parallel", "hybrid shards"])
def test_parameters_are_those_of_one_plain_process(found: list[dict[str, Found]], way: str) -> None:
    alone = Replica(rank=0, num_replicas=1)
    plain = train(model_of(), BalancedBatchSampler(SIZES, CONFIG, process_group=alone))
    expected = np.concatenate(plain["parameters"])
    for rank in found:
        difference = np.concatenate(rank[way]["parameters"]) - expected
        assert np.abs(difference).max() < 1e-12


def test_every_example_comes_once_per_epoch_to_the_four_ranks_of_hybrid_shards(
    found: list[dict[str, Found]],
) -> None:
    batches = [batch for rank in found for batch in rank["hybrid shards"]["batches"]]
    assert set(chain.from_iterable(batches)) == set(range(len(SIZES)))
