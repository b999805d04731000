"""Updates beside the loop leave the same bits as `optimizer.step()`, in every kind of loop."""

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from paceline.errors import TaskError
from paceline.overlap import Lane
from paceline.timeline import Kind
from paceline.torch.overlap._lane_optimizer import (
    NUM_ROUNDS,
    NUM_TIMED,
    NUM_UNTIMED,
    LaneOptimizer,
)
from paceline.torch.overlap._lanes import Lanes

Make = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.05),
    "groups": lambda ps: torch.optim.RMSprop(
        [{"params": (ps := list(ps))[:1], "lr": 0.1}, {"params": ps[1:]}], lr=0.01
    ),
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.torch.overlap._lane_optimizer.BLOCK_BYTES", 4096)


class Tied(nn.Module):
    """Uses its embedding twice, and one layer not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wide = nn.Embedding(50, 16), nn.Linear(16, 80)
        self.back, self.idle = nn.Linear(80, 16), nn.Linear(2, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.back(torch.relu(self.wide(self.embed(tokens))))
        return nn.functional.linear(x, self.embed.weight)


def twins(make: Make) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = Tied()
    return [(one, make(one.parameters())) for one in (model, copy.deepcopy(model))]


def backward(model: nn.Module, seed: int) -> None:
    tokens = torch.randint(50, (4, 6), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipped_accumulated_scheduled_steps_leave_the_same_bits(name: str) -> None:
    (plain, by_hand), (ours, deferred) = twins(OPTIMIZERS[name])
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (by_hand, deferred)]
    with LaneOptimizer(ours, deferred, always=True) as update:
        for step in range(6):
            for model in (plain, ours):
                for part in range(1 + step % 2):
                    backward(model, 10 * step + part)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            by_hand.step()
            by_hand.zero_grad()
            update.step()
            deferred.zero_grad(set_to_none=False)  # Whatever the loop does to it.
            for schedule in schedules:
                schedule.step()
        update.flush()
        assert_equal(plain, ours)
        spans = list(update.timeline())
    assert {span.kind for span in spans} == {Kind.OPTIMIZER}
    assert {span.step for span in spans} == set(range(1, 7))
    assert len(spans) == 6 * 3


def test_step_returns_and_the_forward_pass_takes_the_blocks_of_a_busy_lane() -> None:
    (plain, by_hand), (ours, deferred) = twins(OPTIMIZERS["adamw"])
    for model in (plain, ours):
        backward(model, 0)
    by_hand.step()
    begun, gate, tokens = threading.Event(), threading.Event(), torch.zeros(1, 1, dtype=torch.int64)

    def hold() -> None:
        begun.set()
        gate.wait(30.0)

    with (
        Lanes({"assist": Lane()}) as lanes,
        LaneOptimizer(ours, deferred, lanes=lanes, always=True) as update,
    ):
        deferred.zero_grad()
        backward(ours, 0)  # The first pass that is watched.
        lanes.submit(hold)
        assert begun.wait(30.0)
        update.step()
        assert update._pending.keys() >= {ours.get_parameter("wide.weight")}
        with torch.no_grad():
            assert torch.equal(ours(tokens), plain(tokens))
        assert not update._pending
        assert not gate.is_set()
        gate.set()


def test_state_dicts_wait_for_the_update() -> None:
    (plain, by_hand), (ours, deferred) = twins(OPTIMIZERS["adamw"])
    with LaneOptimizer(ours, deferred, always=True) as update:
        for step in range(3):
            for model in (plain, ours):
                backward(model, step)
            by_hand.step()
            by_hand.zero_grad()
            update.step()
            state = ours.state_dict() if step % 2 else deferred.state_dict()["state"][0]
            assert not update._pending
            expected = plain.state_dict() if step % 2 else by_hand.state_dict()["state"][0]
            assert all(torch.equal(state[key], expected[key]) for key in expected)


class Failing(torch.optim.SGD):
    """Cannot do what it is asked for."""

    def step(self, closure: Any = None) -> Any:
        """Fail."""
        raise ArithmeticError("no step")


def test_what_an_update_raises_surfaces_at_the_next_call() -> None:
    model = nn.Linear(2, 1)
    update = LaneOptimizer(model, Failing(model.parameters(), lr=0.1), always=True)
    model(torch.ones(1, 2)).backward()
    update.step()
    with pytest.raises(TaskError, match="update block 0"):
        model(torch.ones(1, 2))
    update.flush()
    update.close()


def test_closing_leaves_the_model_as_it_was() -> None:
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with LaneOptimizer(model, optimizer) as update:
        backward(model, 0)
        update.step()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not model._state_dict_pre_hooks
    assert not optimizer._optimizer_state_dict_pre_hooks


class SimulatedClock:
    """Shows the seconds that steps took so far; a deferred step takes `deferred_s` of its round."""

    def __init__(self, deferred_s: tuple[float, float]) -> None:
        self.deferred_s, self.now_s, self.turns = deferred_s, 0.0, list[bool]()
        self.update: LaneOptimizer | None = None

    def mark(self) -> object:
        """Let one step pass, unless the trial has not begun."""
        if self.update is not None and self.update._trial is not None and self.update._marks:
            defers = bool(self.update._trial.current)
            is_late = len(self.turns) // (2 * (NUM_UNTIMED + NUM_TIMED)) >= 2
            self.now_s += self.deferred_s[is_late] if defers else 1.0
            self.turns.append(defers)
        return self.now_s

    def seconds(self, marks: Sequence[object]) -> list[float]:
        """Return the marks."""
        return [mark for mark in marks if isinstance(mark, float)]


@pytest.mark.parametrize(
    ("deferred_s", "defers"), [((0.9, 0.9), True), ((0.99, 0.99), False), ((0.5, 1.1), False)]
)
def test_deferring_stays_where_it_is_faster_in_the_median_and_in_most_rounds(
    deferred_s: tuple[float, float], defers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, model = SimulatedClock(deferred_s), nn.Linear(2, 1)
    monkeypatch.setattr("paceline.torch.overlap._lane_optimizer.clock_of", lambda _: clock)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with LaneOptimizer(model, optimizer) as update:
        clock.update = update
        while update._trial is not None:
            model(torch.ones(1, 2)).backward()
            update.step()
        assert update._defers is defers
        assert "rounds" in update.explain()
    turns = clock.turns
    assert len(turns) == 2 * NUM_ROUNDS * (NUM_UNTIMED + NUM_TIMED) == 2 * sum(turns)


def test_a_trial_ends_with_a_verdict_that_is_told() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with LaneOptimizer(model, optimizer) as update:
        told = [update.explain()]
        for _ in range(2 * NUM_ROUNDS * (NUM_UNTIMED + NUM_TIMED)):
            model(torch.ones(1, 2)).backward()
            told.append(update.explain())
            update.step()
        told.append(update.explain())
    assert "watching" in told[0]
    assert "take turns" in told[1]
    assert "measured" in told[-1]


def test_an_optimizer_that_needs_all_gradients_at_once_is_refused() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="LBFGS"):
        LaneOptimizer(model, torch.optim.LBFGS(model.parameters()))


def test_a_compiled_model_is_refused() -> None:
    # What torch.compile returns has a class of this module; importing that takes seconds.
    compiled = type("OptimizedModule", (nn.Linear,), {"__module__": "torch._dynamo.eval_frame"})
    model = compiled(2, 1)
    with pytest.raises(ValueError, match="compiled"):
        LaneOptimizer(model, torch.optim.SGD(model.parameters(), lr=0.1))
