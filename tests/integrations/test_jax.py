"""JAX and Grain hold the contract."""

from typing import Any

import jax
import numpy as np
import pytest
from tests.integrations.contract import FrameworkContract
from tests.integrations.data import SIZES, config_of
from tests.integrations.jax_run import Source

from paceline.errors import PlanMismatchError
from paceline.integrations._planned_run import PlannedRun
from paceline.integrations.jax import BalancedLoader, rung

pytestmark = pytest.mark.filterwarnings("default")


class TestJax(FrameworkContract):
    program = "jax_run.py"
    has_no_launcher = True


def test_shapes_are_few_and_what_fills_them_counts_nothing() -> None:
    loader = BalancedLoader(Source(), SIZES, config_of(4))
    batches = [batch for _ in range(6) for batch in loader]
    shapes = {batch["x"].shape for batch in batches}
    assert all(shape[:2] == (rung(shape[0]), rung(shape[1])) for shape in shapes)
    assert len(shapes) < len(batches) / 3
    for batch in batches:
        counts = batch["weight"] > 0
        assert len(set(batch["example"][counts].tolist())) == counts.sum()
    weights = np.array([batch["weight"].sum() for batch in batches]).reshape(-1, 4).sum(axis=1)
    assert np.allclose(weights, 1)


def test_what_was_fetched_ahead_is_not_delivered() -> None:
    loader, other = (BalancedLoader(Source(), SIZES, config_of(2)) for _ in range(2))
    batches = iter(loader)
    found = [next(batches)["example"].tolist() for _ in range(5)]
    other.set_state(loader.get_state())
    assert next(iter(other))["example"].tolist() == found[4]


@pytest.mark.parametrize("odd", [[], [1]])
def test_processes_that_plan_differently_all_hear_of_it(odd: list[int]) -> None:
    run = PlannedRun(SIZES, config_of(1), rank=0, num_processes=3)

    def gather(own: Any) -> Any:
        rows = np.stack([own] * 3)
        rows[odd] += 1
        return rows

    if odd:
        with pytest.raises(PlanMismatchError, match=r"processes \[1\] plan another epoch"):
            run.check_digests(gather)
    else:
        run.check_digests(gather)
    assert jax.process_count() == 1
