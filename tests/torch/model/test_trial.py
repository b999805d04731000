"""Trials on made-up step times: who has a turn, what is timed, and that nothing slower is kept."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.torch.model import Trial

Step = tuple[int, int, int]
"""Round, candidate, and step within the turn."""


def run(trial: Trial, step_s: Callable[[int, int, int], float]) -> list[Step]:
    """Go through the trial with the time of each step; return the steps."""
    steps: list[Step] = []
    for round_number in itertools.count():
        while not trial.is_over:
            turn = sum(before[:2] == (round_number, trial.current) for before in steps)
            steps.append((round_number, trial.current, turn))
            if trial.note(step_s(*steps[-1])):
                trial.end_round()
                break
        if trial.is_over:
            return steps
    raise AssertionError


def kept(rounds_s: list[list[float]]) -> int:
    """Return the candidate that is kept when round `i` takes `rounds_s[i]` per candidate."""
    trial = Trial(len(rounds_s[0]), num_rounds=len(rounds_s))
    run(trial, lambda number, candidate, _: rounds_s[number][candidate])
    return trial.winner()


def test_each_candidate_has_one_turn_per_round_and_the_order_rotates() -> None:
    steps = run(Trial(3, num_rounds=4, num_timed=2, num_untimed=1), lambda *_: 1.0)
    turns = [[who for number, who, step in steps if (number, step) == (r, 0)] for r in range(4)]
    assert turns == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    assert len(steps) == 4 * 3 * 3


def test_untimed_steps_and_warm_rounds_do_not_count() -> None:
    trial = Trial(2, num_rounds=1, num_timed=2, num_untimed=1, num_warm_rounds=1)
    steps = run(trial, lambda number, who, step: 1.0 + who if number and step else 1e6)
    assert len(steps) == 2 * 2 * 3
    assert trial.medians_s() == [1.0, 2.0]
    assert "faster in 0 of 1 rounds" in trial.explain(1)


def test_a_candidate_that_was_not_timed_has_no_median() -> None:
    trial = Trial(2, num_rounds=1)
    trial.note(1.0)
    assert trial.medians_s() == [1.0, np.inf]


@pytest.mark.parametrize(
    ("rounds_s", "expected"),
    [
        ([[1.0, 0.9]] * 3, 1),
        ([[1.0, 0.98]] * 3, 1),
        ([[1.0, 0.9, 0.8]] * 3, 2),
        ([[1.0, 0.8, 0.9]] * 3, 1),
        # Equal, slower, much slower, and faster by less than the least gain.
        ([[1.0, 1.0]] * 3, 0),
        ([[1.0, 1.001]] * 3, 0),
        ([[1.0, 1.5]] * 3, 0),
        ([[1.0, 1.99, 3.0]] * 3, 0),
        ([[1.0, 0.989]] * 3, 0),
        # Faster in the median, but not in most rounds: the plain way varies.
        ([[0.1, 0.5], [1.0, 0.5], [1.0, 1.1], [0.4, 0.5]], 0),
        ([[1.0, 0.5], [0.1, 0.5]], 0),
        # Faster in most rounds, but not in the median.
        ([[1.0, 0.995], [1.0, 0.995], [1.0, 5.0]], 0),
        # One bad round of three.
        ([[1.0, 0.9], [1.0, 9.0], [1.0, 0.9]], 1),
    ],
)
def test_another_way_is_kept_only_where_it_is_faster_by_the_median_and_in_most_rounds(
    rounds_s: list[list[float]], expected: int
) -> None:
    assert kept(rounds_s) == expected


@given(st.lists(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=3), min_size=1, max_size=7))
def test_what_is_kept_was_never_measured_to_be_slower(rounds_s: list[list[float]]) -> None:
    candidate = kept(rounds_s)
    plain_s, kept_s = np.array(rounds_s)[:, 0], np.array(rounds_s)[:, candidate]
    assert np.median(kept_s) <= np.median(plain_s)
    assert candidate == 0 or 2 * (kept_s < plain_s).sum() > len(rounds_s)


def test_the_fastest_of_several_plain_ways_is_the_one_to_beat() -> None:
    trial = Trial(3, num_rounds=1)
    run(trial, lambda _, who, __: (1.0, 1.2, 0.995)[who])
    assert trial.winner(plain=(0, 1)) == 0
    assert trial.winner(plain=(1,)) == 2


def test_seconds_that_ranks_share_decide_in_place_of_their_own() -> None:
    trial, shared_s = Trial(2, num_rounds=3), [1.0, 0.8]
    while not trial.is_over:
        if trial.note((1.0, 2.0)[trial.current]):
            trial.end_round(shared_s)
    assert trial.winner(shared_s) == 1
    assert trial.winner() == 0
    assert Trial(2, num_rounds=3).winner(shared_s) == 1  # Without any turn, they alone decide.


def test_slow_candidates_have_no_turn_in_the_next_round() -> None:
    trial = Trial(3, num_rounds=3, drop_above=1.05)
    steps = run(trial, lambda _, who, __: (1.0, 1.04, 1.06)[who])
    assert [sum(who == candidate for _, who, _ in steps) for candidate in range(3)] == [3, 3, 1]
    trial = Trial(2, num_rounds=3, drop_above=1.05)
    assert len(run(trial, lambda _, who, __: 1.0 - 0.1 * who)) == 2
    assert trial.winner() == 1


def test_a_round_begins_anew_when_candidates_are_taken_out() -> None:
    trial = Trial(3, num_rounds=1)
    trial.note(1.0)
    trial.only([1, 2])
    seen = []
    while not trial.is_over:
        seen.append(trial.current)
        if trial.note(1.0):
            trial.end_round()
    assert seen == [1, 2]


def test_what_was_measured_is_said_in_words() -> None:
    trial = Trial(2, num_rounds=3)
    run(trial, lambda number, who, _: 0.25 if who and number else 0.5)
    assert trial.explain(1, per="pass") == (
        "measured 250 ms against 500 ms plain per pass, faster in 2 of 3 rounds"
    )
