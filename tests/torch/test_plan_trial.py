"""Trials of plans and the watch for drift, on made-up step times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.comm import WireProblem, plan_ddp, plan_p3
from paceline.cost import Link
from paceline.torch.comm._candidates import Candidate
from paceline.torch.comm._drift import WINDOW, DriftMonitor
from paceline.torch.comm._plan_trial import NUM_ROUNDS, NUM_UNTIMED, PlanTrial

PROBLEM = WireProblem(
    forward_s=np.full(4, 0.1),
    layer=np.arange(4),
    num_bytes=np.full(4, 1e6),
    ready_s=np.linspace(0.8, 0.2, 4),
    backward_s=0.8,
    link=Link(0.0, 1e6),
)


def candidate(predicted_s: float, *, overlaps: bool) -> Candidate:
    plan = plan_p3(PROBLEM) if overlaps else plan_ddp(PROBLEM)
    return Candidate(plan, predicted_s, None if overlaps else 25)


def run(trial: PlanTrial, times_s: dict[int, float]) -> tuple[Candidate, int]:
    """Walk the trial on steps of `times_s` per candidate, by its id; return winner and steps."""
    steps = 0
    while not trial.is_over:
        steps += 1
        if trial.note(times_s[id(trial.current)]):
            trial.agree(trial.medians_s())
    return trial.winner(trial.medians_s()), steps


@pytest.mark.parametrize(
    ("times_s", "expected"),
    [
        ([1.0, 2.0, 3.0], 0),
        ([2.0, 1.0, 3.0], 1),
        ([3.0, 2.0, 1.0], 2),
        # The one that overlaps must win by 1 %.
        ([0.995, 1.0, 1.2], 1),
        ([0.985, 1.0, 1.2], 0),
    ],
)
def test_the_plan_that_is_measured_fastest_stays(times_s: list[float], expected: int) -> None:
    made = [candidate(1.0, overlaps=True), *(candidate(9.0, overlaps=False) for _ in range(2))]
    winner, _ = run(
        PlanTrial(made, 3), {id(one): time for one, time in zip(made, times_s, strict=True)}
    )
    assert winner is made[expected]


def test_the_first_steps_of_a_turn_do_not_count() -> None:
    made = [candidate(1.0, overlaps=True), candidate(1.0, overlaps=False)]
    trial = PlanTrial(made, 2)
    for step_s in (100.0,) * NUM_UNTIMED + (1.0, 1.0):
        trial.note(step_s)
    assert trial.medians_s()[0] == 1.0
    assert trial.current is made[1]


def test_whoever_is_slow_in_a_round_has_no_turn_in_the_next() -> None:
    made = [candidate(1.0, overlaps=True), candidate(1.0, overlaps=False)]
    _, steps = run(PlanTrial(made, 1), {id(made[0]): 1.0, id(made[1]): 1.01})
    assert steps == NUM_ROUNDS * 2 * (NUM_UNTIMED + 1)
    _, steps = run(PlanTrial(made, 1), {id(made[0]): 1.0, id(made[1]): 1.2})
    assert steps == 2 * (NUM_UNTIMED + 1)


def test_once_all_must_wait_only_plans_that_do_have_turns() -> None:
    made = [candidate(1.0, overlaps=True), *(candidate(1.0, overlaps=False) for _ in range(2))]
    trial = PlanTrial(made, 1)
    trial.keep_waiting()
    seen = set()
    while not trial.is_over:
        seen.add(id(trial.current))
        if trial.note(1.0):
            trial.agree(trial.medians_s())
    assert seen == {id(one) for one in made[1:]}
    assert not trial.winner(trial.medians_s(), overlapping=False).overlaps


def test_without_times_the_prediction_decides() -> None:
    made = [candidate(0.5, overlaps=True), candidate(1.0, overlaps=False)]
    trial = PlanTrial(made, 0)
    assert trial.winner([np.inf, np.inf]) is made[0]
    assert trial.winner([np.inf, np.inf], overlapping=False) is made[1]


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6), st.integers(1, 4))
def test_a_trial_ends_and_never_keeps_what_is_slower_than_every_ddp(
    times_s: list[float], num_steps: int
) -> None:
    made = [candidate(1.0, overlaps=index % 2 == 0) for index in range(len(times_s))]
    price = {id(one): time for one, time in zip(made, times_s, strict=True)}
    winner, steps = run(PlanTrial(made, num_steps), price)
    assert steps <= NUM_ROUNDS * len(made) * (NUM_UNTIMED + num_steps)
    assert price[id(winner)] <= min(price[id(one)] for one in made if not one.overlaps)


def feed(monitor: DriftMonitor, step_s: float, num_steps: int) -> list[bool]:
    found = []
    for _ in range(num_steps):
        median_s = monitor.note(step_s)
        if median_s is not None:
            found.append(monitor.has_drifted(median_s))
    return found


@pytest.mark.parametrize(
    ("later_s", "drifts"), [(1.2, False), (0.85, False), (1.3, True), (0.7, True)]
)
def test_steps_that_take_another_time_are_noticed(later_s: float, drifts: bool) -> None:
    monitor = DriftMonitor()
    assert feed(monitor, 1.0, 2 * WINDOW) == [False, False]
    assert feed(monitor, later_s, WINDOW) == [drifts]


def test_one_slow_step_is_no_drift_and_drifting_for_ever_is_asked_ever_less() -> None:
    monitor = DriftMonitor()
    feed(monitor, 1.0, WINDOW)
    monitor.note(1e6)
    assert feed(monitor, 1.0, WINDOW - 1) == [False]
    assert feed(monitor, 9.0, WINDOW) == [True]
    assert feed(monitor, 1.0, 2 * WINDOW) == [False]
    assert feed(monitor, 9.0, WINDOW) == []
    assert feed(monitor, 9.0, WINDOW) == [True]
