import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.errors import StateMismatchError
from paceline.predict import Estimate
from paceline.predict.remaining._curve import RemainingEpochs, StopRule
from paceline.predict.remaining._live import LiveLine
from paceline.predict.remaining._time import RemainingTime, shown_time


def curve(random: np.random.Generator, num_epochs: int = 600) -> NDArray[np.float64]:
    """A falling loss of one of three kinds: power law, exponential, exponential and overfitting."""
    epoch = np.arange(1, num_epochs + 1)
    kind, fall = int(random.integers(3)), random.uniform(0.5, 3.0)
    power, decay = random.uniform(0.4, 1.5), random.uniform(2.0, 15.0)
    shape = epoch**-power if kind == 0 else np.exp(-epoch / decay)
    rise = random.uniform(0.002, 0.02) if kind == 2 else 0.0
    noise = random.normal(0, random.uniform(0.001, 0.02), num_epochs)
    return np.asarray(random.uniform(0.2, 2.0) + fall * (shape + rise * epoch + noise))


def stop_epoch(values: NDArray[np.float64], rule: StopRule) -> int:
    best, waited = math.inf, 0
    for epoch, value in enumerate(values, start=1):
        if value < best - rule.min_delta:
            best, waited = value, 0
        else:
            waited += 1
        if waited >= rule.patience or epoch == rule.max_epochs:
            return epoch
    return len(values)


def after(
    values: NDArray[np.float64], rule: StopRule, epochs: int, **given: Any
) -> RemainingEpochs:
    tracker = RemainingEpochs(rule, **given)
    for value in values[:epochs]:
        tracker.update(float(value))
    return tracker


def test_the_range_holds_the_stop_as_often_as_promised() -> None:
    inside = []
    for seed in range(80):
        random = np.random.default_rng([seed, 11])
        values = curve(random)
        rule = StopRule(patience=int(random.integers(4, 9)), min_delta=1e-3, max_epochs=500)
        stop = stop_epoch(values, rule)
        for epochs in (epochs for epochs in (5, 12, 25) if epochs < stop):
            left = after(values, rule, epochs).remaining()
            inside.append(left.low <= stop - epochs <= left.high)
    assert len(inside) > 150
    assert np.mean(inside) >= 0.85


def test_the_range_shrinks_as_epochs_come() -> None:
    rule = StopRule(patience=5, min_delta=1e-3, max_epochs=500)
    widths: dict[int, list[float]] = {5: [], 20: [], 40: []}
    for seed in range(60):
        values = curve(np.random.default_rng([seed, 12]))
        if stop_epoch(values, rule) > 40:
            for epochs, seen in widths.items():
                left = after(values, rule, epochs).remaining()
                seen.append(left.high - left.low)
    assert len(widths[5]) >= 10
    assert np.median(widths[5]) > np.median(widths[20]) > np.median(widths[40])


def test_a_prior_speaks_until_the_curve_does() -> None:
    rule = StopRule(patience=4)
    prior = Estimate(20.0, 12.0, 35.0)
    tracker = RemainingEpochs(rule, prior=prior)
    assert tracker.remaining() == Estimate(20.0, 12.0, 35.0)
    tracker.update(1.0)
    assert tracker.remaining() == Estimate(19.0, 11.0, 34.0)


def test_a_prior_narrows_the_first_estimates() -> None:
    values = curve(np.random.default_rng(3))
    rule = StopRule(patience=5, min_delta=1e-4)
    alone = after(values, rule, 6).remaining()
    told = after(values, rule, 6, prior=Estimate(20.0, 17.0, 24.0)).remaining()
    assert told.high <= alone.high


def test_without_a_prior_three_epochs_are_needed() -> None:
    tracker = RemainingEpochs(StopRule(patience=3))
    tracker.update(1.0)
    with pytest.raises(ValueError, match=r"1 epochs have ended, at least 3"):
        tracker.remaining()


def test_an_accuracy_is_a_loss_turned_over() -> None:
    values = curve(np.random.default_rng(5))
    loss = after(values, StopRule(patience=5), 12)
    accuracy = after(-values, StopRule(patience=5, lower_is_better=False), 12)
    assert accuracy.remaining() == loss.remaining()


def test_the_rule_is_followed_to_the_end() -> None:
    values = curve(np.random.default_rng(6))
    rule = StopRule(patience=4, min_delta=1e-3, max_epochs=40)
    stop = stop_epoch(values, rule)
    for epochs in range(3, stop):
        tracker = after(values, rule, epochs)
        left = tracker.remaining()
        assert not tracker.stopped
        assert 1 <= left.low <= left.high <= 40 - epochs
    ended = after(values, rule, stop)
    assert ended.stopped
    assert ended.remaining() == Estimate(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="stopped after epoch"):
        ended.update(0.1)


def test_a_flat_metric_is_no_error() -> None:
    left = after(np.full(9, 2.0), StopRule(patience=20, max_epochs=50), 9).remaining()
    assert left.high <= 41


def test_a_restored_tracker_says_the_same_after_every_epoch() -> None:
    values = curve(np.random.default_rng(8))
    rule = StopRule(patience=6, max_epochs=60, lower_is_better=True)
    prior = Estimate(30.0, 20.0, 50.0)
    straight = RemainingEpochs(rule, prior=prior)
    for value in values[: stop_epoch(values, rule)]:
        state = json.loads(json.dumps(straight.state_dict()))
        restored = RemainingEpochs(rule, prior=prior)
        restored.load_state_dict(state)
        assert restored.remaining() == straight.remaining()
        straight.update(float(value))


def test_a_restored_accuracy_keeps_its_sign() -> None:
    rule = StopRule(patience=6, lower_is_better=False)
    straight = after(np.array([0.1, 0.3, 0.4, 0.45]), rule, 4)
    restored = RemainingEpochs(rule)
    restored.load_state_dict(straight.state_dict())
    assert restored.remaining() == straight.remaining()


def test_a_state_of_another_rule_is_refused() -> None:
    state = RemainingEpochs(StopRule(patience=3)).state_dict()
    with pytest.raises(StateMismatchError, match="same rule"):
        RemainingEpochs(StopRule(patience=4)).load_state_dict(state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patience": 0}, "patience must be at least 1"),
        ({"patience": 2, "min_delta": -1.0}, "min_delta"),
        ({"patience": 2, "max_epochs": 0}, "max_epochs"),
    ],
)
def test_a_rule_that_never_ends_or_never_starts_is_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        StopRule(**config)


def test_a_metric_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="epoch 1 is nan"):
        RemainingEpochs(StopRule(patience=2)).update(math.nan)


SCATTER: dict[str, Any] = {
    "even": lambda random, n: np.ones(n),
    "normal": lambda random, n: random.normal(1.0, 0.05, n),
    "skewed": lambda random, n: np.exp(random.normal(0.0, 0.2, n)),
    "alike": lambda random, n: (
        1 + np.convolve(random.normal(0, 0.02, n + 20), 0.5 ** np.arange(21), mode="valid")[:n]
    ),
}


def timed(steps: NDArray[np.float64], num_steps: int) -> RemainingTime:
    tracker = RemainingTime(num_steps)
    for step_s in steps:
        tracker.update(float(step_s))
    return tracker


@pytest.mark.parametrize("name", SCATTER)
@pytest.mark.parametrize("num_seen", [20, 100])
def test_the_range_holds_the_time_as_often_as_promised(name: str, num_seen: int) -> None:
    inside, error = [], []
    for seed in range(100):
        steps = SCATTER[name](np.random.default_rng([seed, 2]), num_seen + 200)
        steps[:3] *= 5  # warm-up
        left = timed(steps[:num_seen], num_seen + 200).remaining()
        truth = steps[num_seen:].sum()
        inside.append(left.low <= truth <= left.high)
        error.append(abs(left.median / truth - 1))
    assert np.mean(inside) >= 0.85
    assert np.median(error) < 0.05


def test_the_range_of_the_next_steps_shrinks() -> None:
    widths = []
    for seed in range(40):
        steps = np.random.default_rng(seed).normal(1.0, 0.1, 200)
        left = [timed(steps[:seen], 500).remaining(200) for seen in (10, 30, 100, 200)]
        widths.append([estimate.high - estimate.low for estimate in left])
    assert (np.diff(np.median(widths, axis=0)) < 0).all()


def test_hiccups_count_at_the_rate_they_come() -> None:
    steps = np.ones(200)
    steps[10::20] = 3.0
    assert timed(steps, 400).remaining().median == pytest.approx(220, rel=0.02)


def test_a_single_hiccup_counts_cautiously() -> None:
    steps = np.ones(20)
    steps[12] = 5.0
    left = timed(steps, 220).remaining()
    assert 200 < left.median < 200 * steps.mean()
    assert left.low < 200


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_new_pace_is_noticed(factor: float) -> None:
    steps = np.random.default_rng(4).normal(1.0, 0.03, 120)
    steps[100:] *= factor
    assert timed(steps, 320).remaining().median == pytest.approx(200 * factor, rel=0.03)


def test_warm_up_counts_only_while_there_is_nothing_else() -> None:
    assert timed(np.array([9.0, 9.0]), 12).remaining().median == pytest.approx(90)
    assert timed(np.array([9.0, 9.0, 9.0, 1.0, 1.0]), 15).remaining().median == pytest.approx(10)


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40))
def test_a_restored_clock_gives_the_same_lines_at_every_step(steps: list[float]) -> None:
    straight = RemainingTime(50, price_per_hour=3.0)
    for step_s in steps:
        restored = RemainingTime(50, price_per_hour=3.0)
        restored.load_state_dict(json.loads(json.dumps(straight.state_dict())))
        restored.update(step_s)
        straight.update(step_s)
        assert restored.line() == straight.line()


def test_lines_say_steps_time_and_money() -> None:
    tracker = RemainingTime(10, price_per_hour=3600.0)
    assert tracker.line() == "step 0/10"
    for _ in range(6):
        tracker.update(1.0)
    assert tracker.line().startswith("step 6/10, ")
    assert tracker.line().endswith(" left, $10.00")
    for _ in range(4):
        tracker.update(1.0)
    assert tracker.is_done
    assert tracker.line() == "step 10/10, 0.0 s left, $10.00"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.96, "10 s"),
        (119, "119 s"),
        (120, "2.0 min"),
        (7200, "2.0 h"),
        (2e5, "2.3 days"),
    ],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert shown_time(seconds) == text


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: RemainingTime(0), "num_steps must be at least 1, got 0"),
        (lambda: RemainingTime(5, price_per_hour=-1.0), "price_per_hour .* got -1.0"),
        (lambda: RemainingTime(5).update(-0.1), "step_s .* got -0.1"),
        (lambda: RemainingTime(5).update(math.nan), "step_s .* got nan"),
        (lambda: RemainingTime(5).remaining(), "no step has ended"),
        (lambda: timed(np.ones(2), 5).remaining(-1), "must not be negative, got -1"),
        (lambda: LiveLine(RemainingTime(5), every_s=-1), "every_s"),
    ],
)
def test_bad_input_is_refused(act: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


def test_a_state_of_another_run_is_refused() -> None:
    with pytest.raises(StateMismatchError, match="5 steps, this run has 6"):
        RemainingTime(6).load_state_dict(RemainingTime(5).state_dict())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_terminal_shows_one_line_and_a_log_several() -> None:
    for stream, breaks in ((Terminal(), 1), (io.StringIO(), 3)):
        clock = Clock()
        line = LiveLine(RemainingTime(5), every_s=3.0, stream=stream, clock=clock)
        for _ in range(5):
            clock.now_s += 1.0
            line("a framework's", argument=0)
        assert stream.getvalue().count("\n") == breaks
        assert stream.getvalue().rstrip().endswith("step 5/5, 0.0 s left")


def test_a_pause_and_a_restart_are_not_counted() -> None:
    clock = Clock()
    line = LiveLine(RemainingTime(20), stream=io.StringIO(), clock=clock)
    for _ in range(8):
        clock.now_s += 1.0
        line()
        clock.now_s += 60.0
        line.pause()
    later = LiveLine(RemainingTime(20), stream=io.StringIO(), clock=clock)
    clock.now_s += 1e6
    later.load_state_dict(line.state_dict())
    clock.now_s += 1.0
    later()
    assert later.remaining.remaining().median == pytest.approx(11)
