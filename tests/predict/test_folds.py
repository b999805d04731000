from pathlib import Path

import numpy as np
import pytest
from tests.predict.step_tables import mlp_rows, write_table

from paceline.predict.step._calibration import (
    _inner_folds,
    folds,
    held_out_predictions,
    units,
)
from paceline.predict.step._rows import StepRows
from paceline.predict.step._tables import read_step_tables
from paceline.predict.step._time import SHIFTS, fit_step_models


@pytest.fixture
def rows(tmp_path: Path) -> StepRows:
    write_table(tmp_path / "mlp.csv", mlp_rows())
    return read_step_tables(tmp_path)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_folds", [None, 2])
def test_a_unit_is_never_on_both_sides(rows: StepRows, shift: str, num_folds: int | None) -> None:
    fold, unit = folds(rows, shift, num_folds=num_folds), units(rows, shift)
    assert set(fold) == set(range(fold.max() + 1))
    for number in range(fold.max() + 1):
        assert not set(unit[fold == number]) & set(unit[fold != number])


def test_what_a_unit_is(rows: StepRows) -> None:
    count = {shift: len(np.unique(units(rows, shift))) for shift in SHIFTS}
    # Optimizers are repeats of a configuration.
    expected = {"known": 288, "configuration": 144, "dataset": 3, "model": 3, "device": 4}
    expected["device+model"] = 12
    assert count == expected


def test_folds_are_even_repeatable_and_follow_the_seed(rows: StepRows) -> None:
    sizes = np.bincount(folds(rows, "known"))
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(folds(rows, "known", seed=3), folds(rows, "known", seed=3))
    assert (folds(rows, "known", seed=3) != folds(rows, "known", seed=4)).any()


@pytest.mark.parametrize("shift", ["dataset", "model", "device"])
def test_times_of_a_held_out_unit_cannot_reach_its_own_prediction(
    rows: StepRows, shift: str
) -> None:
    """A planted leak: the times of one unit are replaced, and its predictions stay."""
    unit = np.unique(rows[shift])[0]
    mine = rows[shift] == unit
    planted = StepRows({**rows.columns, "compute_s": np.where(mine, 77.0, rows["compute_s"])})
    before = fit_step_models(rows.take(~mine), (shift,)).logs(rows.take(mine), shift)
    after = fit_step_models(planted.take(~mine), (shift,)).logs(planted.take(mine), shift)
    np.testing.assert_array_equal(before.total, after.total)


def test_what_is_new_on_two_counts_is_held_out_on_both(rows: StepRows) -> None:
    times_out = np.zeros(len(rows), dtype=int)
    for out, kept in _inner_folds(rows, "device+model", seed=1):
        times_out += out
        for name in ("device", "model"):
            assert not set(rows[name][out]) & set(rows[name][kept])
    assert (times_out == 1).all()


def test_inner_folds_hold_units_out_too(rows: StepRows) -> None:
    """Each row's inner prediction stays when the times of its own unit are replaced."""
    held_out = held_out_predictions(rows, "device")
    name = str(rows["device"][0])
    planted = StepRows(
        {**rows.columns, "compute_s": np.where(rows["device"] == name, 77.0, rows["compute_s"])}
    )
    other = held_out_predictions(planted, "device")
    mine = held_out.rows["device"] == name
    assert mine.any()
    np.testing.assert_array_equal(held_out.logs.compute[mine], other.logs.compute[mine])
    assert (held_out.logs.compute[~mine] != other.logs.compute[~mine]).any()
