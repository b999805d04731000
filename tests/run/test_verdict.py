from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.run.planted import PLANTS, Loop, planted_run, with_causes

from paceline.run import Run, Verdict
from paceline.run.causes import CAUSES, Evidence, Replay
from paceline.timeline import gain_interval

# A rank that always comes last hides what else varies; a small batch leaves little else to see.
HIDDEN = {("imbalance", "slow-rank"), ("imbalance", "small-batch"), ("padding", "small-batch")}
PAIRS = [pair for pair in combinations(PLANTS, 2) if pair not in HIDDEN]


def told(run: Run) -> set[str]:
    return {cause.cause for cause in run.verdict().causes}


@pytest.mark.parametrize("cause", PLANTS)
@pytest.mark.parametrize("num_ranks", [2, 4, 8])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_planted_cause_is_told_and_no_other(cause: str, num_ranks: int, accumulate: int) -> None:
    loop = with_causes(Loop(num_ranks=num_ranks, accumulate=accumulate), cause)
    for seed in range(3):
        assert told(planted_run(loop, seed)) == {cause}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_two_planted_causes_are_both_told(pair: tuple[str, str], num_ranks: int) -> None:
    loop = with_causes(Loop(num_ranks=num_ranks), *pair)
    for seed in range(2):
        assert told(planted_run(loop, seed)) == set(pair)


def test_healthy_runs_raise_no_alarm() -> None:
    for seed in range(200):
        loop = Loop(
            num_ranks=(2, 4, 8)[seed % 3],
            noise=0.05 + 0.05 * (seed % 5) / 4,
            accumulate=(1, 4)[seed % 2],
            num_steps=(40, 100, 400)[seed // 3 % 3],
        )
        assert told(planted_run(loop, seed)) == set(), seed


@pytest.mark.parametrize(
    ("plant", "cause", "word"),
    [
        ({"slow_extra_s": 0.02}, "slow-rank", "rank 3"),
        ({"slow_outside_s": 0.02}, "slow-rank", "outside of its passes"),
        ({"slow_data_s": 0.02}, "loader", "of rank 3"),
        ({"length_spread": 0.5}, "imbalance", "another rank each step"),
        ({"wire_s": 0.02}, "communication", "40.0 MB of gradients"),
        ({"data_s": 0.02, "num_workers": 2}, "loader", "num_workers=4"),
    ],
)
def test_a_verdict_names_where_the_time_goes(
    plant: dict[str, float], cause: str, word: str
) -> None:
    verdict = planted_run(replace(Loop(num_ranks=4), **plant), 0).verdict()
    assert [one.cause for one in verdict.causes] == [cause]
    assert word in " ".join(str(verdict).split())
    assert len(str(verdict).splitlines()) <= 16


def test_a_wait_that_nothing_explains_is_a_note_and_no_cause() -> None:
    loop = Loop(num_ranks=4, length_spread=0.5, knows_sizes=False)
    verdict = planted_run(loop, 0).verdict()
    assert verdict.causes == ()
    assert "late by chance" in verdict.notes[0]


def test_small_batches_take_the_latency_of_the_wire_with_them() -> None:
    loop = with_causes(Loop(num_ranks=2), "small-batch")
    shares = {one.cause: one.share for one in _all_causes(planted_run(loop, 0))}
    assert shares["communication"] > 0.1
    verdict = planted_run(loop, 0).verdict()
    assert [one.cause for one in verdict.causes] == ["small-batch"]
    assert "larger batches mend as well" in " ".join(verdict.not_worth)


def test_what_a_slow_rank_hides_is_a_note() -> None:
    loop = Loop(num_ranks=2, accumulate=4, length_spread=0.5, slow_factor=1.6)
    verdict = planted_run(loop, 0).verdict()
    assert [one.cause for one in verdict.causes] == ["slow-rank"]
    assert "once that is mended, uneven batches" in verdict.notes[0]


def test_few_steps_say_nothing() -> None:
    verdict = planted_run(with_causes(Loop(num_steps=12), "loader"), 0).verdict()
    assert (verdict.causes, verdict.why, verdict.next) == ((), "", "")
    assert verdict.what == "too few steps to tell"
    assert "9 steps after warm-up" in verdict.notes[0]


def test_one_rank_waits_for_nobody() -> None:
    loop = with_causes(Loop(num_ranks=1, wire_s=0.0), "loader", "imbalance")
    assert told(planted_run(loop, 0)) == {"loader"}


def test_what_a_planted_loader_costs_is_what_its_removal_gains() -> None:
    slow, fast = (planted_run(replace(Loop(num_ranks=2), data_s=s), 3) for s in (20e-3, 1e-9))
    cause = slow.verdict().causes[0]
    gained = 1 - fast.step_s / slow.step_s
    assert cause.gain_low - 0.01 <= gained <= cause.gain_high + 0.01


def test_a_verdict_in_plain_values_says_the_same() -> None:
    verdict = planted_run(with_causes(Loop(num_ranks=2), "padding"), 0).verdict()
    plain = verdict.to_dict()
    assert plain["causes"][0]["cause"] == "padding"
    assert plain["causes"][0]["gain"][0] <= plain["causes"][0]["gain"][1]
    assert plain["what"] == verdict.what


LOOPS = st.builds(
    Loop,
    num_ranks=st.integers(1, 5),
    num_steps=st.integers(40, 80),
    accumulate=st.integers(1, 3),
    length_spread=st.floats(0, 1),
    padding=st.floats(0, 0.9),
    wire_s=st.floats(0, 0.1),
    data_s=st.floats(0, 0.1),
    slow_factor=st.floats(0.2, 5),
    element_s=st.floats(0, 1e-4),
    knows_sizes=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(LOOPS, st.integers(0, 1000))
def test_shares_add_up_and_gains_are_shares(loop: Loop, seed: int) -> None:
    run = planted_run(loop, seed)
    evidence = Evidence.of(run.grid(), run.facts)
    assert sum(evidence.shares.values()) == pytest.approx(1.0)
    # The update before the first step is not there, so who is last in that step is a guess.
    assert sum(evidence.waits.values()) == pytest.approx(evidence.shares["waiting"], abs=0.02)
    for cause in _all_causes(run):
        assert 0 <= cause.share <= 1.001
        assert 0 <= cause.gain_low <= cause.gain_high <= 1
    assert isinstance(run.verdict(), Verdict)


@settings(max_examples=40, deadline=None)
@given(LOOPS, st.integers(0, 1000))
def test_a_replay_without_a_change_takes_what_was_measured(loop: Loop, seed: int) -> None:
    grid = planted_run(loop, seed).grid()
    # What follows the first collective belongs to a step before, which is not there.
    replayed, measured = Replay.of(grid).steps_s()[1:].sum(), grid.step_s[1:].sum()
    assert replayed == pytest.approx(measured, rel=0.05)


def test_intervals_hold_the_gain_and_narrow_with_steps() -> None:
    random = np.random.default_rng(0)
    widths = []
    for num_steps in (50, 5000):
        before = 1.0 + 0.1 * random.random(num_steps)
        low, high = gain_interval(before, before * (0.8 + 0.2 * random.random(num_steps)))
        assert low <= 0.1 <= high or abs(low - 0.1) < 0.01
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def _all_causes(run: Run) -> list[object]:
    evidence = Evidence.of(run.grid(), run.facts)
    return [tell(evidence) for tell in CAUSES]
