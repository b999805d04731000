from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.cost import fit_nonnegative

Problem = tuple[NDArray[np.float64], NDArray[np.float64]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    num_features = draw(st.integers(1, 4))
    row = st.tuples(*[st.integers(-5, 10)] * num_features)
    rows = draw(st.lists(row, min_size=num_features, max_size=8, unique=True))
    targets = draw(st.lists(st.integers(-20, 20), min_size=len(rows), max_size=len(rows)))
    return np.array(rows, dtype=np.float64), np.array(targets, dtype=np.float64)


def squared_error(problem: Problem, x: NDArray[np.float64]) -> float:
    features, targets = problem
    residual = features @ x - targets
    return float(residual @ residual)


def descend(problem: Problem) -> NDArray[np.float64]:
    """Minimise one coefficient after the other, each cut off at zero."""
    features, targets = problem
    x = np.zeros(features.shape[1])
    for _ in range(300):
        for index, column in enumerate(features.T):
            if column.any():
                rest = targets - features @ x + column * x[index]
                x[index] = max(0.0, column @ rest / (column @ column))
    return x


@pytest.mark.parametrize(
    ("features", "targets", "expected"),
    [
        ([[1, 0], [0, 1]], [3, 4], [3, 4]),
        ([[1, 0], [0, 1]], [3, -4], [3, 0]),
        ([[1], [2]], [-1, -1], [0]),
        ([[1, 1], [2, 1], [3, 1]], [5, 7, 9], [2, 3]),
        ([[1, 1], [2, 1], [3, 1]], [1, 4, 7], [30 / 14, 0]),
        ([[1], [1], [2]], [0, 2, 2], [1]),
        ([[0, 1], [0, 2]], [1, 2], [0, 1]),
        ([[1e9, 1], [2e9, 1]], [2, 3], [1e-9, 1]),
        ([[1, 1], [2, 1]], [0, 0], [0, 0]),
    ],
)
def test_known_problems_have_their_known_answers(
    features: list[list[float]], targets: list[float], expected: list[float]
) -> None:
    np.testing.assert_allclose(fit_nonnegative(features, targets), expected, atol=1e-15, rtol=1e-9)


@given(problem=problems())
def test_no_small_move_makes_the_fit_better(problem: Problem) -> None:
    features, targets = problem
    x = fit_nonnegative(*problem)
    gradient = features.T @ (features @ x - targets)
    tolerance = 1e-7 * (1 + np.abs(features).sum() * np.abs(targets).max(initial=0))
    assert (x >= 0).all()
    assert (gradient >= -tolerance).all()
    assert (np.abs(gradient[x > 0]) <= tolerance).all()


@given(problem=problems())
def test_the_fit_is_as_good_as_that_of_coordinate_descent(problem: Problem) -> None:
    found = squared_error(problem, fit_nonnegative(*problem))
    assert found <= squared_error(problem, descend(problem)) + 1e-9


@given(problem=problems(), factor=st.sampled_from([1e-9, 1e-3, 1e9]))
def test_the_unit_of_the_targets_does_not_matter(problem: Problem, factor: float) -> None:
    features, targets = problem
    scaled = fit_nonnegative(features, targets * factor)
    expected = squared_error(problem, fit_nonnegative(features, targets))
    assert squared_error(problem, scaled / factor) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("constant", [0.1, 0.3, 1e-3, 7.0, 1 / 3])
def test_a_feature_that_explains_nothing_stays_out(constant: float) -> None:
    features = np.stack([np.ones(5), np.arange(5.0), np.arange(5.0) ** 2], axis=1)
    x = fit_nonnegative(features, np.full(5, constant))
    assert x.tolist() == [pytest.approx(constant), 0.0, 0.0]


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], r"got \(2,\) and \(2,\)"),
        ([[1.0], [2.0]], [1.0], r"got \(2, 1\) and \(1,\)"),
        ([[1.0], [2.0]], [[1.0], [2.0]], "must have shape"),
        (np.ones((9, 9)), np.ones(9), "at most 8"),
        ([[np.nan]], [1.0], "must be finite"),
        ([[1.0]], [np.inf], "must be finite"),
        ([[1.0, 1.0], [1.0, 1.0]], [1.0, 2.0], "at least 2 different rows, got 1"),
        (np.zeros((0, 2)), [], "at least 2 different rows, got 0"),
    ],
)
def test_bad_problems_are_refused(features: Any, targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_nonnegative(features, targets)
