import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from paceline.demo import DemoConfig, DemoResult, show
from paceline.demo._config import EXAMPLES_PER_RANK
from paceline.demo._result import Turn, result_of
from paceline.timeline import Kind, Span, Timeline

PREDICTED = {"plain": 4.5, "tuned": 1.5, "paced": 2.25, "window": 2.0}


def turn(
    works: tuple[float, float],
    losses: tuple[float, ...],
    num_tokens: int = 100,
    num_padded: int = 0,
) -> Turn:
    """One step per loss: rank `r` works for `works[r]` seconds and waits for the other."""
    spans = []
    for step in range(len(losses)):
        begin_s = step * max(works)
        for rank, work_s in enumerate(works):
            wait_s = max(works) - work_s
            spans += [
                Span(rank, "main", Kind.FORWARD, "forward", begin_s, work_s, step),
                Span(
                    rank,
                    "main",
                    Kind.COLLECTIVE,
                    "all-reduce",
                    begin_s + work_s,
                    wait_s,
                    step,
                    collective=step,
                ),
            ]
    return Turn(Timeline.from_spans("measured", spans), losses, num_tokens, num_padded)


def demo_result(
    plain: Sequence[Turn],
    paced: Sequence[Turn],
    *,
    tuned: float = 2.0,
    window: float = 1.0,
    output: Path = Path(),
) -> DemoResult:
    """The tuned and the window way take `tuned` and `window` seconds per step of 60 tokens."""
    turns = {
        "plain": plain,
        "tuned": [turn((tuned, tuned), (1.0, 1.0), 120)] * len(plain),
        "paced": paced,
        "window": [turn((window, window), (1.0, 1.0), 120)] * len(plain),
    }
    return result_of(turns, PREDICTED, DemoConfig(output=output), tuned_bucket_mb=0.5)


@pytest.fixture
def result(tmp_path: Path) -> DemoResult:
    plain = [
        turn((90.0, 1.0), (5.0, 4.0)),
        turn((4.0, 1.0), (3.0, 2.0), num_tokens=80, num_padded=20),
        turn((2.0, 2.0), (1.0, 0.5), num_tokens=80, num_padded=140),
    ]
    paced = [
        turn((1.0, 1.0), (5.0, 4.25)),
        turn((2.0, 2.0), (3.0, 2.0), num_tokens=80),
        turn((0.5, 1.0), (1.0, 0.5), num_tokens=80),
    ]
    return demo_result(plain, paced, output=tmp_path)


def test_speeds_count_all_rounds_after_the_warm_up(result: DemoResult) -> None:
    assert result.plain.tokens_per_s == pytest.approx(160 / 12)  # 80 in 8 s and in 4 s
    assert result.plain.tokens_per_s_range == (10.0, 20.0)
    assert result.paced.tokens_per_s == pytest.approx(160 / 6)
    assert (result.speedup, result.speedup_range) == (pytest.approx(2.0), (2.0, 2.0))
    assert result.num_rounds == 2


def test_each_way_is_held_against_default_and_tuned(result: DemoResult) -> None:
    assert (result.tuned.tokens_per_s, result.window.tokens_per_s) == (30.0, 60.0)
    assert result.window.over_plain == pytest.approx(60 / (160 / 12))
    assert (result.window.over_tuned, result.tuned.over_tuned) == (2.0, 1.0)
    assert (result.fastest, result.tuned_bucket_mb) == ("window", 0.5)


def test_step_times_are_taken_over_all_steps_of_the_rounds(result: DemoResult) -> None:
    assert (result.plain.p50_s, result.plain.measured_step_s) == (3.0, 3.0)  # 4, 4, 2, 2
    assert result.plain.p90_s == 4.0
    assert (result.paced.p50_s, result.paced.measured_step_s) == (1.5, 1.5)  # 2, 2, 1, 1
    assert result.paced.p90_s == 2.0


def test_idle_is_the_share_of_the_whole_time(result: DemoResult) -> None:
    assert result.plain.idle == pytest.approx((0.0, 2 * 3.0 / 12.0))
    assert result.paced.idle == pytest.approx((2 * 0.5 / 6.0, 0.0))


def test_padding_is_the_share_of_all_positions(result: DemoResult) -> None:
    assert result.plain.padding == 160 / 320
    assert result.paced.padding == 0.0


def test_losses_of_the_warm_up_count_too(result: DemoResult) -> None:
    assert result.max_loss_difference == 0.25
    assert not result.losses_agree
    assert (result.plain.final_loss, result.paced.final_loss) == (0.5, 0.5)
    assert result.num_examples == 6 * 2 * EXAMPLES_PER_RANK


def test_predictions_stay_beside_what_was_measured(result: DemoResult) -> None:
    assert (result.plain.predicted_step_s, result.paced.predicted_step_s) == (4.5, 2.25)
    assert (result.tuned.predicted_step_s, result.window.predicted_step_s) == (1.5, 2.0)
    assert (result.predicted_step_s, result.measured_step_s) == (2.25, 1.5)


@pytest.mark.parametrize(
    ("last_loss", "difference"),
    [
        (0.5, 0.0),
        (0.5 + 5e-5, 5e-5),
        (0.75, 0.25),
        (float("nan"), float("inf")),
        (float("inf"), float("inf")),
    ],
)
def test_losses_agree_up_to_the_order_of_sums(last_loss: float, difference: float) -> None:
    plain = [turn((1.0, 1.0), (1.0, 0.5))] * 2
    paced = [plain[0], turn((1.0, 1.0), (1.0, last_loss))]
    result = demo_result(plain, paced)
    assert result.max_loss_difference == pytest.approx(difference)
    assert result.losses_agree is (difference < 1e-4)


def test_a_result_comes_back_as_it_was_saved(result: DemoResult, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    result.save(path)
    again = DemoResult.load(path)
    assert again.to_dict() == json.loads(json.dumps(result.to_dict()))
    assert again.speedup == result.speedup
    assert again.trace == str(tmp_path / "trace.json")


def printed(result: DemoResult) -> str:
    console = Console(file=StringIO(), width=80)  # What a pipe has.
    show(result, console)
    return console.file.getvalue()


@pytest.mark.parametrize(("difference", "verdict"), [(0.0, "equal"), (0.25, "DIFFERENT")])
def test_the_table_says_whether_the_losses_agree(
    result: DemoResult, difference: float, verdict: str
) -> None:
    text = printed(replace(result, max_loss_difference=difference))
    assert f"losses                {verdict}, default and Paceline stable: at most" in text
    assert "over default 2.00 x tokens/s [2.00, 2.00], over tuned 0.89 x; 2 rounds" in text
    assert "predicted before" in text


@pytest.mark.parametrize(("num_rounds", "is_said"), [(2, True), (3, False)])
def test_a_race_over_few_rounds_is_called_open(
    result: DemoResult, num_rounds: int, is_said: bool
) -> None:
    assert ("too few rounds" in printed(replace(result, num_rounds=num_rounds))) is is_said


def test_the_table_fits_into_a_pipe(result: DemoResult) -> None:
    fast = replace(result.plain, tokens_per_s=1234567.0, tokens_per_s_range=(123456.0, 234567.0))
    slow = replace(fast, p50_s=123.4, p90_s=123.4, idle=(0.12, 0.23))
    table = printed(replace(result, plain=slow, window=slow)).split("\n\n")[0]
    assert len(table.splitlines()) == 2 + 8
    assert "…" not in table
    assert "123,456-234,567" in table


@pytest.mark.parametrize(
    ("tuned", "window", "line"),
    [
        (2.0, 1.0, "Paceline window 8: 6.00 x default PyTorch, 2.00 x tuned PyTorch"),
        (1.0, 2.0, "tuned PyTorch: 6.00 x default PyTorch, 2.00 x the better of Paceline's ways"),
        (9.0, 9.0, "Paceline stable: 2.00 x default PyTorch, 3.00 x tuned PyTorch"),
    ],
)
def test_the_way_that_won_is_named_whichever_it_is(tuned: float, window: float, line: str) -> None:
    plain = [turn((6.0, 6.0), (1.0, 0.5), 120)] * 2
    paced = [turn((3.0, 3.0), (1.0, 0.5), 120)] * 2
    text = printed(demo_result(plain, paced, tuned=tuned, window=window))
    assert f"fastest               {line}" in text
