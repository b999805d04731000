import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from paceline.timeline import Timeline
from paceline.torch import Watch, watch
from paceline.torch.model._clock import CpuClock, CudaClock, clock_of

STEP = ["between steps", "forward", "loss", "backward", "after backward", "optimizer"]
X = torch.ones(2, 4)


def layer_and_optimizer() -> tuple[nn.Linear, torch.optim.Optimizer]:
    layer = nn.Linear(4, 1)
    return layer, torch.optim.SGD(layer.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int = 1) -> None:
    for _ in range(num_steps):
        model(X).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def names(run: Watch | Timeline) -> list[str]:
    timeline = run.timeline() if isinstance(run, Watch) else run
    return [span.name for span in timeline]


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[int, Any]]:
    return [
        dict(model._forward_hooks),
        dict(model._forward_pre_hooks),
        dict(model._backward_hooks),
        dict(optimizer._optimizer_step_pre_hooks),
        dict(optimizer._optimizer_step_post_hooks),
    ]


class Spending(torch.optim.Optimizer):
    """An optimizer whose step takes a set time and changes nothing."""

    def __init__(self, model: nn.Module, clock: Any, seconds: float) -> None:
        super().__init__(model.parameters(), {})
        self.clock, self.seconds = clock, seconds

    def step(self, closure: Any = None) -> None:
        self.clock.now_s += self.seconds


class Returning(nn.Module):
    """A layer whose output is handed out in some shape."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.layer(x))


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("no gradient today")


def test_each_part_of_a_step_gets_its_own_seconds(clock: Any, timed: Any) -> None:
    model = timed(clock, 2.0, 4.0)
    optimizer = Spending(model, clock, 32.0)
    with watch(model, optimizer) as run:
        for _ in range(2):
            clock.now_s += 64.0  # the data loader
            output = model(X)
            clock.spend(output, 1.0, 8.0).sum().backward()
            clock.now_s += 16.0  # clipping, logging
            optimizer.step()
    timeline = run.timeline()
    assert names(timeline) == STEP * 2
    assert timeline.duration_s.tolist() == [64.0, 2.0, 9.0, 4.0, 16.0, 32.0] * 2
    assert timeline.step.tolist() == [0] * 6 + [1] * 6
    assert timeline.collective.tolist() == [-1] * 12
    assert run.num_steps == 2


def test_spans_follow_each_other_without_gaps(device: torch.device) -> None:
    model = nn.Linear(4, 1).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        for _ in range(3):
            model(X.to(device)).sum().backward()
            optimizer.step()
    timeline = run.timeline()
    assert names(timeline) == STEP * 3
    assert timeline.start_s[1:] == pytest.approx(timeline.end_s[:-1], abs=1e-9)
    assert (timeline.duration_s >= 0).all()
    assert timeline.makespan_s > 0
    assert run.summary().source == "measured"


def test_accumulated_passes_belong_to_the_step_that_they_lead_to() -> None:
    model, optimizer = layer_and_optimizer()
    with watch(model, optimizer) as run:
        for _ in range(2):
            for _ in range(2):
                model(X).sum().backward()
            optimizer.step()
    assert names(run) == (STEP[:4] * 2 + STEP[4:]) * 2
    assert run.timeline().step.tolist() == [0] * 10 + [1] * 10


def test_one_backward_pass_may_follow_two_forward_passes() -> None:
    model, optimizer = layer_and_optimizer()
    with watch(model, optimizer) as run:
        (model(X) + model(2 * X)).sum().backward()
        optimizer.step()
    assert names(run) == [*STEP[:2] * 2, *STEP[2:]]


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda y: {"logits": y, "step": 3}, lambda out: out["logits"]),
        (lambda y: (y, None), lambda out: out[0]),
        (lambda y: [torch.zeros(1), y], lambda out: out[1]),
        (lambda y: {"hidden": (y, y.detach())}, lambda out: out["hidden"][0]),
        (lambda y: Output(y, None), lambda out: out.logits),
    ],
    ids=["dict", "tuple", "list", "nested", "dataclass"],
)
def test_backward_is_seen_through_outputs_of_any_shape(
    wrap: Callable[[torch.Tensor], Any], pick: Callable[[Any], torch.Tensor]
) -> None:
    model = Returning(wrap)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        pick(model(X)).sum().backward()
        optimizer.step()
    assert names(run) == STEP


def test_a_pass_that_does_not_count_is_between_steps() -> None:
    model, optimizer = layer_and_optimizer()
    run = Watch(model, optimizer, None, counts=lambda _: torch.is_grad_enabled())
    with torch.no_grad():
        model(X)
    train(model, optimizer)
    run.remove_hooks()
    assert names(run) == STEP


def test_what_was_drained_is_forgotten_and_the_rest_follows_it() -> None:
    model, optimizer = layer_and_optimizer()
    run = Watch(model, optimizer, None)
    train(model, optimizer)
    first = run.drain()
    assert names(run) == []
    train(model, optimizer)
    run.remove_hooks()
    second = run.drain()
    assert [names(part) for part in (first, second)] == [STEP, STEP]
    assert (set(first.step.tolist()), set(second.step.tolist())) == ({0}, {1})
    assert second.start_s[0] == pytest.approx(first.end_s[-1])


def test_validation_without_gradient_is_a_forward_pass_alone() -> None:
    model, optimizer = layer_and_optimizer()
    with watch(model, optimizer) as run:
        with torch.no_grad():
            model(X)
        train(model, optimizer)
    assert names(run) == STEP[:2] + STEP


def test_an_output_without_gradient_has_no_backward_pass() -> None:
    model = Returning(lambda y: y > 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        model(X)
        optimizer.step()
    assert names(run) == [*STEP[:2], *STEP[4:]]


def test_a_weight_that_is_handed_out_keeps_no_hook() -> None:
    model = Returning(lambda y: y)
    model.wrap = lambda y: (y, model.layer.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        model(X)[0].sum().backward()
        optimizer.step()
    assert names(run) == STEP
    assert not model.layer.weight._backward_hooks


def test_recording_goes_on_after_a_backward_pass_that_raised() -> None:
    model, optimizer = layer_and_optimizer()
    with watch(model, optimizer) as run:
        x = X.clone().requires_grad_()
        with pytest.raises(ArithmeticError):
            model(FailingBackward.apply(x)).sum().backward()
        train(model, optimizer)
    assert names(run) == STEP[:3] + STEP


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_block_leaves_the_hooks_as_they_were(error: type[BaseException] | None) -> None:
    model, optimizer = layer_and_optimizer()
    model.register_forward_hook(lambda *_: None)
    optimizer.register_step_pre_hook(lambda *_: None)
    before = hooks_of(model, optimizer)
    with suppress(RuntimeError, KeyboardInterrupt), watch(model, optimizer) as run:
        train(model, optimizer)
        assert hooks_of(model, optimizer) != before
        if error is not None:
            raise error
    assert hooks_of(model, optimizer) == before
    assert names(run) == STEP


def test_nothing_is_recorded_after_the_block() -> None:
    model, optimizer = layer_and_optimizer()
    with watch(model, optimizer) as run:
        output = model(X)
    output.sum().backward()
    optimizer.step()
    train(model, optimizer)
    assert names(run) == STEP[:2]
    assert run.num_steps == 0


def test_a_block_without_steps_gives_an_empty_timeline() -> None:
    with watch(*layer_and_optimizer()) as run:
        pass
    assert len(run.timeline()) == 0
    assert run.summary().makespan_s == 0.0


def test_marks_that_were_resolved_on_the_way_stay_in_line(clock: Any) -> None:
    model, optimizer = layer_and_optimizer()
    with watch(model, optimizer) as run:
        clock.per_mark_s = 1.0
        train(model, optimizer, num_steps=200)
        num_reads = clock.num_reads
        middle = run.timeline()
        train(model, optimizer, num_steps=200)
    timeline = run.timeline()
    assert num_reads == 2, "one for the first mark, one for the first 1,024"
    assert names(middle) == STEP * 200
    assert names(timeline) == STEP * 400
    assert timeline.start_s.tolist() == list(range(2400))
    assert timeline.duration_s.tolist() == [1.0] * 2400
    assert timeline.step.tolist() == [step for step in range(400) for _ in STEP]


def test_marks_are_not_read_while_the_loop_runs(clock: Any) -> None:
    model, optimizer = layer_and_optimizer()
    with watch(model, optimizer):
        num_reads = clock.num_reads
        train(model, optimizer, num_steps=100)
        assert clock.num_reads == num_reads


def test_watching_does_not_change_what_is_trained() -> None:
    torch.manual_seed(0)
    watched, optimizer = layer_and_optimizer()
    plain, plain_optimizer = layer_and_optimizer()
    plain.load_state_dict(watched.state_dict())
    with watch(watched, optimizer):
        train(watched, optimizer, num_steps=5)
    train(plain, plain_optimizer, num_steps=5)
    assert torch.equal(watched.weight, plain.weight)
    assert torch.equal(watched.bias, plain.bias)


def test_the_clock_fits_the_device_and_goes_forward(device: torch.device) -> None:
    clock = clock_of(nn.Linear(256, 256).to(device))
    assert isinstance(clock, CudaClock if device.type == "cuda" else CpuClock)
    marks, x = [clock.mark()], torch.ones(256, 256, device=device)
    for _ in range(5):
        x = x @ x / 256
        marks.append(clock.mark())
    seconds = clock.seconds(marks)
    assert len(seconds) == 6
    assert sorted(seconds) == seconds
    assert seconds[-1] > seconds[0]
    assert clock.seconds([]) == []


def test_a_model_without_parameters_is_timed_on_the_cpu() -> None:
    assert isinstance(clock_of(nn.ReLU()), CpuClock)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, optimizer = layer_and_optimizer()
    other, _ = layer_and_optimizer()
    with pytest.raises(ValueError, match="none of its 2 is one of the model's; pass the optimizer"):
        watch(other, optimizer)
    swapped: Any = (optimizer, model)
    with pytest.raises(ValueError, match=r"comes first, .* got a SGD and a Linear; swap them"):
        watch(*swapped)


def test_a_block_in_which_the_optimizer_never_steps_says_so() -> None:
    model, optimizer = layer_and_optimizer()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(UserWarning, match="rank 0: watch saw 2 backward passes and no step of its"),
        watch(model, optimizer) as run,
    ):
        train(model, other, num_steps=2)
    assert run.num_steps == 0
    with suppress(RuntimeError), watch(model, optimizer):
        model(X).sum().backward()
        raise RuntimeError


def test_watch_without_a_block_says_how_to_write_it() -> None:
    run: Any = watch(*layer_and_optimizer())
    with pytest.raises(AttributeError, match="no 'summary', and records nothing by itself; write"):
        run.summary()


def test_a_long_recording_holds_few_bytes_per_span() -> None:
    model, optimizer = layer_and_optimizer()
    with watch(model, optimizer) as run:
        train(model, optimizer, 200)
        tracemalloc.start()
        try:
            train(model, optimizer, 1000)
            held_bytes = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert run.num_steps == 1200
    assert held_bytes < 60 * len(STEP) * 1000
