from pathlib import Path

import numpy as np
import pytest
from tests.predict.step_tables import DATASETS, mlp_rows, write_table

from paceline.predict.step import _time
from paceline.predict.step._boost import BoostConfig
from paceline.predict.step._calibration import (
    ANY_FAMILY,
    HeldOut,
    Offsets,
    calibrate,
    chosen_trust,
    held_out_predictions,
    offsets_of,
    step_estimates,
)
from paceline.predict.step._loader import RATE_GRID, LoaderRates, fit_loader_rates, posterior_rate
from paceline.predict.step._rows import StepRows
from paceline.predict.step._tables import read_step_tables
from paceline.predict.step._time import fit_step_models


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> StepRows:
    folder: Path = tmp_path_factory.mktemp("tables")
    write_table(folder / "mlp.csv", mlp_rows())
    return read_step_tables(folder)


@pytest.fixture(scope="module")
def held_out(rows: StepRows) -> HeldOut:
    return held_out_predictions(rows, "model")


def mape(measured: np.ndarray, log_seconds: np.ndarray) -> float:
    return float(100 * np.abs(np.exp(log_seconds) / measured - 1).mean())


def test_loader_rates_are_found_where_the_device_waited(rows: StepRows) -> None:
    rates = fit_loader_rates(rows).seconds
    for device in np.unique(rows["device"]):
        found = rates[f"{device}|MLP|TinyImageNet"]
        assert found == pytest.approx(DATASETS["TinyImageNet"][2] / 1e3, rel=0.12)
        assert rates[f"{device}|MLP|CIFAR100"] <= DATASETS["CIFAR100"][2] / 1e3 * 1.2


def test_an_unknown_dataset_is_no_bottleneck_and_may_be_dear(rows: StepRows) -> None:
    rates = fit_loader_rates(rows.take(rows["dataset"] != "TinyImageNet"))
    new = rows.take(rows["dataset"] == "TinyImageNet")
    assert not rates.is_known(new).any()
    np.testing.assert_allclose(rates.feed_s(new), RATE_GRID[0] * new["batch_size"])
    assert (rates.slow_feed_s(new) > rates.feed_s(new)).all()


def test_a_dear_dataset_is_dearer_where_more_loaders_were_slow(rows: StepRows) -> None:
    new = rows.take([0])
    slow = {f"host|MLP|{number}": 1e-4 * 2**number for number in range(4)}
    kept_up = {f"host|CNN|{number}": float(RATE_GRID[0]) for number in range(4)}
    always, half = LoaderRates(slow), LoaderRates(slow | kept_up)
    # Student's t with three degrees of freedom: 2.353 at 95 %, 1.638 at the 90 % that is left.
    for rates, student in ((always, 2.353), (half, 1.638)):
        log = np.log(list(slow.values()))
        bound = np.exp(log.mean() + student * log.std(ddof=1) * np.sqrt(1 + 1 / 4))
        found = rates.slow_feed_s(new) / new["batch_size"]
        np.testing.assert_allclose(found, min(bound, RATE_GRID[-1]), rtol=2e-3)


def test_an_unknown_host_takes_the_rate_of_the_median_host(rows: StepRows) -> None:
    rates = LoaderRates({"a|MLP|STL10": 1e-4, "b|MLP|STL10": 3e-4, "c|MLP|STL10": 9e-3})
    one = rows.take(rows["dataset"] == "STL10").take([0])
    assert rates.of_other_hosts(one)[0] == pytest.approx(3e-4 * one["batch_size"][0])
    assert rates.without("c").known("MLP|STL10") == [1e-4, 3e-4]


def test_probes_move_the_rate_from_the_other_hosts_to_the_own_one(rows: StepRows) -> None:
    waits = (rows["dataset"] == "TinyImageNet") & (rows["batch_size"] == 128)
    probes, others = rows.take(waits), [1e-4, 2e-4, 4e-4]
    prior = posterior_rate(probes.take([]), others)
    assert 1e-4 < prior < 4e-4
    after = [posterior_rate(probes.take(np.arange(num)), others) for num in (1, 4, 20)]
    errors = [abs(np.log(rate / 1.5e-3)) for rate in (prior, *after)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.12


@pytest.mark.parametrize(
    ("shift", "limit"), [("dataset", 8), ("model", 20), ("device", 40), ("configuration", 8)]
)
def test_compute_of_a_held_out_unit_is_predicted(
    rows: StepRows, shift: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_time, "TOTAL", BoostConfig(num_trees=20))
    unit = rows["batch_size"].astype(str) if shift == "configuration" else rows[shift]
    new = unit == np.unique(unit)[-1]
    if shift == "configuration":
        new &= (rows["model"] == "mixer") & (rows["device"] == "T4")
    models = fit_step_models(rows.take(~new), (shift,))
    test = rows.take(new)
    assert mape(test["compute_s"], models.logs(test, shift).compute) < limit


def test_a_step_waits_for_the_slower_of_device_and_host(rows: StepRows) -> None:
    logs = fit_step_models(rows, ("model",)).logs(rows, "model")
    np.testing.assert_array_equal(logs.total, np.maximum(logs.compute, logs.feed))
    assert mape(rows.total_s, logs.total) < 8


def test_trust_moves_from_the_roofline_to_the_trees(rows: StepRows, held_out: HeldOut) -> None:
    logs = held_out.logs
    np.testing.assert_allclose(logs.trusting(0.0).compute, logs.physics)
    np.testing.assert_allclose(logs.trusting(1.0).compute, logs.compute)
    trust = chosen_trust(held_out, "model")
    assert trust is not None
    assert 0 <= trust <= 1
    assert chosen_trust(held_out, "known") is None


def test_a_part_that_was_not_fitted_and_an_unknown_shift_are_refused(rows: StepRows) -> None:
    models = fit_step_models(rows.take(np.arange(60)), ("device",))
    with pytest.raises(ValueError, match="'model' was not fitted"):
        models.logs(rows, "model")
    with pytest.raises(ValueError, match="shift must be one of"):
        models.logs(rows, "weather")


def test_intervals_hold_held_out_rows_and_their_guesses(held_out: HeldOut) -> None:
    table = calibrate(held_out, "model")
    estimates = step_estimates(held_out.logs, held_out.rows["family"], table)
    for found, measured in (
        ([e.compute for e in estimates], held_out.rows["compute_s"]),
        ([e.step for e in estimates], held_out.rows.total_s),
    ):
        inside = [e.low <= y <= e.high for e, y in zip(found, measured, strict=True)]
        assert 0.88 <= np.mean(inside) <= 1
        assert all(e.low <= e.median <= e.high for e in found)


def test_a_family_without_rows_takes_the_offsets_of_all(held_out: HeldOut) -> None:
    table = calibrate(held_out, "model")
    some = held_out.take(np.arange(3))
    first = step_estimates(some.logs, np.array(["RNN"] * 3), table)[0].compute
    assert first == table["compute"][ANY_FAMILY].estimate(float(some.logs.compute[0]))


def test_the_guess_under_a_wide_spread_has_the_least_relative_error() -> None:
    rng = np.random.default_rng(0)
    residuals = rng.normal(0, 0.5, 20_000)
    point = offsets_of(residuals, None).point
    # Of a log-normal with spread s the best guess is at exp(-s * s).
    assert point == pytest.approx(-0.25, abs=0.02)
    measured = np.exp(residuals)
    loss = [np.abs(np.exp(guess) / measured - 1).mean() for guess in (point, 0.0, -0.5)]
    assert loss[0] == min(loss)


def test_the_bias_of_a_few_units_is_not_carried_over() -> None:
    tight = 0.3 + np.random.default_rng(0).normal(0, 0.01, 500)
    assert offsets_of(tight, None).point == pytest.approx(0.0, abs=0.01)


def test_the_guess_of_a_step_whose_loader_is_unknown_is_not_lowered() -> None:
    assert Offsets(-0.2, -0.5, 0.5).without_loader() == Offsets(0.0, -0.5, 0.5)
    assert Offsets(-0.2, -0.5, 0.5).estimate(0.0).median == pytest.approx(np.exp(-0.2))
