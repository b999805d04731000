from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.cost import ExampleCost, LinearCost, QuadraticCost, checked_column, example_costs

MODELS: dict[str, tuple[ExampleCost, list[float]]] = {
    "linear": (LinearCost(2.0, fixed=3.0), [3.0, 5.0, 11.0]),
    "size": (LinearCost(), [0.0, 1.0, 4.0]),
    "quadratic": (QuadraticCost(2.0, 0.5, fixed=1.0), [1.0, 3.5, 17.0]),
    "function": (lambda sizes: sizes + 1, [1.0, 2.0, 5.0]),
    "list": (lambda sizes: [7, 8, 9], [7.0, 8.0, 9.0]),
}
coefficients = st.floats(0.0, 100.0).map(lambda value: round(value, 3))


@pytest.mark.parametrize("name", MODELS)
def test_costs_are_those_found_by_hand(name: str) -> None:
    model, expected = MODELS[name]
    costs = example_costs(model, [0, 1, 4])
    assert costs.tolist() == expected
    assert costs.dtype == np.float64


def test_no_examples_cost_nothing() -> None:
    assert example_costs(LinearCost(), []).shape == (0,)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([1.0, -2.0], r"sizes\[1\] is -2.0 \(1 of 2 are bad\)"),
        ([np.nan], r"sizes\[0\] is nan"),
        ([np.inf, 1.0, np.inf], r"2 of 3"),
        ([[1.0]], r"one-dimensional, got shape \(1, 1\)"),
        (3.0, r"got shape \(\)"),
    ],
)
def test_bad_sizes_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example_costs(LinearCost(), sizes)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda sizes: sizes - 2, r"the cost of sizes\[0\] = 1 is -1.0 \(1 of 2 are bad\)"),
        (lambda sizes: sizes / 0, r"sizes\[0\] = 1 is inf"),
        (lambda sizes: sizes * np.nan, r"is nan \(2 of 2"),
        (lambda sizes: sizes[:1], r"shape \(2,\) like the sizes, got \(1,\)"),
        (lambda sizes: 1.0, r"got \(\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_model_that_returns_nonsense_is_refused(cost: ExampleCost, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example_costs(cost, [1.0, 2.0])


def test_a_cost_too_large_for_a_float_is_refused_not_warned_about() -> None:
    with pytest.raises(ValueError, match="is inf"):
        example_costs(QuadraticCost(0.0, 1.0), [1e200])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearCost(-1.0), "linear must be finite and non-negative, got -1.0"),
        (lambda: LinearCost(1.0, fixed=np.nan), "fixed .* got nan"),
        (lambda: QuadraticCost(1.0, np.inf), "quadratic .* got inf"),
        (lambda: QuadraticCost(-2.0, 1.0), "linear .* got -2.0"),
        (lambda: QuadraticCost(1.0, 1.0, fixed=-0.5), "fixed .* got -0.5"),
    ],
)
def test_a_model_below_zero_is_refused(make: Callable[[], ExampleCost], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@given(linear=coefficients, fixed=coefficients)
def test_a_linear_fit_finds_what_made_the_costs(linear: float, fixed: float) -> None:
    sizes = np.array([1.0, 2.0, 5.0, 9.0])
    fitted = LinearCost.fit(sizes, LinearCost(linear, fixed)(sizes))
    np.testing.assert_allclose([fitted.linear, fitted.fixed], [linear, fixed], atol=1e-9)


@given(linear=coefficients, quadratic=coefficients, fixed=coefficients)
def test_a_quadratic_fit_finds_what_made_the_costs(
    linear: float, quadratic: float, fixed: float
) -> None:
    sizes = np.array([1.0, 2.0, 5.0, 9.0, 20.0])
    fitted = QuadraticCost.fit(sizes, QuadraticCost(linear, quadratic, fixed)(sizes))
    found = [fitted.linear, fitted.quadratic, fitted.fixed]
    np.testing.assert_allclose(found, [linear, quadratic, fixed], atol=1e-7)


def test_a_quadratic_fit_holds_for_long_sequences() -> None:
    truth = QuadraticCost(6144.0, 1.0)
    sizes = np.array([128.0, 4096.0, 65536.0, 131072.0])
    assert QuadraticCost.fit(sizes, truth(sizes))(sizes) == pytest.approx(truth(sizes))


def test_a_fit_to_falling_costs_is_flat_not_negative() -> None:
    fitted = LinearCost.fit([1, 2, 3], [6.0, 4.0, 2.0])
    assert (fitted.linear, fitted.fixed) == (0.0, pytest.approx(4.0))


@pytest.mark.parametrize(
    ("sizes", "costs"),
    [([5, 5, 5], [1, 2, 3]), ([1, 2], [1.0]), ([1, -2], [1, 1]), ([1, 2], [1, np.nan])],
)
def test_a_fit_to_bad_measurements_is_refused(sizes: list[float], costs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must|need"):
        LinearCost.fit(sizes, costs)


def test_a_checked_column_is_float_and_called_by_its_name() -> None:
    assert checked_column("tokens", [1, 2]).dtype == np.float64
    with pytest.raises(ValueError, match=r"tokens\[0\] is -1"):
        checked_column("tokens", [-1])
