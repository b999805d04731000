"""ScheduledDataParallel(sharded=True) against DistributedDataParallel, on two gloo ranks."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from paceline import ScheduledDataParallel
from paceline.comm import BlockPlan, WireProblem, plan_p3
from paceline.testing import run_ranks

Found = list[dict[str, Any]]
NEW = partial(torch.optim.AdamW, lr=1e-2)


def twelfths(problem: WireProblem) -> BlockPlan:
    return plan_p3(problem, slice_bytes=float(problem.num_bytes.sum()) / 12)


def loss_of(output: torch.Tensor) -> torch.Tensor:
    return (output - 0.5).square().mean()


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    # A bias in front of BatchNorm has a gradient of rounding errors alone, which Adam scales up.
    layers = [
        nn.Linear(48, 64, bias=False),
        nn.BatchNorm1d(64),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, 3),
    ]
    one = nn.Sequential(*layers)
    return one, copy.deepcopy(one)


def train(rank: int, choose: Any, *, clips: bool = False, fused: bool = False) -> dict[str, Any]:
    one, two = models()
    parallel, optimizer, other = (
        DistributedDataParallel(one),
        NEW(one.parameters(), fused=fused),
        NEW(two.parameters(), fused=fused),
    )
    model = ScheduledDataParallel(two, other, choose=choose, num_measure_steps=4, sharded=True)
    schedulers = [torch.optim.lr_scheduler.StepLR(each, 10) for each in (optimizer, other)]
    generator = torch.Generator().manual_seed(rank)
    for _ in range(60):
        batch = torch.randn(4, 48, generator=generator)
        loss_of(parallel(batch)).backward()
        loss_of(model(batch)).backward()
        if clips:
            nn.utils.clip_grad_norm_(parallel.parameters(), 0.1)
            model.clip_grad_norm_(0.1)
        optimizer.step()
        optimizer.zero_grad()
        model.step()
        for scheduler in schedulers:
            scheduler.step()
    pairs = zip(one.parameters(), model.parameters(), strict=True)
    found = {
        "differ": max((a - b).detach().abs().max().item() for a, b in pairs),
        "explain": model.explain(),
        "refused": refusals(model, other),
    }
    whole = model.optimizer_state_dict()
    expected = optimizer.state_dict()
    found["state"] = (not whole) if rank else same_state(whole, expected)
    other.load_state_dict(expected)
    batch = torch.randn(4, 48, generator=generator)
    for wrapper, step in ((parallel, optimizer.step), (model, model.step)):
        loss_of(wrapper(batch)).backward()
        step()
    pairs = zip(one.parameters(), model.parameters(), strict=True)
    found["after load"] = max((a - b).detach().abs().max().item() for a, b in pairs)
    model.close()
    return found


def refusals(model: ScheduledDataParallel, optimizer: torch.optim.Optimizer) -> list[str]:
    messages = []
    for call in (optimizer.state_dict, lambda: model.step(torch.amp.GradScaler("cpu"))):
        try:
            call()
        except (RuntimeError, ValueError) as error:
            messages.append(str(error))
    for wrong in ({"compression": "fp16"}, {"new": torch.optim.Adafactor}):
        bare = nn.Linear(2, 2)
        new = wrong.pop("new", NEW)
        try:
            ScheduledDataParallel(bare, new(bare.parameters()), sharded=True, **wrong)
        except ValueError as error:
            messages.append(str(error))
    return messages


def same_state(whole: dict[str, Any], expected: dict[str, Any]) -> bool:
    return (
        whole["param_groups"] == expected["param_groups"]
        and whole["state"].keys() == expected["state"].keys()
        and all(
            torch.allclose(whole["state"][number][key], value, rtol=1e-4, atol=1e-7)
            for number, state in expected["state"].items()
            for key, value in state.items()
        )
    )


def find_all(rank: int, folder: str) -> None:
    found = {
        "p3": train(rank, twelfths),
        "fused": train(rank, twelfths, fused=True),
        "chosen": train(rank, "measured", clips=True),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder), timeout_s=60)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_numbers_are_those_of_ddp(found: Found) -> None:
    for one in found:
        assert one["p3"]["differ"] == 0.0
        # The kernel rounds the end of a tensor otherwise, and parts end elsewhere.
        assert one["fused"]["differ"] < 1e-5
        assert one["chosen"]["differ"] < 1e-4
        assert "next forward pass" in one["p3"]["explain"]


def test_state_is_whole_on_rank_0_and_training_goes_on_from_a_plain_one(found: Found) -> None:
    for one in found:
        for result in one.values():
            assert result["state"]
            assert result["after load"] < 1e-4


def test_what_needs_whole_tensors_is_refused(found: Found) -> None:
    for one in found:
        state, scaler, compression, whole = one["p3"]["refused"]
        assert "call model.optimizer_state_dict() on all ranks" in state
        assert "a GradScaler looks at whole gradients" in scaler
        assert "got compression='fp16'" in compression
        assert "Adafactor is not known to update each element by itself" in whole
