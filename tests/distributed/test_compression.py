"""Compressed gradients against torch's own hooks, on two gloo ranks that share a spawn."""

import copy
import json
from collections.abc import Callable
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
from paceline.testing import run_ranks
from paceline.torch.comm._gradient_feed import GradientFeed
from paceline.torch.comm.transfer import Payload, Piece, Route, Trained, Worker
from paceline.torch.comm.whole._compression import compress_hook, wire_dtype
from paceline.torch.comm.whole._executor import BlockExecutor
from paceline.torch.model._partial_update import PartialUpdate
from paceline.torch.ranks._agreement import new_group_like

Found = list[dict[str, Any]]
Step = Callable[[torch.Tensor], None]
End = Callable[[], str]


HOOKS = {"fp16": fp16_compress_hook, "bf16": compress_hook(torch.bfloat16)}


def twelfths(problem: WireProblem) -> BlockPlan:
    return plan_p3(problem, slice_bytes=float(problem.num_bytes.sum()) / 12)


def loss_of(output: torch.Tensor) -> torch.Tensor:
    return (output - 0.5).square().mean()


def route_of(parameters: list[nn.Parameter]) -> Route:
    """Cut each gradient in two, last first, a block per three pieces."""
    pieces = [
        Piece(tensor, *cut)
        for tensor in reversed(range(len(parameters)))
        for numel in [parameters[tensor].numel()]
        for cut in ((0, numel // 2), (numel // 2, numel))
    ]
    blocks = [pieces[begin : begin + 3] for begin in range(0, len(pieces), 3)]
    return Route([Payload.of(block, part) for block, part in enumerate(blocks)], parameters)


def by_executor(
    model: nn.Module, optimizer: torch.optim.Optimizer, compression: Any
) -> tuple[Step, End]:
    """Drive the executor itself; return a step, and what ends it."""
    parameters, names = list(model.parameters()), [name for name, _ in model.named_parameters()]
    update, trained = PartialUpdate(optimizer), Trained(parameters, names, new_group_like(None))
    executor = BlockExecutor(
        trained,
        update,
        Worker(trained.device),
        num_in_flight=2,
        wire=wire_dtype(compression, None),
    )
    executor.use(route_of(parameters), range(len(parameters)))
    feed = GradientFeed(trained, executor)

    def step(batch: torch.Tensor) -> None:
        output = model(batch)
        feed.watch_output(output, is_syncing=True)
        loss_of(output).backward()
        update.begin()
        executor.release()
        executor.flush()

    def end() -> str:
        executor.close()
        return ""

    return step, end


def by_wrapper(
    model: nn.Module, optimizer: torch.optim.Optimizer, compression: Any
) -> tuple[Step, End]:
    """Train as a user does; what ends it returns what was chosen."""
    scheduled = ScheduledDataParallel(
        model, optimizer, choose=twelfths, num_measure_steps=4, compression=compression
    )

    def step(batch: torch.Tensor) -> None:
        loss_of(scheduled(batch)).backward()
        scheduled.step()
        scheduled.flush()

    def end() -> str:
        explained = scheduled.explain()
        scheduled.close()
        return explained

    return step, end


WAYS = {"executor": by_executor, "wrapper": by_wrapper}


def compressed(rank: int, compression: Any, way: str) -> dict[str, Any]:
    torch.manual_seed(0)
    layers = [nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)]
    one = nn.Sequential(*layers)
    two = copy.deepcopy(one)
    parallel = DistributedDataParallel(one)
    parallel.register_comm_hook(None, HOOKS[compression])
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (one, two)]
    step, end = WAYS[way](two, optimizers[1], compression)
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
        step(batch)
        dist.all_reduce = plain_all_reduce
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    equal = all(torch.equal(a, b) for a, b in pairs)
    return {"equal": equal, "sent": sorted(seen), "explain": end()}


def find_all(rank: int, folder: str) -> None:
    found = {f"{way} {name}": compressed(rank, name, way) for way in WAYS for name in HOOKS}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder), timeout_s=60)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_get_the_bits_of_ddp_with_torchs_hook(found: Found, name: str, way: str) -> None:
    for one in found:
        assert one[f"{way} {name}"]["equal"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "dtype"), [("fp16", "torch.float16"), ("bf16", "torch.bfloat16")])
def test_blocks_are_sent_in_the_narrow_type_alone(
    found: Found, name: str, dtype: str, way: str
) -> None:
    for one in found:
        assert one[f"{way} {name}"]["sent"] == [dtype]


@pytest.mark.parametrize("name", HOOKS)
def test_the_wrapper_executes_its_plan(found: Found, name: str) -> None:
    for one in found:
        assert "plan: p3" in one[f"wrapper {name}"]["explain"]
