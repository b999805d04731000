"""The pieces of ScheduledDataParallel that need no second process."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from paceline.comm import BlockPlan, WireProblem, plan_p3
from paceline.cost import Link
from paceline.torch.comm._candidates import candidates, first_plan
from paceline.torch.comm._settings import Settings
from paceline.torch.comm._step_probe import StepCost, StepProbe
from paceline.torch.comm.transfer import Payload, Piece, Route, payloads_of
from paceline.torch.comm.whole._payload import pack, unpack
from paceline.torch.comm.whole._round import Flight, Round
from paceline.torch.model._param_use import ParamUse
from paceline.torch.model._partial_update import PartialUpdate
from paceline.torch.model._stream_order import StreamOrder

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "sgd with momentum": partial(
        torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "adam": partial(torch.optim.Adam, amsgrad=True),
    "adam, foreach": partial(torch.optim.Adam, foreach=True),
    "adam, fused": partial(torch.optim.Adam, fused=True),
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "adamw, tensor lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.01)),
    "asgd": torch.optim.ASGD,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": partial(torch.optim.RMSprop, momentum=0.5, centered=True),
    "rprop": torch.optim.Rprop,
}


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    first, *rest = model.parameters()
    return [{"params": [first], "weight_decay": 0.0}, {"params": rest}]


def gradients(model: nn.Module, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_one_by_one_are_bitwise_those_of_one_step(name: str) -> None:
    if name == "rprop":
        groups: Callable[[nn.Module], Any] = nn.Module.parameters
    else:
        groups = groups_of
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(7, 9), nn.Conv2d(2, 3, 3), nn.LayerNorm(5))
    parted = copy.deepcopy(whole)
    reference = OPTIMIZERS[name](groups(whole))
    optimizer = OPTIMIZERS[name](groups(parted))
    update = PartialUpdate(optimizer)
    schedulers = [torch.optim.lr_scheduler.StepLR(one, 2) for one in (reference, optimizer)]
    for step in range(6):
        for parameter, gradient in zip(whole.parameters(), gradients(whole, step), strict=True):
            parameter.grad = gradient
        reference.step()
        update.begin()
        update.run_hooks(before=True)
        for scheduler in schedulers:
            scheduler.step()
        pairs = list(zip(parted.parameters(), gradients(parted, step), strict=True))
        for parameter, gradient in reversed(pairs):
            update.apply([parameter], [gradient])
    assert same(whole.parameters(), parted.parameters())
    resumed = OPTIMIZERS[name](groups(copy.deepcopy(parted)))
    resumed.load_state_dict(optimizer.state_dict())
    assert optimizer.state_dict()["state"].keys() == reference.state_dict()["state"].keys()


def same(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_optimizer_that_needs_all_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="LBFGS needs all gradients at once"):
        PartialUpdate(torch.optim.LBFGS([nn.Parameter(torch.ones(1))]))


def test_the_settings_are_those_of_the_step_and_clearing_gradients_does_no_harm() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    update = PartialUpdate(optimizer)
    update.begin()
    optimizer.param_groups[0]["lr"] = 100.0
    optimizer.zero_grad()
    update.apply([weight], [torch.ones(1)])
    assert weight.item() == -1.0
    assert weight.grad is None


def test_parameters_without_gradient_or_group_are_left_alone() -> None:
    weight, foreign = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    update = PartialUpdate(torch.optim.AdamW([weight]))
    update.begin()
    update.apply([weight, foreign], [None, torch.ones(1)])
    assert weight.item() == foreign.item() == 0.0


class Indirect(nn.Module):
    """Uses parameters where their owners are not called, and calls a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.embed = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.twice = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # Metadata is no use.
        hidden = self.embed(tokens).to(self.scale.dtype)
        hidden, _ = self.attention(hidden, hidden, hidden)
        hidden, _ = self.lstm(self.twice(self.twice(hidden)))
        return functional.linear(hidden * self.scale, self.embed.weight)


@pytest.fixture
def found() -> tuple[Indirect, ParamUse]:
    model = Indirect()
    use = ParamUse(model)
    with use.recording():
        model(torch.zeros(2, 3, dtype=torch.int64))
    return model, use


def users(use: ParamUse, parameter: torch.Tensor) -> list[nn.Module]:
    return list(use.users.get(parameter, {}))


def test_the_user_of_a_parameter_is_the_innermost_running_module(
    found: tuple[Indirect, ParamUse],
) -> None:
    model, use = found
    assert users(use, model.embed.weight) == [model.embed, model]
    assert users(use, model.attention.out_proj.weight) == [model.attention]
    assert users(use, model.attention.in_proj_weight) == [model.attention]
    assert users(use, model.twice.weight) == [model.twice]
    assert users(use, model.lstm.weight_hh_l0) == [model.lstm]
    assert users(use, model.scale) == [model]
    assert users(use, model.unused.weight) == []


def test_parameters_are_ordered_by_first_use_and_hooks_are_removed(
    found: tuple[Indirect, ParamUse],
) -> None:
    model, use = found
    place = {parameter: place for place, parameter in enumerate(use.order)}
    modules = (model.embed, model.attention, model.twice, model.lstm)
    places = [place[next(module.parameters())] for module in modules]
    assert places == sorted(places)
    assert place[model.scale] == len(place) - 1
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_removed_when_the_forward_pass_raises() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    use = ParamUse(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), use.recording():
        model(torch.ones(1, 2))
    assert use._running == [model]
    assert not any(module._forward_hooks for module in model.modules())


def problem_of(num_bytes: list[float]) -> WireProblem:
    count = len(num_bytes)
    return WireProblem(
        forward_s=np.full(count, 0.01),
        layer=np.arange(count),
        num_bytes=np.array(num_bytes),
        ready_s=np.linspace(0.02 * count, 0.02, count),
        backward_s=0.02 * count,
        link=Link(1e-4, sum(num_bytes) / (0.03 * count)),
        num_in_flight=2,
    )


def test_parts_are_rounded_to_elements_that_make_up_the_tensors() -> None:
    parameters = [torch.zeros(3), torch.zeros(5, dtype=torch.float64)]
    problem = problem_of([40.0, 12.0])
    plan = BlockPlan.from_parts(
        "by hand", problem, [0, 1, 0, 1], [18.0, 1.0, 22.0, 11.0], [0, 0, 1, 1]
    )
    assert payloads_of(plan, parameters, [1, 0]) == [
        Payload.of(0, [Piece(1, 0, 2)]),
        Payload.of(1, [Piece(1, 2, 5)]),
        Payload.of(1, [Piece(0, 0, 3)]),
    ]


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_packed_comes_out_again_in_the_layout_of_the_parameter(
    channels_last: bool,
) -> None:
    weight = torch.arange(48.0).reshape(2, 3, 2, 4)
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    parameters = [weight, torch.zeros(4), torch.zeros(2)]
    whole = [Payload.of(0, [Piece(0, 0, 20), Piece(1, 0, 4)]), Payload.of(1, [Piece(0, 20, 48)])]
    route = Route(whole, parameters)
    assert route.outside == [2]
    current = Round(route)
    current.note_ready(0, weight, None)
    landed = []
    for payload in route.payloads:
        buffer = pack(payload, parameters, current.sources, 0.5, [1.0, 0.0])
        tensors, controls = unpack(Flight(payload, buffer, Any), current, parameters)  # type: ignore[arg-type]
        landed += tensors
        assert controls == [1.0, 0.0]
    assert landed == [1, 0]
    assert current.reduced[1] is None
    assert current.reduced[0] is not None
    assert torch.equal(current.reduced[0], weight / 2)
    assert current.reduced[0].stride() == weight.stride()


def test_only_plans_that_are_predicted_to_win_are_tried_beside_ddps_buckets() -> None:
    found = candidates(problem_of([1e6] * 30), None)
    ahead = [one for one in found if one.overlaps]
    waiting = [one for one in found if not one.overlaps]
    assert found == ahead + waiting
    assert ahead
    assert all(one.predicted_s < 0.99 * waiting[0].predicted_s for one in ahead)
    assert len({one.plan.digest() for one in found}) == len(found)
    assert all(one.bucket_mb is not None for one in waiting)
    hidden = replace(problem_of([1.0] * 3), link=Link(1e-9, 1e12))
    assert not any(one.overlaps for one in candidates(hidden, None))


def test_a_given_plan_comes_first_and_buckets_to_fall_back_on_behind() -> None:
    own, fallback = candidates(problem_of([1e6] * 30), plan_p3)
    assert (own.plan.name, own.overlaps) == ("p3", True)
    assert not fallback.overlaps


def test_the_first_steps_use_the_default_buckets() -> None:
    plan = first_plan([1 << 20, 1 << 20, 26 << 20, 1 << 20])
    assert plan.tensor.tolist() == [3, 2, 1, 0]
    assert plan.block.tolist() == [0, 1, 2, 2]


def test_measured_costs_survive_the_trip() -> None:
    cost = StepCost(
        np.array([0.1, 0.0, 0.3]),
        0.5,
        np.array([0.4, 0.2]),
        np.array([2, 1]),
        np.array([0, -1]),
    )
    other = StepCost.from_bytes(cost.to_bytes())
    assert other.to_bytes() == cost.to_bytes()
    assert other.order([True, True]) == [1, 0]
    assert other.order([True, False]) == [0]
    assert other.forward_s.tolist() == [0.1, 0.0, 0.3]


def test_each_module_waits_for_the_parameters_that_it_was_seen_to_use() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    parameters = list(model.parameters())
    probe = StepProbe(model, parameters, 4)
    for _ in range(4):
        with probe.forward():
            loss = model(torch.ones(2)).sum()
        probe.mark_backward()
        loss.backward()
        for tensor in reversed(range(4)):
            probe.mark_gradient(tensor)
        probe.mark_backward_end()
        probe.end_step()
    assert probe.waits() == {model[0]: [0, 1], model[2]: [2, 3]}
    cost = probe.cost()
    assert cost.layer.tolist() == [2, 2, 3, 3]
    assert len(cost.forward_s) == 4
    assert cost.order([True] * 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"choose": "best"}, "choose must be 'measured', 'simulated', a BlockPlan, or a function"),
        ({"choose": None}, "got None; leave it unset"),
        ({"num_measure_steps": 1}, "num_measure_steps must be at least 2, got 1"),
        ({"num_trial_steps": 0}, "at least 1, got 0; pass choose='simulated' to skip the trial"),
        ({"num_in_flight": 0}, "num_in_flight must be at least 1, got 0"),
    ],
)
def test_a_bad_setting_is_refused_with_the_way_out(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**wrong)


def settings(**changed: Any) -> Settings:
    usual = {"choose": "measured", "num_measure_steps": 2, "num_trial_steps": 1, "num_in_flight": 1}
    return Settings(**{**usual, **changed})


def test_a_plan_a_planner_or_the_way_to_choose_may_be_given() -> None:
    problem = problem_of([40.0, 12.0])
    assert settings().planner is settings(choose="simulated").planner is None
    assert settings(choose=plan_p3).planner is plan_p3
    plan = plan_p3(problem)
    planner = settings(choose=plan).planner
    assert planner is not None
    assert planner(problem) is plan
    with pytest.raises(ValueError, match=r"this model's 2 gradients of 53 bytes, .* 2 of 52 bytes"):
        planner(problem_of([40.0, 13.0]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_side_stream_waits_for_marks_of_the_main_one() -> None:
    streams = StreamOrder(torch.device("cuda"))
    large = torch.ones(4096, 4096, device="cuda")
    product = large @ large
    ready = streams.mark()
    with streams.side():
        streams.wait(ready)
        total = product.sum()
        done = streams.mark()
    streams.wait(done)
    assert total.item() == 4096.0**3


def test_on_a_cpu_there_is_nothing_to_order() -> None:
    streams = StreamOrder(torch.device("cpu"))
    with streams.side():
        assert streams.mark() is None
    streams.wait(None)
