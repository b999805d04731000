"""What a run says that changed itself, and what an earlier run says of buckets."""

from typing import Any

import pytest
from tests.run.planted import Loop, planted_run, planted_steps

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


@pytest.mark.parametrize(
    ("loop", "facts", "cap_mb"),
    [
        # Of one bucket of 25 MiB and a rest, most is sent after the pass.
        (Loop(wire_s=30e-3, element_s=24e-6, noise=0.0), {}, 1.0),
        (Loop(wire_s=0.2e-3, noise=0.0), {}, None),
        (Loop(wire_s=30e-3, noise=0.0), {"parallel": "FullyShardedDataParallel"}, None),
        (Loop(wire_s=30e-3, noise=0.0), {"gradient_bytes": None}, None),
    ],
)
def test_an_earlier_run_says_which_buckets_expose_less(
    loop: Loop, facts: dict[str, Any], cap_mb: float | None
) -> None:
    planted = planted_run(loop, 0)
    changed = [{**fact, **facts} for fact in planted.facts]
    run = Run.of(planted.steps, facts=changed)
    found = run.better_bucket_cap()
    assert (found and found.cap_mb) == cap_mb
    assert found is None or 1.05 <= found.gain < 2
