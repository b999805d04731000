import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.plan.jobs import ragged_job
from tests.run.planted import Loop, planted_run

import paceline
from paceline.balance import BalanceConfig
from paceline.cost import Job
from paceline.plan import BALANCE_LINES, Advice, advise
from paceline.run import Run
from paceline.testing import run_ranks
from paceline.torch import MeasuredCost, measure_slowdown

PARTS = {"balance", "wider window", "bucket size", "scheduled blocks", "16 bits"}


def advice_for(job: Job, **options: bool) -> Advice:
    return advise(job, BalanceConfig(batch_size=16, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("advice", "first", "worth"),
    [
        (advice_for(ragged_job(spread=0.0, bytes_per_s=1e12)), None, set()),
        (advice_for(ragged_job(bytes_per_s=1e12)), "balance", {"balance"}),
        (advice_for(ragged_job(spread=0.0, bytes_per_s=4e8)), "16 bits", {"scheduled blocks"}),
        (advice_for(ragged_job(num_workers=4, bytes_per_s=8e8)), None, {"balance", "16 bits"}),
        (advise(ragged_job(bytes_per_s=4e8)), "16 bits", {"scheduled blocks"}),
        (advise(ragged_job(num_workers=1)), None, set()),
    ],
    ids=["healthy", "ragged", "slow link", "both", "no sizes", "one worker"],
)
def test_each_part_is_named_where_it_helps(
    advice: Advice, first: str | None, worth: set[str]
) -> None:
    said = [one.part for one in advice.suggestions]
    assert worth <= set(said)
    assert first in (None, *said[:1])
    assert bool(said) == bool(worth)
    gains = [one.gain for one in advice.suggestions]
    assert gains == sorted(gains, reverse=True)
    for one in advice.suggestions:
        assert one.gain_low <= one.gain <= one.gain_high
        assert one.lines
    rest = {line.split(":")[0] for line in advice.not_worth}
    assert rest >= PARTS - set(said)
    assert rest.isdisjoint(said)
    assert all("\n" not in line for line in advice.not_worth)
    assert json.loads(json.dumps(advice.to_dict()))["source"] == "simulated"


@pytest.mark.parametrize(
    ("rate", "part", "changed"),
    [(1e12, "wider window", "order of data"), (4e8, "16 bits", "numerics")],
)
def test_what_a_part_changes_is_said_and_never_taken_unasked(
    rate: float, part: str, changed: str
) -> None:
    advice = advise(ragged_job(bytes_per_s=rate, spread=1.5), BalanceConfig(batch_size=4))
    changes = {one.part: one.changes for one in advice.suggestions}
    assert changes[part] == changed
    assert {changes.get("balance", "nothing"), advice.schedule.changes} == {"nothing"}
    assert f"{part}: saves" in str(advice)
    assert f"changes {changed}" in str(advice)


def test_verdict_and_advice_say_the_same_lines() -> None:
    run: Run = planted_run(Loop(length_spread=0.5), 0)
    lines = BALANCE_LINES.format(batch_size=32)
    assert run.verdict().next == lines
    balance = advise(ragged_job(bytes_per_s=1e12), BalanceConfig(batch_size=32)).suggestions[0]
    assert balance.lines == (lines,)


def advise_live(rank: int, folder: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Linear(64, 1))
    before = [one.clone() for one in model.parameters()]
    sizes = np.random.default_rng(0).lognormal(5.0, 1.5, 256).round() + 1
    batch = torch.ones(4, 16)
    found = paceline.advise(model, batch, sizes=sizes, num_steps=5)
    slowdown = measure_slowdown(model, batch)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(one.grad is None for one in model.parameters())
    cost = MeasuredCost(paceline.QuadraticCost(1e-6, 0.0), 1e-3)
    config = BalanceConfig(batch_size=8, padded=True)
    priced = paceline.advise(model, batch, sizes=sizes, config=config, cost=cost, num_steps=5)
    told = [found.to_dict(), priced.to_dict(), slowdown]
    Path(folder, f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def test_a_live_model_gets_the_same_advice_on_every_rank(tmp_path: Path) -> None:
    run_ranks(advise_live, 2, str(tmp_path))
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    found, priced, slowdown = told[0]
    assert 0 < slowdown[0] <= slowdown[1]
    assert found["schedule"]["config"]["batch_size"] == 8
    assert "2 layers" in found["job"]
    # A micro-batch takes 1 ms, and the mean example 0.25 ms: what the costs say, not the layers.
    assert priced["schedule"]["plain_step_s"] > 1e-3


def test_a_batch_without_tensors_is_one_line() -> None:
    with pytest.raises(ValueError, match="batch must hold a tensor whose first axis counts"):
        paceline.advise(torch.nn.Linear(1, 1), {"x": 1}, sizes=[1.0])


def test_updates_count_in_what_a_gain_is_a_share_of() -> None:
    job = ragged_job(bytes_per_s=1e12)
    slow = replace(job, workers=tuple(replace(one, overhead_s=1.0) for one in job.workers))
    assert advice_for(slow).suggestions == ()
