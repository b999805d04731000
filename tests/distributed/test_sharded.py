"""Sharded training against DistributedDataParallel, on gloo ranks that share a spawn."""

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from paceline.testing import run_ranks
from paceline.torch.comm._gradient_feed import GradientFeed
from paceline.torch.comm.sharded._executor import ShardedExecutor
from paceline.torch.comm.sharded._layout import ShardLayout
from paceline.torch.comm.sharded._update import ShardedUpdate
from paceline.torch.comm.transfer import Payload, Piece, Route, Trained, Worker
from paceline.torch.ranks._agreement import new_group_like

NUM_STEPS = 30
Found = list[dict[str, Any]]
New = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, New] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=1e-2),
    "adam, foreach": partial(torch.optim.Adam, lr=1e-2, foreach=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1e-2),
}


class Net(nn.Module):
    """Odd sizes, a layout that is not in a row, a shared, an unused and a late parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1).to(memory_format=torch.channels_last)
        self.shared = nn.Linear(80, 80)
        self.scale = nn.Parameter(torch.ones(()))
        self.unused = nn.Linear(3, 3)
        self.late = nn.Linear(80, 80)
        self.head = nn.Linear(80, 3)
        self.uses_late = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x.view(-1, 3, 4, 4)).flatten(1).relu()
        x = self.shared(self.shared(x)) * self.scale
        if self.uses_late:
            x = x + self.late(x)
        result: torch.Tensor = self.head(x)
        return result


def batches(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(4, 48, generator=generator) for _ in range(NUM_STEPS)]


def loss_of(output: torch.Tensor) -> torch.Tensor:
    return (output - 0.5).square().mean()


class Sharded:
    """The few lines of a wrapper around the executor: hooks that feed it and hooks that wait."""

    def __init__(self, model: Net, optimizer: torch.optim.Optimizer) -> None:
        named = dict(model.named_parameters())
        self.model, self.optimizer = model, optimizer
        self.parameters, names = list(named.values()), list(named)
        self.group = new_group_like(None)
        layout = ShardLayout(self.parameters, dist.get_world_size(), segment_elements=1000)
        self.update = ShardedUpdate(optimizer, self.parameters, layout, dist.get_rank())
        trained = Trained(self.parameters, names, self.group)
        self.executor = ShardedExecutor(
            trained, self.update, layout, Worker(trained.device), num_in_flight=2
        )
        self.num_steps, self.asked = 0, list[int]()
        number_of = {parameter: number for number, parameter in enumerate(self.parameters)}
        used = [number_of[one] for one in self.parameters if one is not model.late.weight]
        self.plan(used, 3)
        self.note_ready = self.executor.note_ready
        self.finish = self.executor.finish
        self.feed = GradientFeed(trained, self)
        self.handles = []
        for module in model.modules():
            tensors = [number_of[one] for one in module.parameters(recurse=False)]
            hook = partial(self.wait, tensors)
            self.handles.append(module.register_forward_pre_hook(hook))

    def begin(self) -> None:
        """What the feed tells first."""
        if self.executor.end_round():
            self.asked.append(self.num_steps)
        self.executor.begin()

    def wait(self, tensors: list[int], *_: object) -> None:
        self.executor.wait_updated(tensors)

    def plan(self, order: list[int], num_blocks: int) -> None:
        """Cut the gradients, last first, into blocks of about as many elements."""
        pieces = [Piece(one, 0, self.parameters[one].numel()) for one in reversed(order)]
        pieces = [
            half
            for one in pieces
            for half in (
                [Piece(one.tensor, 0, one.end // 2), Piece(one.tensor, one.end // 2, one.end)]
                if one.end > 1
                else [one]
            )
        ]
        size = -(-len(pieces) // num_blocks)
        cut = [pieces[begin : begin + size] for begin in range(0, len(pieces), size)]
        payloads = [Payload.of(block, part) for block, part in enumerate(cut)]
        self.executor.use(Route(payloads, self.parameters), order)

    def backward(self, batch: torch.Tensor, *, is_syncing: bool = True) -> None:
        output = self.model(batch)
        self.feed.watch_output(output, is_syncing=is_syncing)
        loss_of(output).backward()

    def step(self) -> None:
        self.executor.release()
        self.num_steps += 1
        for parameter in self.parameters:
            parameter.grad = None

    def close(self) -> None:
        self.executor.flush()
        self.executor.close()
        self.feed.detach()
        for handle in self.handles:
            handle.remove()


def pair(rank: int) -> tuple[Net, Net]:
    torch.manual_seed(0)
    model = Net()
    return model, copy.deepcopy(model)


def differ(one: nn.Module, two: nn.Module) -> float:
    """Largest difference between parameters; 0 for the same bits."""
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return max((a - b).detach().abs().max().item() for a, b in pairs)


def state_bytes(state: Any) -> int:
    tensors = [value for one in state.values() for value in one.values()]
    return sum(one.nbytes for one in tensors if isinstance(one, torch.Tensor))


def equals_ddp(rank: int) -> dict[str, Any]:
    """Train as DDP does: accumulate, use a layer late and on one rank only, plan anew, restore."""
    found = {}
    kinds = OPTIMIZERS if dist.get_world_size() == 2 else {"adamw": OPTIMIZERS["adamw"]}
    for name, new in kinds.items():
        one, two = pair(rank)
        parallel = DistributedDataParallel(one, find_unused_parameters=True)
        optimizer, other = new(one.parameters()), new(two.parameters())
        sharded = Sharded(two, other)
        for step, batch in enumerate(batches(rank)):
            one.uses_late = two.uses_late = rank == 1 and step >= 20
            if step == 10:
                sharded.executor.flush()
                sharded.plan(list(range(len(sharded.parameters))), 4)
            if step % 7 == 3:
                with parallel.no_sync():
                    loss_of(parallel(batch / 2)).backward()
                sharded.backward(batch / 2, is_syncing=False)
            for settings in (optimizer.param_groups, other.param_groups):
                settings[0]["lr"] *= 0.98
            loss_of(parallel(batch)).backward()
            sharded.backward(batch)
            optimizer.step()
            optimizer.zero_grad()
            sharded.step()
        sharded.executor.flush()
        whole = sharded.update.gathered_state(sharded.group)
        found[name] = {
            "differ": differ(one, two),
            "share": state_bytes(sharded.update._twin.state) / state_bytes(optimizer.state),
            "plain state": state_bytes(other.state),
            "same state": rank != 0 or same_state(whole, optimizer, one),
            "restored": restored(rank, whole, new, sharded),
        }
        sharded.close()
    return {"equal": found}


def same_state(
    whole: dict[int, dict[str, Any]], optimizer: torch.optim.Optimizer, model: nn.Module
) -> bool:
    parameters = list(model.parameters())
    kept = {number: optimizer.state[one] for number, one in enumerate(parameters)}
    kept = {number: state for number, state in kept.items() if state}
    return whole.keys() == kept.keys() and all(
        torch.allclose(whole[number][key], value, rtol=1e-4, atol=1e-7)
        for number, state in kept.items()
        for key, value in state.items()
        if value is not None
    )


def restored(
    rank: int, whole: dict[int, dict[str, Any]], new: New, sharded: Sharded
) -> list[float]:
    """Go on from the gathered state, in a plain optimizer's format, for two steps on both ways."""
    blob = [whole]
    dist.broadcast_object_list(blob, src=0)
    model = Net()
    model.load_state_dict(sharded.model.state_dict())
    model.uses_late = sharded.model.uses_late
    optimizer = new(model.parameters())
    groups = sharded.optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": blob[0], "param_groups": groups})
    resumed = Sharded(model, optimizer)
    sizes = [state_bytes(one.update._twin.state) for one in (resumed, sharded)]
    found = [float(sizes[0] == sizes[1])]
    for batch in batches(rank)[:2]:
        for one in (sharded, resumed):
            one.backward(batch)
            one.step()
            one.executor.flush()
    found.append(differ(sharded.model, model))
    resumed.close()
    return found


def clipping_and_asking(rank: int) -> dict[str, Any]:
    one, two = pair(rank)
    parallel = DistributedDataParallel(one, find_unused_parameters=True)
    optimizer, other = OPTIMIZERS["sgd"](one.parameters()), OPTIMIZERS["sgd"](two.parameters())
    sharded = Sharded(two, other)
    norms: list[bool] = []
    if rank == 1:
        sharded.executor.ask_to_wait()
    for step, batch in enumerate(batches(rank)[:8]):
        kind = torch.inf if step % 2 else 2.0
        loss_of(parallel(batch)).backward()
        sharded.backward(batch)
        norm = nn.utils.clip_grad_norm_(parallel.parameters(), 0.1, kind)
        norms.append(bool(torch.isclose(norm, sharded.executor.clip(0.1, kind))))
        optimizer.step()
        optimizer.zero_grad()
        sharded.step()
    sharded.executor.flush()
    found = {"norms": norms, "clipped": differ(one, two), "asked": sharded.asked}
    sharded.backward(batches(rank)[0])
    with pytest.raises(ValueError, match="only parts of the averaged gradients exist"):
        nn.utils.clip_grad_norm_(sharded.parameters, 1e-3)
    sharded.parameters[0].grad = torch.zeros_like(sharded.parameters[0])
    with pytest.raises(ValueError, match="was changed between backward"):
        sharded.executor.release()
    sharded.close()
    return found


def find_all(rank: int, folder: str) -> None:
    found = equals_ddp(rank) | clipping_and_asking(rank)
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder, num_ranks = tmp_path_factory.mktemp("ranks"), int(request.param)
    run_ranks(find_all, num_ranks, str(folder), timeout_s=60)
    texts = [(folder / f"{rank}.json").read_text(encoding="utf-8") for rank in range(num_ranks)]
    return [json.loads(text) for text in texts]


def test_parameters_are_those_of_ddp(found: Found) -> None:
    for one in found:
        for name, result in one["equal"].items():
            # SGD adds and multiplies only, so two ranks get the same bits.
            assert result["differ"] <= (0.0 if name == "sgd" else 1e-4), name


def test_each_rank_keeps_its_share_of_the_state(found: Found) -> None:
    for one in found:
        for name, result in one["equal"].items():
            assert abs(result["share"] - 1 / len(found)) < 0.03, name
            assert result["plain state"] == 0, name


def test_gathered_state_is_ddps_and_training_goes_on_from_it(found: Found) -> None:
    for one in found:
        for name, result in one["equal"].items():
            assert result["same state"], name
            assert result["restored"] == [1.0, 0.0], name


def test_clipping_and_requests_reach_all_ranks(found: Found) -> None:
    for one in found:
        assert one["norms"] == [True] * 8
        assert one["clipped"] < 1e-5
        assert one["asked"] == [1]
