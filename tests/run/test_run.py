from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.run.planted import Loop, planted_run, planted_steps

from paceline.run import Run, RunFolder, Steps
from paceline.timeline import Kind

INFO = {
    "state": "ended", "exit_code": 0, "command": [], "script": "train.py", "started": "",
    "num_ranks": 2, "versions": {}, "hardware": {},
}  # fmt: skip


def written(place: Path, ranks: list[Steps], **info: object) -> RunFolder:
    folder = RunFolder(place)
    folder.write_info({**INFO, "num_ranks": len(ranks), **info})
    for rank, steps in enumerate(ranks):
        folder.write_facts(rank, {"sampler": "DistributedSampler"})
        half = len(steps.begin_s) // 2
        folder.write_steps(rank, 0, Steps(*(column[:half] for column in steps)))
        folder.write_steps(rank, 1, Steps(*(column[half:] for column in steps)))
    return folder


def test_a_folder_is_read_as_it_was_recorded(tmp_path: Path) -> None:
    ranks = planted_steps(Loop(num_ranks=2, num_steps=50), 0)
    short = Steps(*(column[:41] for column in ranks[1]))
    run = Run.load(written(tmp_path, [ranks[0], short]).path)
    assert (run.num_ranks, run.num_steps, len(run.warm_up[0].begin_s)) == (2, 38, 3)
    for name in Steps._fields:
        np.testing.assert_array_equal(getattr(run.steps[0], name), getattr(ranks[0], name)[3:41])
    assert run.facts[1]["sampler"] == "DistributedSampler"
    assert str(run).startswith("train.py: 2 ranks, 38 steps of ")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda place: (place / "run.json").unlink(), "holds no run"),
        (lambda place: (place / "run.json").write_text("{"), "is not a JSON file"),
        (lambda place: (place / "ranks/00001/steps-00000.npz").write_bytes(b"PK"), "steps-00000"),
        (lambda place: (place / "ranks/00001").rename(place / "gone"), "bring the folders"),
        (lambda place: (place / "ranks/00001/facts.json").write_text("[]"), "JSON object"),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path: Path, break_it: object, message: str) -> None:
    ranks = planted_steps(Loop(num_ranks=2, num_steps=20), 0)
    break_it(written(tmp_path, ranks).path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as caught:
        Run.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_without_steps_is_one_line(tmp_path: Path) -> None:
    ranks = [Steps(*(column[:0] for column in planted_steps(Loop(), 0)[0]))]
    with pytest.raises(ValueError, match=r"optimizer\.step"):
        Run.load(written(tmp_path, ranks).path)


@pytest.mark.parametrize(
    ("column", "value"), [("data_s", np.nan), ("forward_s", -1.0), ("collective_s", np.inf)]
)
def test_a_time_that_cannot_be_names_its_rank(column: str, value: float) -> None:
    ranks = planted_steps(Loop(num_ranks=2, num_steps=20), 0)
    getattr(ranks[1], column)[7] = value
    with pytest.raises(ValueError, match=f"rank 1: {column} must be finite .* step 7"):
        Run.of(ranks)


@pytest.mark.parametrize("value", ["many", -1, float("nan"), [2]])
def test_a_fact_that_cannot_be_names_its_rank(value: object) -> None:
    ranks = planted_steps(Loop(num_ranks=2, num_steps=20), 0)
    with pytest.raises(ValueError, match="rank 1: the fact num_workers must be a number"):
        Run.of(ranks, facts=[{}, {"num_workers": value}])


def test_spans_follow_each_other_and_all_reduces_end_together() -> None:
    run = planted_run(Loop(num_ranks=3, num_steps=30, length_spread=0.4), 0)
    timeline = run.timeline(first=5, num=10)
    assert (timeline.source, np.unique(timeline.step).tolist()) == ("measured", [*range(5, 15)])
    wire = timeline.select(timeline.kind == Kind.COLLECTIVE)
    ends_s = wire.end_s.reshape(3, 10)
    np.testing.assert_allclose(ends_s, ends_s[:1] + np.zeros((3, 1)), atol=1e-4)
    shares = run.timeline().summary()
    assert shares.waiting_s.sum() / shares.makespan_s / 3 == pytest.approx(
        run.grid().shares()["waiting"], abs=0.01
    )


def test_scalars_are_flat_floats_and_leave_out_what_is_unknown() -> None:
    run = planted_run(Loop(num_ranks=2, num_steps=60, data_s=0.03), 0)
    scalars = run.scalars()
    assert all(type(value) is float for value in scalars.values())
    assert scalars["cause/loader"] == pytest.approx(run.verdict().causes[0].share)
    assert scalars["examples_per_s"] == pytest.approx(2 * 16 / run.step_s)
    blind = planted_run(replace(Loop(num_ranks=2, num_steps=60), knows_sizes=False), 0).scalars()
    assert "elements_per_s" not in blind


def test_a_step_takes_what_its_clock_says() -> None:
    run = planted_run(Loop(num_ranks=2, num_steps=60), 0)
    begins_s = np.stack([steps.begin_s for steps in run.steps])
    np.testing.assert_allclose(np.diff(begins_s).mean(axis=0), run.step_times_s[:-1], rtol=1e-4)


def test_a_long_run_is_no_loop_over_steps() -> None:
    """A summary of many steps walks a thousand of them."""
    run = planted_run(Loop(num_ranks=2, num_steps=3000), 0)
    assert len(run.summary().step_times_s) == 1000
