import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.plan.jobs import ragged_job

from paceline.balance import BalanceConfig, Limits
from paceline.plan import Part, Schedule, simulate_schedule, tune
from paceline.testing import run_ranks

SCHEDULES = (
    Schedule(config=None),
    Schedule(config=None, bucket_cap_mb=None, compression="bf16", deferred=None),
    tune(ragged_job(num_workers=4, bytes_per_s=8e8), BalanceConfig(batch_size=16)),
    Schedule(
        config=BalanceConfig(batch_size=8, num_workers=2, limits=Limits(max_tokens=9.0)),
        is_balanced=True,
        blocks=((Part(1, 0, 8), Part(0, 4, 4)), (Part(0, 0, 4),)),
        deferred=("head",),
        step_s=0.1,
        plain_step_s=0.2,
    ),
)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_saved_is_what_is_loaded(schedule: Schedule, tmp_path: Path) -> None:
    schedule.save(tmp_path / "schedule.json")
    found = Schedule.load(tmp_path / "schedule.json")
    assert (found, found.digest(), str(found)) == (schedule, schedule.digest(), str(schedule))
    assert found.step_s == schedule.step_s
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.json"]


def test_the_digest_is_of_what_was_decided_and_of_all_of_it() -> None:
    one = SCHEDULES[-1]
    assert replace(one, step_s=1.0).digest() == one.digest()
    others = [
        replace(one, **change)
        for change in (
            {"config": replace(one.config, seed=1)},  # type: ignore[type-var]
            {"is_balanced": False},
            {"order": "pair-balance"},
            {"blocks": one.blocks[::-1]},
            {"bucket_cap_mb": None},
            {"compression": "bf16"},
            {"deferred": ()},
        )
    ]
    assert len({each.digest() for each in [one, *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a JSON object"),
        ('{"schema": 2}', "must have schema 1, got 2"),
        ('{"schema": 1}', "this is no schedule: KeyError"),
        ('{"schema": 1, "config": 3, "blocks": [], "deferred": []}', "this is no schedule"),
    ],
)
def test_a_damaged_file_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Schedule.load(tmp_path / "bad.json")


def test_blocks_of_another_job_are_refused() -> None:
    with pytest.raises(ValueError, match="gradients of layer 5, but the job has 2 layers"):
        simulate_schedule(ragged_job(num_layers=2), tune(ragged_job(bytes_per_s=4e8)))


def tune_alone(rank: int, folder: str) -> None:
    """Without a word between ranks; the interpreters hash strings differently."""
    schedule = tune(ragged_job(num_workers=4, bytes_per_s=8e8), BalanceConfig(batch_size=16))
    told = {"digest": schedule.digest(), "step_s": schedule.step_s}
    Path(folder, f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def test_every_rank_makes_the_same_schedule(tmp_path: Path) -> None:
    run_ranks(tune_alone, 2, str(tmp_path))
    own = {"digest": SCHEDULES[2].digest(), "step_s": SCHEDULES[2].step_s}
    assert [json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2)] == [own, own]
