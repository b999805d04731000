"""What a run says that changed itself, and what an earlier run says of buckets."""

from typing import Any

import pytest
from tests.run.planted import Loop, planted_steps

from paceline.run import Run, checks_of

KEPT = {"changed": "batches divided", "predicted": 1.5, "gain": 1.4}
COUNTS = {"num_applied": 80, "num_plain": 21}
PROBED = {
    "again": 0.0, "divided": 2e-7, "num_probes": 4, "num_batches": 9, "is_partition": True,
    "is_same_later": True, "correlation": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(
    ("applied", "said"),
    [
        (None, ""),
        ({"outcome": "refused", "why_not": "one rank alone"}, "applied: nothing: one rank alone"),
        ({**KEPT, **COUNTS, "outcome": "kept"}, "measured gain 1.40 x over 80 steps against 21"),
        ({**KEPT, **COUNTS, "outcome": "returned"}, "so the plain way returned"),
        ({**KEPT, "outcome": "trial"}, "too few steps to measure a gain"),
        ({"why_not": "none", "bucket_cap_mb": 4.0}, "bucket_cap_mb=4"),
    ],
)
def test_the_verdict_says_what_was_applied(applied: Any, said: str) -> None:
    run = Run.of(planted_steps(Loop(), 0), info={"applied": applied})
    verdict = run.verdict()
    assert said in " ".join(str(verdict).split())
    assert bool(said) == bool(verdict.applied)
    assert verdict.to_dict()["applied"] == verdict.applied


def test_a_damaged_file_is_one_error() -> None:
    with pytest.raises(ValueError, match="applied must be an object, got 'x'"):
        Run.of(planted_steps(Loop(), 0), info={"applied": "x"}).verdict()


@pytest.mark.parametrize(
    ("found", "failed"),
    [
        ({}, []),
        ({"divided": 1e-3}, ["gradients"]),
        ({"again": 0.1}, ["gradients"]),
        ({"is_partition": False}, ["partition"]),
        ({"is_same_later": False}, ["resume"]),
        ({"correlation": 1.0}, []),
    ],
)
def test_checks_fail_by_name(found: dict[str, Any], failed: list[str]) -> None:
    checks = checks_of({**PROBED, **found})
    assert [check.name for check in checks if check.passed is False] == failed
    assert ("not shuffled" in str(checks[-1])) == ("correlation" in found)
