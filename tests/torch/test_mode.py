"""Entering a mode: who averages gradients, and who waits for whom."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paceline.comm import BlockPlan, WireProblem, plan_ddp, plan_p3
from paceline.cost import Link
from paceline.torch.comm._candidates import Candidate
from paceline.torch.comm._gradient_feed import GradientFeed
from paceline.torch.comm._mode import Mode, ModeSwitch
from paceline.torch.comm._module_waits import ModuleWaits
from paceline.torch.comm.transfer import Route, Trained


class Recorder:
    """An executor, a listener and a plain way that write down what they are told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **_: Any) -> None:
            self.calls.append((name, *args))

        return call


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))


@pytest.fixture
def trained(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.setattr("torch.distributed.get_rank", lambda _: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda _: 2)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return Trained(parameters, names, None)  # type: ignore[arg-type]


def problem() -> WireProblem:
    return WireProblem(
        forward_s=np.ones(2),
        layer=np.arange(2),
        num_bytes=np.array([24.0, 8.0]),
        ready_s=np.array([2.0, 1.0]),
        backward_s=2.0,
        link=Link(0.1, 10.0),
    )


def candidate(plan: BlockPlan, bucket_mb: int | None = None) -> Candidate:
    return Candidate(plan, 1.0, bucket_mb)


def switched(trained: Trained) -> tuple[Recorder, ModeSwitch]:
    seen: Any = Recorder()
    feed = GradientFeed(trained, seen)
    return seen, ModeSwitch(trained, seen, feed, seen)


def test_a_plan_of_ours_is_taken_by_the_executor_which_gets_the_gradients(
    model: nn.Module, trained: Trained
) -> None:
    seen, switch = switched(trained)
    one = candidate(plan_p3(problem()))
    switch.enter(Mode.TRYING, Mode.OVERLAPPED, one, [0, 1])
    assert (switch.mode, switch.way, switch.current) == (Mode.TRYING, Mode.OVERLAPPED, one)
    (left, (used, route, order)) = seen.calls
    assert (left, used, order) == (("leave",), "use", [0, 1])
    assert isinstance(route, Route)
    assert route.outside == []
    del seen.calls[:]
    model(torch.ones(3)).sum().backward()
    names = [name for name, *_ in seen.calls]
    assert names == ["begin", "note_ready", "note_ready", "finish"]


def test_the_plain_way_takes_over_from_an_executor_that_has_finished(
    model: nn.Module, trained: Trained
) -> None:
    seen, switch = switched(trained)
    switch.enter(Mode.PLAIN, Mode.PLAIN, candidate(plan_ddp(problem()), 4), [0, 1])
    assert seen.calls == [("flush",), ("enter", 4)]
    del seen.calls[:]
    model(torch.ones(3)).sum().backward()
    assert seen.calls == [("begin",), ("finish",)]
    del seen.calls[:]
    switch.enter(Mode.WAITING, Mode.WAITING, candidate(plan_ddp(problem()), 4), [0, 1])
    assert [name for name, *_ in seen.calls] == ["leave", "use"]
    switch.close()
    del seen.calls[:]
    model(torch.ones(3)).sum().backward()
    assert seen.calls == []


def test_gradients_that_are_only_added_up_are_told_to_nobody(
    model: nn.Module, trained: Trained
) -> None:
    seen: Any = Recorder()
    feed = GradientFeed(trained, seen)
    for is_syncing in (False, True):
        output = model(torch.ones(3))
        feed.watch_output({"logits": [output]}, is_syncing=is_syncing)
        output.sum().backward()
        assert (("finish",) in seen.calls) == is_syncing


def test_each_module_waits_for_what_it_was_ever_seen_to_use(model: nn.Module) -> None:
    seen: Any = Recorder()
    waits = ModuleWaits(seen)
    children = list(model.children())
    waits.add({model: [5], children[1]: [1]})
    waits.add({children[1]: [0]})
    model(torch.ones(3))
    assert seen.calls == [("wait_updated", {5}), ("wait_updated", {0, 1})]
    waits.remove()
    model(torch.ones(3))
    assert len(seen.calls) == 2
