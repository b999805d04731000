"""ScheduledDataParallel against DistributedDataParallel, on gloo ranks that share spawns."""

import copy
import json
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from paceline import ScheduledDataParallel
from paceline.comm import BlockPlan, WireProblem, plan_ddp, plan_p3, plan_prophet
from paceline.errors import PlanMismatchError, RankFailedError, TransferError
from paceline.testing import run_ranks
from paceline.torch import watch
from paceline.torch.comm import _control, _drift
from paceline.torch.comm._candidates import Candidate
from paceline.torch.model import Trial

NUM_STEPS = 30
NUM_MEASURED = 4
Found = list[dict[str, Any]]
Optimizer = torch.optim.Optimizer


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x.view(-1, 3, 4, 4))).relu()
        result: torch.Tensor = self.head(self.second(x).mean(dim=(2, 3)))
        return result


class Transformer(nn.Module):
    """The head shares the embedding's weight and is applied without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.embed((x.view(len(x), 6, 8).sum(-1).abs() * 7).long() % 40)
        for layer in self.layers:
            hidden = layer(hidden)
        return functional.linear(hidden, self.embed.weight)


class Odd(nn.Module):
    """Shared, frozen, unused, empty and sometimes used parameters, one checkpointed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(48, 48)
        self.again = nn.Linear(48, 48)
        self.again.weight = self.shared.weight
        self.frozen = nn.Linear(48, 48).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.sometimes = nn.Linear(48, 48)
        self.empty = nn.Parameter(torch.zeros(0))
        self.uses_more = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.frozen(self.shared(x)).relu())
        if self.uses_more:
            x = x + self.sometimes(x)
        result: torch.Tensor = checkpoint(self.again, x, use_reentrant=False)
        return result


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "conv net": ConvNet,
    "transformer": Transformer,
}
OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=1e-2),
    "adamw, fused": partial(torch.optim.AdamW, lr=1e-2, fused=True),
    "adafactor": torch.optim.Adafactor,
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3),
}


def twelfths(problem: WireProblem) -> BlockPlan:
    """P3 with slices that cut the larger tensors into several."""
    return plan_p3(problem, slice_bytes=float(problem.num_bytes.sum()) / 12)


def batches(rank: int, num_steps: int = NUM_STEPS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(4, 48, generator=generator) for _ in range(num_steps)]


def loss_of(output: torch.Tensor) -> torch.Tensor:
    return (output - 0.5).square().mean()


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def close(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def train_ddp(
    model: nn.Module, optimizer: Optimizer, rank: int, *, max_norm: float = 0.0, **kwargs: Any
) -> nn.Module:
    parallel = DistributedDataParallel(model, **kwargs)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for batch in batches(rank):
        optimizer.zero_grad()
        loss_of(parallel(batch)).backward()
        if max_norm:
            nn.utils.clip_grad_norm_(parallel.parameters(), max_norm)
        optimizer.step()
        scheduler.step()
    return parallel


def train_scheduled(
    model: nn.Module,
    optimizer: Optimizer,
    rank: int,
    *,
    each_step: Callable[[ScheduledDataParallel, int], None] = lambda model, step: None,
    **kwargs: Any,
) -> ScheduledDataParallel:
    kwargs = {"choose": twelfths, "num_measure_steps": NUM_MEASURED, **kwargs}
    scheduled = ScheduledDataParallel(model, optimizer, **kwargs)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for step, batch in enumerate(batches(rank)):
        optimizer.zero_grad()
        loss_of(scheduled(batch)).backward()
        each_step(scheduled, step)
        scheduled.step()
        scheduler.step()
    return scheduled


def pair(make: Callable[[], nn.Module], rank: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(rank)  # Rank 0's parameters are to count.
    model = make()
    return model, copy.deepcopy(model)


def equals_ddp(rank: int) -> dict[str, Any]:
    found = {}
    for name, make in MODELS.items():
        for kind, new in OPTIMIZERS.items():
            one, two = pair(make, rank)
            expected = train_ddp(one, new(one.parameters()), rank)
            model = train_scheduled(two, new(two.parameters()), rank)
            overlaps = "next forward pass" in model.explain()
            found[f"{name}, {kind}"] = [overlaps, same(expected, model)]
            model.close()
    return {"equal": found}


def other_plans(rank: int) -> dict[str, Any]:
    found = {}
    for name, choose, num_in_flight, num_trial_steps in (
        ("simulated", "simulated", 2, 5),
        ("tried", "measured", 4, 1),
        ("prophet", plan_prophet, 1, 5),
    ):
        one, two = pair(mlp, rank)
        expected = train_ddp(one, OPTIMIZERS["adamw"](one.parameters()), rank)
        optimizer = OPTIMIZERS["adamw"](two.parameters())
        model = train_scheduled(
            two,
            optimizer,
            rank,
            choose=choose,
            num_in_flight=num_in_flight,
            num_trial_steps=num_trial_steps,
        )
        found[name] = [same(expected, model), model.explain()]
        model.close()
    return {"other plans": found}


def all_phases(rank: int) -> dict[str, Any]:
    """Plans of both kinds have turns, whatever is predicted, and every third step has drifted."""

    def both(problem: WireProblem, planner: object) -> list[Candidate]:
        plans = twelfths(problem), plan_ddp(problem)
        return [Candidate(plans[0], 0.0), Candidate(plans[1], 1.0, 25)]

    phases: list[str] = []
    one, two = pair(ConvNet, rank)
    expected = train_ddp(one, OPTIMIZERS["adamw"](one.parameters()), rank)
    with (
        patch.object(_control, "candidates", both),
        patch.object(_drift, "WINDOW", 2),
        patch.object(_drift, "DRIFT", 1.0),
        patch.object(Trial, "beats", lambda *_: True),
    ):
        model = train_scheduled(
            two,
            OPTIMIZERS["adamw"](two.parameters()),
            rank,
            choose="measured",
            num_trial_steps=1,
            num_measure_steps=2,
            each_step=lambda model, _: phases.append(model.explain().split(":")[0]),
        )
    found = {"phases": phases, "phases equal": same(expected, model)}
    model.close()
    return found


def odd_parameters(rank: int) -> dict[str, Any]:
    """Rank 1 alone begins to use a layer that no rank used while it was measured."""

    one, bare = pair(Odd, rank)
    parallel = DistributedDataParallel(one, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(one.parameters(), lr=1e-2)
    for step, batch in enumerate(batches(rank)):
        one.uses_more = rank == 1 and step > 10
        optimizer.zero_grad()
        loss_of(parallel(batch)).backward()
        optimizer.step()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2)
    model = ScheduledDataParallel(bare, optimizer, choose=twelfths, num_measure_steps=NUM_MEASURED)
    for step, batch in enumerate(batches(rank)):
        bare.uses_more = rank == 1 and step > 10
        loss_of(model(batch)).backward()
        model.step()
    found = {
        "odd": same(parallel, model),
        "odd overlaps": "next forward pass" in model.explain(),
        "untouched": bare.unused.weight not in optimizer.state,
        "late": bare.sometimes.weight in optimizer.state,
    }
    model.close()
    return found


def accumulation(rank: int) -> dict[str, Any]:
    one, two = pair(mlp, rank)
    parallel, optimizer = DistributedDataParallel(one), OPTIMIZERS["adamw"](one.parameters())
    other = OPTIMIZERS["adamw"](two.parameters())
    model = ScheduledDataParallel(two, other, choose=twelfths, num_measure_steps=NUM_MEASURED)
    for first, second in zip(batches(rank)[::2], batches(rank)[1::2], strict=True):
        for wrapper, step in ((parallel, optimizer.step), (model, model.step)):
            with wrapper.no_sync():
                loss_of(wrapper(first)).backward()
            loss_of(wrapper(second)).backward()
            step()
        optimizer.zero_grad()
    twice = [same(parallel, model)]
    # Two backward passes that both send, before one step.
    for batch in batches(rank)[:6]:
        for wrapper, step in ((parallel, optimizer.step), (model, model.step)):
            for _ in range(2):
                loss_of(wrapper(batch)).backward()
            step()
        optimizer.zero_grad()
    twice.append(same(parallel, model))
    model.close()
    return {"accumulated": twice}


def clipping(rank: int) -> dict[str, Any]:
    def clip(model: ScheduledDataParallel, step: int) -> None:
        if step >= 0:
            model.clip_grad_norm_(0.1)

    one, two = pair(mlp, rank)
    expected = train_ddp(one, OPTIMIZERS["sgd"](one.parameters()), rank, max_norm=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = train_scheduled(two, OPTIMIZERS["sgd"](two.parameters()), rank, each_step=clip)
        measured = len(caught)
        other = copy.deepcopy(two)
        late = train_scheduled(
            other,
            OPTIMIZERS["sgd"](other.parameters()),
            rank,
            each_step=lambda model, step: None if step < 10 else clip(model, step),
        )
    found = {
        "clipped": same(expected, model),
        "clip reason": model.explain(),
        "late clip reason": late.explain(),
        "clip warnings": [measured, [str(one.message) for one in caught[measured:]]],
    }
    model.close()
    late.close()
    return found


def reading(rank: int) -> dict[str, Any]:
    """Read between steps in every way; use the group at the same time; watch."""
    states = []
    one, two = pair(ConvNet, rank)
    parallel, optimizer = DistributedDataParallel(one), OPTIMIZERS["adamw"](one.parameters())
    other = OPTIMIZERS["adamw"](two.parameters())
    model = ScheduledDataParallel(two, other, choose=twelfths, num_measure_steps=NUM_MEASURED)
    steps = {"hooks": 0}
    other.register_step_post_hook(lambda *_: steps.update(hooks=steps["hooks"] + 1))
    with watch(model, other) as run:
        for step, batch in enumerate(batches(rank)):
            loss_of(parallel(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
            loss_of(model(batch)).backward()
            model.step()
            dist.all_reduce(torch.zeros(100))
            states.append(read(model, other, parallel, optimizer, batch, step))
    model.close()
    return {"read": states, "hook calls": steps["hooks"], "watched": run.num_steps}


def read(
    model: ScheduledDataParallel,
    optimizer: Optimizer,
    expected: nn.Module,
    reference: Optimizer,
    batch: torch.Tensor,
    step: int,
) -> bool:
    if step % 5 == 0:
        return same(expected, model)
    if step % 5 == 1:
        with torch.no_grad():
            return torch.equal(model(batch), expected(batch))
    if step % 5 == 2:
        mine, other = optimizer.state_dict()["state"], reference.state_dict()["state"]
        return all(torch.equal(mine[key]["exp_avg"], other[key]["exp_avg"]) for key in other)
    if step % 5 == 3:
        equal = torch.equal(model.eval()(batch), expected.eval()(batch))
        model.train()
        expected.train()
        return equal
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def scaling(rank: int) -> dict[str, Any]:
    one, two = pair(mlp, rank)
    parallel, optimizer = DistributedDataParallel(one), OPTIMIZERS["sgd"](one.parameters())
    other = OPTIMIZERS["sgd"](two.parameters())
    model = ScheduledDataParallel(two, other, choose=twelfths, num_measure_steps=NUM_MEASURED)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
    for step, batch in enumerate(batches(rank)):
        batch = batch * (1e38 if step == 3 else 1)
        with torch.autocast("cpu", torch.bfloat16):
            losses = loss_of(parallel(batch).float()), loss_of(model(batch).float())
        for scaler, loss in zip(scalers, losses, strict=True):
            scaler.scale(loss).backward()
        scalers[0].step(optimizer)
        optimizer.zero_grad()
        model.step(scalers[1])
        for scaler in scalers:
            scaler.update()
    found = {"scaled": same(parallel, model), "scaler reason": model.explain()}
    model.close()
    return found


def bf16(rank: int) -> dict[str, Any]:
    one, two = pair(lambda: mlp().bfloat16(), rank)
    parallel, optimizer = DistributedDataParallel(one), OPTIMIZERS["adamw"](one.parameters())
    other = OPTIMIZERS["adamw"](two.parameters())
    model = ScheduledDataParallel(two, other, choose=twelfths, num_measure_steps=NUM_MEASURED)
    for batch in batches(rank):
        for wrapper, step in ((parallel, optimizer.step), (model, model.step)):
            loss_of(wrapper(batch.bfloat16())).backward()
            step()
        optimizer.zero_grad()
    found = {"bf16": same(parallel, model)}
    model.close()
    return found


def refusals(rank: int) -> dict[str, Any]:
    messages = []
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5 if rank == 1 else 6))
    try:
        ScheduledDataParallel(model, OPTIMIZERS["sgd"](model.parameters()))
    except PlanMismatchError as error:
        messages.append(str(error))
    plan = plan_p3 if rank == 0 else plan_prophet
    model = mlp()
    try:
        train_scheduled(model, OPTIMIZERS["sgd"](model.parameters()), rank, choose=plan)
    except PlanMismatchError as error:
        messages.append(str(error))
    sparse = nn.Embedding(4, 4, sparse=True)
    scheduled = ScheduledDataParallel(sparse, OPTIMIZERS["sgd"](sparse.parameters()))
    try:
        scheduled(torch.zeros(2, dtype=torch.int64)).sum().backward()
    except ValueError as error:
        messages.append(str(error))
    return {"refused": messages}


def with_blocks(rank: int) -> dict[str, Any]:
    """Leave `with` blocks of every kind; name what is left, and where groups are refused."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    plain = mlp()
    ways: dict[str, dict[str, Any]] = {
        "group": {"process_group": dist.group.WORLD},
        "mesh": {"process_group": mesh["dp"], "choose": plan_ddp},
        "sharded": {"sharded": True},
    }
    left, bits = [], []
    for kwargs in ways.values():
        one, two = pair(mlp, rank)
        expected = train_ddp(one, OPTIMIZERS["sgd"](one.parameters()), rank)
        optimizer = OPTIMIZERS["sgd"](two.parameters())
        with train_scheduled(two, optimizer, rank, **kwargs) as model:
            assert remaining(two, optimizer)
        bits.append(same(expected, model))
        left += remaining(two, optimizer)
    optimizer = OPTIMIZERS["sgd"](plain.parameters())
    with suppress(ZeroDivisionError), ScheduledDataParallel(plain, optimizer) as model:
        loss_of(model(batches(rank)[0])).backward()
        raise ZeroDivisionError
    left += remaining(plain, optimizer)
    square = init_device_mesh("cpu", (1, 2), mesh_dim_names=("pp", "dp"))
    with pytest.raises(ValueError, match=r"one axis of the device mesh, got 2 axes"):
        ScheduledDataParallel(plain, optimizer, process_group=square)
    return {"left": left, "with bits": bits}


def remaining(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Name the threads and hooks of ours that are still there."""
    found = [one.name for one in threading.enumerate() if one.name.startswith("paceline")]
    found += [str(one) for one in model.modules() if one._forward_pre_hooks]
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:  # type: ignore[attr-defined]  # private
            found.append(name)
    return found + ["state hook"] * len(optimizer._optimizer_load_state_dict_pre_hooks)


def find_all(rank: int, folder: str) -> None:
    parts = (
        equals_ddp,
        other_plans,
        all_phases,
        odd_parameters,
        accumulation,
        clipping,
        reading,
        scaling,
        bf16,
        with_blocks,
        refusals,
    )
    found = {key: value for part in parts for key, value in part(rank).items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder), timeout_s=60)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_get_the_bits_of_ddp(found: Found, name: str, kind: str) -> None:
    for one in found:
        assert one["equal"][f"{name}, {kind}"] == [True, True]


def test_so_they_do_with_other_plans(found: Found) -> None:
    for one in found:
        for equal, text in one["other plans"].values():
            assert equal
            assert "predicted (simulated)" in text
            assert "measured:" in text
        plans = one["other plans"]
        assert "plan: prophet" in plans["prophet"][1]
        assert "not timed" in plans["simulated"][1]


def test_measuring_trying_and_measuring_again_change_no_bit(found: Found) -> None:
    for one in found:
        assert one["phases equal"]
        runs = [phase for phase, _ in groupby(one["phases"])]
        assert runs[:4] == ["measuring", "trying", "plan", "measuring"]


def test_shared_frozen_unused_and_late_parameters_are_right(found: Found) -> None:
    for one in found:
        assert one["odd"]
        assert one["odd overlaps"]
        assert one["untouched"]
        assert one["late"]


def test_gradients_add_up_as_with_ddp(found: Found) -> None:
    assert [one["accumulated"] for one in found] == [[True, True]] * 2


def test_clipping_falls_back_and_says_so(found: Found) -> None:
    for one in found:
        assert one["clipped"]
        assert "because clip_grad_norm_ needs all gradients" in one["clip reason"]
        assert "because clip_grad_norm_ needs all gradients" in one["late clip reason"]
        early, late = one["clip warnings"]
        assert early == 0
        assert len(late) == 1
        assert "overlaps the backward pass only" in late[0]


def test_whoever_reads_between_steps_reads_updated_values(found: Found) -> None:
    for one in found:
        assert one["read"] == [True] * NUM_STEPS
        assert one["hook calls"] == one["watched"] == NUM_STEPS


def test_a_scaler_and_bf16_work(found: Found) -> None:
    for one in found:
        assert one["scaled"]
        assert one["bf16"]
        assert "a GradScaler needs all gradients" in one["scaler reason"]


def test_leaving_a_with_block_ends_threads_and_removes_hooks(found: Found) -> None:
    for one in found:
        assert one["with bits"] == [True] * 3
        assert one["left"] == []


def test_what_would_hang_or_diverge_is_refused(found: Found) -> None:
    for one in found:
        model, plan, sparse = one["refused"]
        assert "rank 1 has parameter '1.weight' (5, 4) torch.float32 where rank 0 has" in model
        assert "rank 1 planned others than rank 0" in plan
        assert "gradients must be dense, but that of 'weight'" in sparse


def train_on_four(rank: int) -> None:
    one, two = pair(ConvNet, rank)
    expected = train_ddp(one, OPTIMIZERS["sgd"](one.parameters()), rank)
    model = train_scheduled(two, OPTIMIZERS["sgd"](two.parameters()), rank)
    assert "next forward pass" in model.explain()
    assert close(expected, model)
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    states = [torch.empty_like(flat) for _ in range(4)]
    dist.all_gather(states, flat)
    assert all(torch.equal(state, states[0]) for state in states)
    # Not closed: the interpreter must end all the same.


def test_four_ranks_agree_with_ddp_within_rounding() -> None:
    # Forked ranks end without the interpreter's shutdown, which is to be seen here.
    run_ranks(train_on_four, 4, timeout_s=60, fresh=True)


def lose_rank_1(rank: int, folder: str) -> None:
    def die(model: ScheduledDataParallel, step: int) -> None:
        if rank == 1 and step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    model = mlp()
    try:
        train_scheduled(model, OPTIMIZERS["sgd"](model.parameters()), rank, each_step=die)
    except TransferError as error:
        Path(folder, "message").write_text(str(error), encoding="utf-8")
        raise


def test_a_rank_that_dies_ends_the_others_with_an_error_that_names_the_block(
    tmp_path: Path,
) -> None:
    with pytest.raises(RankFailedError, match="rank 1 died"):
        run_ranks(lose_rank_1, 2, str(tmp_path), timeout_s=20)


def wait_for_a_rank_that_is_silent(rank: int, folder: str) -> None:
    """Rank 1 skips a backward pass; its sender stands still until the time is up."""
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduled = ScheduledDataParallel(model, optimizer, choose=twelfths, num_measure_steps=2)
    for step, batch in enumerate(batches(rank)):
        if rank == 1 and step == 8:
            scheduled.flush()
            # Opened only once rank 0 has its error.
            Path(folder, "silence").read_text(encoding="utf-8")
            return
        try:
            loss_of(scheduled(batch)).backward()
            scheduled.step()
        except TransferError as error:
            Path(folder, "message").write_text(str(error), encoding="utf-8")
            Path(folder, "silence").write_text("over", encoding="utf-8")
            return


def test_a_link_that_stays_silent_is_an_error_within_the_timeout(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "silence")
    run_ranks(wait_for_a_rank_that_is_silent, 2, str(tmp_path), timeout_s=3)
    message = (tmp_path / "message").read_text(encoding="utf-8")
    assert message.startswith("rank 0: block ")
    assert "did not get through" in message
