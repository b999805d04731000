"""Compressed gradients against torch's own hooks, on two gloo ranks that share a spawn."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from paceline import ScheduledDataParallel
from paceline.comm import BlockPlan, WireProblem, plan_p3
from paceline.torch import run_ranks
from paceline.torch._compression import compress_hook

Found = list[dict[str, Any]]


HOOKS = {"fp16": fp16_compress_hook, "bf16": compress_hook(torch.bfloat16)}


def twelfths(problem: WireProblem) -> BlockPlan:
    return plan_p3(problem, slice_bytes=float(problem.num_bytes.sum()) / 12)


def loss_of(output: torch.Tensor) -> torch.Tensor:
    return (output - 0.5).square().mean()


def compressed(rank: int, compression: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    layers = [nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)]
    one = nn.Sequential(*layers)
    two = copy.deepcopy(one)
    parallel = DistributedDataParallel(one)
    parallel.register_comm_hook(None, HOOKS[compression])
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (one, two)]
    model = ScheduledDataParallel(
        two, optimizers[1], plan=twelfths, num_measure_steps=4, compression=compression
    )
    seen: set[str] = set()
    plain_all_reduce = dist.all_reduce

    def noting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("async_op"):
            seen.add(str(tensor.dtype))
        return plain_all_reduce(tensor, *args, **kwargs)

    generator = torch.Generator().manual_seed(rank)
    for _ in range(30):
        batch = torch.randn(4, 48, generator=generator)
        loss_of(parallel(batch)).backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        dist.all_reduce = noting
        loss_of(model(batch)).backward()
        model.step()
        model.flush()
        dist.all_reduce = plain_all_reduce
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    found = {
        "equal": all(torch.equal(a, b) for a, b in pairs),
        "sent": sorted(seen),
        "explain": model.explain(),
    }
    model.close()
    return found


def find_all(rank: int, folder: str) -> None:
    found = {name: compressed(rank, name) for name in HOOKS}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder), timeout_s=60)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize("name", HOOKS)
def test_two_ranks_get_the_bits_of_ddp_with_torchs_hook(found: Found, name: str) -> None:
    for one in found:
        assert one[name]["equal"]


@pytest.mark.parametrize(("name", "dtype"), [("fp16", "torch.float16"), ("bf16", "torch.bfloat16")])
def test_blocks_travel_in_the_narrow_type_alone(found: Found, name: str, dtype: str) -> None:
    for one in found:
        assert one[name]["sent"] == [dtype]
        assert "plan: p3" in one[name]["explain"]
