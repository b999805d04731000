"""Split backward passes: bitwise the same gradients, in every way that gradients are asked for."""

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from paceline.errors import TaskError
from paceline.overlap import LanePlan, SplitCost, Threads, defer_all
from paceline.torch.overlap._lanes import Lanes
from paceline.torch.overlap.split._find_plan import MeasuredPass, PassPlan, find_plan
from paceline.torch.overlap.split._site import Mode
from paceline.torch.overlap.split._split_backward import split_backward

ALL = defer_all()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Another number of threads may round differently, in PyTorch itself."""
    before, num_before = torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    gc.collect()
    assert threading.active_count() == num_before


class Mixed(nn.Module):
    """Shared, frozen, unused and functional weights, and layers of every kind that is split."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8, padding_idx=3)
        self.first = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8, bias=False)
        self.again.weight = self.first.weight
        self.norm = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8, eps=1e-5)
        self.bare_norm = nn.LayerNorm(8, bias=False)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.partly = nn.Linear(8, 8)
        self.partly.bias.requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = self.again(functional.gelu(self.first(self.norm(x))))
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = self.partly(self.frozen(self.bare_norm(x))) + self.attention(x, x, x)[0]
        return functional.linear(self.rms(self.first(x)), self.embed.weight)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 3, stride=2, padding=1).to(memory_format=torch.channels_last)
        self.third = nn.Conv2d(4, 4, 1, padding="valid", dilation=2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.norm(self.first(x)).relu()))
        found: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return found


def mixed(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    return Mixed(), torch.randint(0, 20, (4, 6))


def conv_net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return ConvNet(), torch.randn(5, 3, 8, 8)


def deep() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = [part for _ in range(12) for part in (nn.Linear(16, 16), nn.GELU())]
    return nn.Sequential(*layers), torch.randn(8, 16)


def backward(model: nn.Module, x: torch.Tensor) -> None:
    model(x).square().mean().backward()


def accumulate(model: nn.Module, x: torch.Tensor) -> None:
    for part in x.chunk(2):
        (model(part).square().mean() / 2).backward()


def in_place(model: nn.Module, x: torch.Tensor) -> None:
    backward(model, x)
    model.zero_grad(set_to_none=False)
    backward(model, x)


def twice(model: nn.Module, x: torch.Tensor) -> None:
    loss = (model(x) + model(x.flip(0))).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()


def autocast(model: nn.Module, x: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()


def checkpointed(model: nn.Module, x: torch.Tensor) -> None:
    checkpoint(model, x, use_reentrant=False).square().mean().backward()


def reentrant(model: nn.Module, x: torch.Tensor) -> None:
    start = torch.ones(1, requires_grad=True)
    checkpoint(
        lambda _, value: model(value), start, x, use_reentrant=True
    ).square().mean().backward()


def some_inputs(model: nn.Module, x: torch.Tensor) -> None:
    wanted = list(model.parameters())[1:3]
    model(x).square().mean().backward(inputs=[p for p in wanted if p.requires_grad])
    model(x).square().mean().backward()


def double(model: nn.Module, x: torch.Tensor) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = model(x).square().mean()
    found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    (loss + sum(g.square().sum() for g in found if g is not None)).backward()


def grad_only(model: nn.Module, x: torch.Tensor) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(model(x).square().mean(), parameters, allow_unused=True)
    assert all(p.grad is None for p in parameters)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(ours: nn.Module, plain: nn.Module, *, exact: bool = True) -> None:
    expected = gradients(plain)
    for name, gradient in gradients(ours).items():
        if gradient is None or expected[name] is None:
            assert gradient is expected[name] is None, name
        elif exact:
            assert torch.equal(gradient, expected[name]), name
            rows = zip(gradient.shape, gradient.stride(), expected[name].stride(), strict=True)
            assert all(own == theirs for size, own, theirs in rows if size > 1), name
        else:
            torch.testing.assert_close(gradient, expected[name])


WAYS = [backward, accumulate, in_place, twice, autocast, checkpointed, reentrant, some_inputs]


# PyTorch's own layer says so under autocast.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("make", [mixed, conv_net, deep])
@pytest.mark.parametrize("run", [*WAYS, grad_only])
def test_gradients_are_bitwise_those_of_pytorch(
    make: Callable[[], tuple[nn.Module, torch.Tensor]], run: Callable[..., None]
) -> None:
    plain, x = make()
    ours = copy.deepcopy(plain)
    run(plain, x)
    with split_backward(ours, plan=ALL) as split:
        run(ours, x)
        if run is not grad_only:
            assert len(split.timeline()) > 2
    # Its weights are used three times, some of them by autocast's own cached copy.
    is_exact = make is not mixed or run not in (autocast, twice)
    assert_same(ours, plain, exact=is_exact) if is_exact or run is twice else assert_close(
        ours, plain
    )


def assert_close(ours: nn.Module, plain: nn.Module) -> None:
    for (name, gradient), other in zip(
        gradients(ours).items(), gradients(plain).values(), strict=True
    ):
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            torch.testing.assert_close(gradient, other, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("make", [mixed, deep])
def test_gradients_of_gradients(make: Callable[[], tuple[nn.Module, torch.Tensor]]) -> None:
    plain, x = make()
    ours = copy.deepcopy(plain)
    double(plain, x)
    with split_backward(ours, plan=ALL):
        double(ours, x)
    assert_same(ours, plain, exact=False)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(["plain", "expanded", "transposed", "strided"]),
)
@settings(max_examples=60)
def test_a_linear_layer_of_any_shape(
    lead: list[int], num_in: int, num_out: int, has_bias: bool, layout: str
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(num_in, num_out, bias=has_bias)
    ours = copy.deepcopy(plain)
    values = torch.randn(*lead, num_in)
    if layout == "transposed" and len(lead) == 1:
        values = torch.randn(num_in, *lead).t()
    if layout == "strided":
        values = torch.randn(*lead, 2 * num_in)[..., ::2]
    one, two = (
        values.detach().clone(memory_format=torch.preserve_format).requires_grad_() for _ in "ab"
    )
    weight = 1.0 if layout == "expanded" else torch.randn(*lead, num_out)
    (plain(one) * weight).sum().backward()
    with split_backward(ours, plan=ALL):
        (ours(two) * weight).sum().backward()
    assert_same(ours, plain, exact=values.is_contiguous() or len(lead) == 1)
    torch.testing.assert_close(two.grad, one.grad)


@pytest.mark.parametrize("layers_per_task", [1, 3, 100])
@pytest.mark.parametrize("max_pending", [None, 1, 2])
def test_tasks_of_any_size_and_any_bound(layers_per_task: int, max_pending: int | None) -> None:
    plain, x = mixed()
    ours = copy.deepcopy(plain)
    backward(plain, x)
    own = LanePlan(
        deferred=None,
        num_layers=0,
        threads=Threads(),
        max_pending=max_pending,
        plain_s=0.0,
        predicted_s=0.0,
        reason="test",
        layers_per_task=layers_per_task,
    )
    with split_backward(ours, plan=own):
        backward(ours, x)
    assert_same(ours, plain)


def test_training_gives_the_same_parameters_and_state() -> None:
    plain, x = deep()
    ours = copy.deepcopy(plain)
    keys = list(plain.state_dict())
    with split_backward(ours, plan=ALL):
        assert list(ours.state_dict()) == keys
        for model in (plain, ours):
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            for _ in range(5):
                optimizer.zero_grad()
                backward(model, x)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
    for one, two in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, two)


def test_hooks_run_when_the_gradient_is_there() -> None:
    model, x = deep()
    seen: list[tuple[str, torch.Tensor]] = []

    def note(name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            seen.append((name, parameter.grad.clone()))

        return hook

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(note(name))
    with split_backward(model, plan=ALL):
        backward(model, x)
    assert sorted(name for name, _ in seen) == sorted(dict(model.named_parameters()))
    for name, gradient in seen:
        assert torch.equal(gradient, model.get_parameter(name).grad)  # type: ignore[arg-type]


def test_a_user_s_hook_sees_and_changes_the_gradient() -> None:
    plain, x = deep()
    ours = copy.deepcopy(plain)
    for model in (plain, ours):
        model[2].weight.register_hook(lambda gradient: gradient * 2)  # type: ignore[union-attr]
    backward(plain, x)
    with split_backward(ours, plan=ALL):
        backward(ours, x)
    assert_same(ours, plain)


def test_a_backward_pass_that_raises_leaves_nothing_behind() -> None:
    plain, x = deep()
    ours = copy.deepcopy(plain)

    def refuse(_gradient: torch.Tensor) -> None:
        raise KeyError("half way")

    backward(plain, x)
    with split_backward(ours, plan=ALL):
        middle = ours[:12](x)
        middle.register_hook(refuse)
        with pytest.raises(KeyError):
            ours[12:](middle).square().mean().backward()
        ours.zero_grad()
        backward(ours, x)
    assert_same(ours, plain)


def test_what_a_task_raises_is_raised_by_backward() -> None:
    model, x = deep()

    def refuse(_parameter: torch.Tensor) -> None:
        raise KeyError("no")

    handle = model[0].weight.register_post_accumulate_grad_hook(refuse)  # type: ignore[union-attr]
    with split_backward(model, plan=ALL):
        # It runs on the lane, or on main if the gradient came before autograd was through.
        with pytest.raises((TaskError, KeyError)):
            backward(model, x)
        handle.remove()
        model.zero_grad()
        backward(model, x)


def test_the_model_is_as_it_was_afterwards() -> None:
    model, x = mixed()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with split_backward(model, plan=ALL) as split:
        backward(model, x)
        split.close()
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_a_model_is_split_once() -> None:
    model, _ = deep()
    with (
        split_backward(model, plan=ALL),
        pytest.raises(ValueError, match="layer '0' is split already"),
    ):
        split_backward(model, plan=ALL)


def test_nothing_is_deferred_without_gradients_or_for_function_transforms() -> None:
    model, x = deep()
    with split_backward(model, plan=ALL) as split:
        with torch.no_grad():
            model(x)
        weights = dict(model.named_parameters())

        def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(model, values, x).square().mean()

        found = torch.func.grad(loss)({name: value.detach() for name, value in weights.items()})
        assert {span.lane for span in split.timeline()} <= {"main"}
        backward(model, x)
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value.grad)


def test_lanes_may_be_given_and_are_left_open() -> None:
    model, x = deep()
    with Lanes() as lanes:
        with split_backward(model, plan=ALL, lanes=lanes):
            backward(model, x)
        assert lanes.submit(str, 1).wait() == "1"
        names = {span.name for span in lanes.timeline()}
    assert "22 weight gradient" in names


def test_only_the_layers_of_the_plan_are_deferred() -> None:
    model, x = deep()
    plan = LanePlan(
        deferred=("22", "0"),
        num_layers=12,
        threads=None,
        max_pending=None,
        plain_s=2.0,
        predicted_s=1.0,
        reason="test",
    )
    with split_backward(model, plan=plan) as split:
        backward(model, x)
        spans = [span.name for span in split.timeline() if span.lane == "assist"]
        assert spans == ["22 weight gradient", "0 weight gradient"]
        assert split.explain() == "weight gradients of 2 of 12 layers are deferred: test"


def test_the_trial_ends_and_says_what_it_found() -> None:
    plain, x = deep()
    ours = copy.deepcopy(plain)
    backward(plain, x)
    split = split_backward(ours)
    assert split.explain() == "measuring the first passes"
    for _ in range(100):
        ours.zero_grad()
        backward(ours, x)
        assert_same(ours, plain)
        if split.plan is not None:
            break
    assert split.plan is not None
    assert "deferred" in split.explain()
    split.close()


def passed(input_s: float, weight_s: float, num_layers: int = 4) -> MeasuredPass:
    times, names = [0.0, 1.0], []
    for layer in range(num_layers):
        times += [times[-1] + input_s, times[-1] + input_s + weight_s]
        names += [str(layer)] * 2
    return MeasuredPass([*times, times[-1]], names)


def whole(seconds: float) -> MeasuredPass:
    return MeasuredPass([0.0, seconds / 2, seconds], [])


def run_trial(
    split_s: float, *, num_cores: int = 2, weight_s: float = 1.0
) -> tuple[LanePlan, list[PassPlan]]:
    orders, steps = [], find_plan(num_cores, num_cores, 0.0)
    order = next(steps)
    while True:
        orders.append(order)
        done = whole(split_s if order.mode is Mode.DEFER else 9.0)
        try:
            order = steps.send(passed(1.0, weight_s) if order.mode is Mode.INLINE else done)
        except StopIteration as end:
            return end.value, orders


@pytest.mark.parametrize(
    ("split_s", "defers"), [(6.0, True), (8.5, True), (8.9, False), (9.0, False), (20.0, False)]
)
def test_the_faster_way_is_kept(split_s: float, defers: bool) -> None:
    plan, orders = run_trial(split_s)
    assert plan.defers is defers
    assert f"measured {split_s * 1e3:.4g} ms against 9000 ms plain" in plan.reason
    tried = [order.threads for order in orders if order.mode is Mode.DEFER]
    assert set(tried) == {Threads(forward=2), Threads(forward=1)}


def test_without_a_free_core_nothing_is_tried() -> None:
    plan, orders = run_trial(1.0, num_cores=1)
    assert not plan.defers
    assert "no core is free" in plan.reason
    assert all(order.mode is Mode.PLAIN for order in orders)


def test_what_is_simulated_to_lose_is_not_tried() -> None:
    plan, orders = run_trial(1.0, weight_s=0.0)
    assert not plan.defers
    assert all(order.mode is not Mode.DEFER for order in orders)


def test_what_was_measured_becomes_a_cost() -> None:
    cost = passed(1.0, 0.5, 2).cost()
    assert isinstance(cost, SplitCost)
    assert (cost.forward_s, cost.tail_s, cost.names) == (1.0, 0.0, ("0", "1"))
    assert cost.input_s.tolist() == [1.0, 1.0]
    assert cost.weight_s.tolist() == [0.5, 0.5]


def test_a_data_parallel_model_is_refused(tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        model, x = deep()
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ValueError, match="cannot serve DistributedDataParallel"):
            split_backward(wrapped, plan=ALL)
        with split_backward(model, plan=ALL) as split:
            backward(wrapped, x)
            assert "1 passes ran inside DistributedDataParallel" in split.explain()
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gradients_on_a_device_agree_within_rounding() -> None:
    plain, x = mixed()
    plain, x = plain.cuda(), x.cuda()
    ours = copy.deepcopy(plain)
    backward(plain, x)
    with split_backward(ours, plan=ALL):
        backward(ours, x)
    assert_same(ours, plain, exact=False)
