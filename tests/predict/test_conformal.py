import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.predict import Estimate, conformal_offsets

FINITE = st.floats(-3, 3)


@pytest.mark.parametrize(
    ("median", "low", "high"),
    [(1.0, 2.0, 3.0), (4.0, 2.0, 3.0), (math.nan, 0.0, 1.0), (1.0, 0.0, math.inf)],
)
def test_an_estimate_out_of_order_or_not_finite_is_refused(
    median: float, low: float, high: float
) -> None:
    with pytest.raises(ValueError, match=r"must be|needs finite"):
        Estimate(median, low, high)


def test_scaling_keeps_the_interval_around_the_median() -> None:
    assert Estimate(2.0, 1.0, 4.0).scaled(2.5) == Estimate(5.0, 2.5, 10.0)
    with pytest.raises(ValueError, match="by must be"):
        Estimate(2.0, 1.0, 4.0).scaled(-1.0)


@given(st.lists(FINITE, min_size=1, max_size=60), st.floats(0.05, 0.95))
def test_the_interval_holds_zero_and_grows_with_coverage(
    residuals: list[float], coverage: float
) -> None:
    for groups in (None, [index % 3 for index in range(len(residuals))]):
        low, high = conformal_offsets(residuals, coverage, groups=groups)
        wider_low, wider_high = conformal_offsets(residuals, (1 + coverage) / 2, groups=groups)
        assert wider_low <= low <= 0 <= high <= wider_high


@pytest.mark.parametrize("num_rows", [20, 40, 99])
def test_a_new_exchangeable_row_is_covered_as_often_as_asked(num_rows: int) -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(2_000):
        rows = rng.gumbel(size=num_rows + 1)
        rows -= np.median(rows)
        low, high = conformal_offsets(rows[:-1])
        inside.append(low <= rows[-1] <= high)
    assert 0.88 <= np.mean(inside) <= 0.96


def test_rows_of_a_new_unit_are_covered_although_the_unit_moves_them_together() -> None:
    rng = np.random.default_rng(1)
    names = np.repeat(np.arange(12), 30)
    inside = []
    for _ in range(400):
        units = rng.normal(0, 0.3, 13)
        rows = units[names] + rng.normal(0, 0.1, names.size)
        _low, high = conformal_offsets(rows, groups=names)
        inside.append(np.mean(np.abs(units[-1] + rng.normal(0, 0.1, 30)) <= high))
    assert 0.83 <= np.mean(inside) <= 0.95


def test_too_few_units_for_a_quantile_take_the_worst_unit() -> None:
    rows = np.r_[np.full(30, 0.1), np.full(30, 0.2), np.linspace(0, 1, 30)]
    names = np.repeat(["a", "b", "c"], 30)
    _low, high = conformal_offsets(rows, groups=names)
    assert high == pytest.approx(0.9, abs=0.04)  # c's own quantile, not that of all rows
    many = np.tile(rows, 4), np.repeat([f"{name}{k}" for k in range(4) for name in "abc"], 30)
    assert conformal_offsets(many[0], groups=many[1])[1] < 0.85


def test_a_unit_with_many_rows_has_no_more_say_than_one_with_few() -> None:
    few = conformal_offsets([0.1, 0.1, 0.5, 0.5], groups=["a", "a", "b", "b"])
    many = conformal_offsets([0.1] * 100 + [0.5, 0.5], groups=["a"] * 100 + ["b"] * 2)
    assert few == many


@pytest.mark.parametrize(
    ("residuals", "coverage", "groups", "message"),
    [
        ([], 0.9, None, "at least one row"),
        ([[0.1]], 0.9, None, "shape"),
        ([math.nan], 0.9, None, "finite"),
        ([0.1], 90, None, "between 0 and 1"),
        ([0.1, 0.2], 0.9, ["a"], "one unit per residual"),
    ],
)
def test_bad_input_is_refused(
    residuals: list[float], coverage: float, groups: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        conformal_offsets(residuals, coverage, groups=groups)
