"""What a wrapped model refuses, survives and leaves behind, on two gloo ranks."""

import copy
import json
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from paceline import ScheduledDataParallel
from paceline.comm import BlockPlan, WireProblem, plan_p3
from paceline.testing import run_ranks

Found = list[dict[str, Any]]
NEW = partial(torch.optim.Adam, lr=1e-2)
NUM_STEPS = 12


def quarters(problem: WireProblem) -> BlockPlan:
    return plan_p3(problem, slice_bytes=float(problem.num_bytes.sum()) / 4)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


class Decorated(nn.Module):
    """One method is compiled; the module itself is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 1)

    @torch.compile(backend="aot_eager")
    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x).tanh()  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.inner(x))  # type: ignore[no-any-return]


def inputs(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(4, 6, generator=generator) for _ in range(NUM_STEPS)]


def train(rank: int, model: nn.Module, step: Callable[[], None]) -> None:
    for batch in inputs(rank):
        (model(batch) - 0.5).square().mean().backward()
        step()


def train_ddp(rank: int, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = NEW(model.parameters())

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    train(rank, DistributedDataParallel(model), step)
    return optimizer


def wrapped(model: nn.Module, **kwargs: Any) -> tuple[ScheduledDataParallel, torch.optim.Optimizer]:
    optimizer = NEW(model.parameters())
    return ScheduledDataParallel(model, optimizer, num_measure_steps=4, **kwargs), optimizer


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def message_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def what_is_left(rank: int) -> dict[str, Any]:
    """Open and close wrappers of every kind; count what the process and torch hold after each."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    kinds: list[dict[str, Any]] = [
        {"num_trial_steps": 1},
        {"choose": quarters, "process_group": mesh["dp"]},
        {"sharded": True},
    ]
    counts, hooks = [], 0
    for number in range(4 * len(kinds)):
        bare = mlp()
        model, optimizer = wrapped(bare, **kinds[number % len(kinds)])
        train(rank, model, model.step)
        model.close()
        counts.append(held())
        hooks += num_hooks(bare, optimizer)
    return {"held": counts[len(kinds) :], "hooks": hooks}


def held() -> list[int]:
    folders = (len(os.listdir(f"/proc/self/{name}")) for name in ("task", "fd"))
    return [*folders, len(dist.distributed_c10d._world.pg_map)]


def num_hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    of_optimizer = [len(hooks) for name, hooks in vars(optimizer).items() if name.endswith("hooks")]
    of_modules = [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in model.modules()]
    of_parameters = [
        len(one._backward_hooks or ()) + len(one._post_accumulate_grad_hooks or ())  # type: ignore[attr-defined]  # private
        for one in model.parameters()
    ]
    return sum(of_optimizer + of_modules + of_parameters)


def optimizer_state(rank: int) -> dict[str, Any]:
    """Close a sharded model in order, and leave one by an error."""
    one, two, three = mlp(), mlp(), mlp()
    expected = train_ddp(rank, one).state_dict()["state"]
    model, optimizer = wrapped(two, sharded=True)
    with model:
        train(rank, model, model.step)
        early = message_of(optimizer.state_dict)
    state = optimizer.state_dict()["state"]
    is_whole = all(
        torch.equal(value, state[number][key])
        for number, values in expected.items()
        for key, value in values.items()
    )
    model, other = wrapped(three, sharded=True)
    with suppress(ZeroDivisionError), model:
        train(rank, model, model.step)
        raise ZeroDivisionError
    lost = [message_of(other.state_dict), message_of(other.step)]
    other.load_state_dict(optimizer.state_dict())
    lost += [message_of(other.state_dict), message_of(other.step)]
    return {"whole": is_whole and same(one, two), "early": early, "lost": lost}


def copies(rank: int) -> dict[str, Any]:
    bare = mlp()
    model, _ = wrapped(bare, choose=quarters)
    train(rank, model, model.step)
    refused = [message_of(partial(call, model)) for call in (copy.deepcopy, pickle.dumps)]
    own = copy.deepcopy(model.module), pickle.loads(pickle.dumps(model.module))
    model.close()
    batch = inputs(rank)[0]
    closed = [message_of(partial(model, batch)), message_of(model.step)]
    with torch.no_grad():
        equal = all(torch.equal(one(batch), model(batch)) for one in own)
    return {"refused": refused, "copies equal": equal, "closed": closed}


def foreign_tensors(rank: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    layer = nn.Linear(6, 4)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight, mesh, [Replicate()]))
    return {"foreign": message_of(partial(wrapped, layer))}


def compiled(rank: int) -> dict[str, Any]:
    found = {}
    for name in ("whole", "part", "method"):
        torch._dynamo.reset()
        one = Decorated() if name == "method" else mlp()
        two = copy.deepcopy(one)
        if name == "part":
            two[2].compile(backend="aot_eager")  # type: ignore[index]  # a Sequential
        train_ddp(rank, one)
        bare = torch.compile(two, backend="aot_eager") if name == "whole" else two
        assert isinstance(bare, nn.Module)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, _ = wrapped(bare, choose=quarters)
            train(rank, model, model.step)
        told = [str(one.message) for one in caught if "compiled code cannot" in str(one.message)]
        found[name] = [same(one, two), told, model.explain()]
        model.close()
    return {"compiled": found}


def find_all(rank: int, folder: str) -> None:
    parts = (what_is_left, optimizer_state, copies, foreign_tensors, compiled)
    found = {key: value for part in parts for key, value in part(rank).items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder), timeout_s=60)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_wrappers_that_are_closed_leave_no_thread_descriptor_group_or_hook(found: Found) -> None:
    for one in found:
        assert one["held"] == [one["held"][0]] * len(one["held"])
        assert one["hooks"] == 0


def test_a_sharded_optimizer_has_its_whole_state_after_close_and_says_if_it_was_lost(
    found: Found,
) -> None:
    for one in found:
        assert one["whole"]
        assert "or model.close() first" in one["early"]
        *lost, state, step = one["lost"]
        assert all("load a whole state, as from a checkpoint, first" in text for text in lost)
        assert state == step == "nothing was raised"


def test_the_wrapper_is_not_copied_but_the_module_inside_is(found: Found) -> None:
    for one in found:
        assert all("TypeError: ScheduledDataParallel holds" in text for text in one["refused"])
        assert one["copies equal"]
        assert all("the model is closed; wrap it anew" in text for text in one["closed"])


def test_tensors_of_other_parallelisms_are_refused_by_name(found: Found) -> None:
    for rank, one in enumerate(found):
        assert f"on rank {rank} 'weight' is a DTensor; leave out fully_shard" in one["foreign"]


@pytest.mark.parametrize("name", ["whole", "part", "method"])
def test_compiled_models_train_as_with_ddp_and_the_fallback_is_told_once(
    found: Found, name: str
) -> None:
    for one in found:
        is_same, told, text = one["compiled"][name]
        assert is_same
        assert told == [
            "compiled code cannot wait for parameters; "
            "communication overlaps the backward pass only"
        ]
        assert "the backward pass only, because compiled code" in text
