"""Predicted sizes of divided parameters against what FSDP2 allocates on four gloo ranks."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from paceline.predict import estimate_memory
from paceline.predict.work import Sharding
from paceline.testing import run_ranks
from paceline.torch import trace_workload

NUM_RANKS = 4


def model() -> nn.Module:
    """Sizes that four ranks do not divide evenly."""
    blocks = [nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 30)) for _ in range(3)]
    return nn.Sequential(*blocks, nn.LayerNorm(30), nn.Linear(30, 7))


def hold(rank: int, path: str) -> None:
    torch.manual_seed(0)
    divided = model()
    for child in divided.children():
        fully_shard(child)
    fully_shard(divided)
    optimizer = torch.optim.AdamW(divided.parameters())
    divided(torch.randn(2, 30)).sum().backward()
    optimizer.step()
    local = [p.to_local() for p in divided.parameters()]  # type: ignore[attr-defined]
    gradients = [p.grad.to_local() for p in divided.parameters()]  # type: ignore[union-attr]
    state = [
        value.to_local()
        for values in optimizer.state.values()
        for name, value in values.items()
        if name != "step"
    ]
    held = [_storage_bytes(tensors) for tensors in (local, gradients, state)]
    Path(path, f"{rank}.json").write_text(json.dumps(held), encoding="utf-8")


def _storage_bytes(tensors: list[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_divided_sizes_are_those_of_fsdp(tmp_path: Path) -> None:
    run_ranks(hold, NUM_RANKS, str(tmp_path))
    ranks = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()]
    work = trace_workload(model, input_shape=(30,), batch_size=2, optimizer="AdamW")
    divided = Sharding(num_workers=NUM_RANKS, level="parameters")
    memory = estimate_memory(work, sharding=divided)
    gradients = divided.held_bytes(work, "gradients")
    assert len(ranks) == NUM_RANKS
    assert [max(sizes) for sizes in zip(*ranks, strict=True)] == [
        memory.parameters,
        gradients,
        memory.optimizer,
    ]
    assert memory.parameters > work.param_bytes / NUM_RANKS
    # Whole parameters and gradients of a block are there beside the parts while it runs.
    assert memory.moments[0].other_bytes > gradients == pytest.approx(work.param_bytes / 4, rel=0.1)
