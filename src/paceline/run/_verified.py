"""What `paceline verify` found, as rows of a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Sums in another order differ by less; a model that is random differs from itself by more.
MOST_DIFFERENCE, MOST_NOISE = 1e-4, 1e-3
SHUFFLED = 0.2


class Check(NamedTuple):
    """One row.

    Attributes:
        name: What was checked.
        passed: None where it only informs.
        found: One sentence; numbers are measured.
    """

    name: str
    passed: bool | None
    found: str

    def __str__(self) -> str:
        word = {True: "ok", False: "FAILED", None: "-"}[self.passed]
        return f"{self.name:<10} {word:<7} {self.found}"


def checks_of(applied: Mapping[str, Any]) -> list[Check]:
    """Return the rows.

    Args:
        applied: What `run.json` of the run holds under that name.

    Examples:
        >>> for row in checks_of({"why_not": "one rank alone"}):
        ...     print(row)
        gradients  FAILED  nothing can be compared: one rank alone
    """
    if "again" not in applied:
        why = applied.get("why_not") or "the script ended before all was compared"
        return [Check("gradients", False, f"nothing can be compared: {why}")]
    return [_gradients(applied), *_order(applied)]


def _gradients(applied: Mapping[str, Any]) -> Check:
    again, other = applied["again"], applied["divided"]
    if again > MOST_NOISE:
        found = f"plain ones differ by {again:.1e} from themselves: turn off dropout to compare"
        return Check("gradients", False, found)
    limit = max(MOST_DIFFERENCE, 4 * again)
    found = (
        f"of {applied['num_probes']} divided steps differ from plain ones by at most {other:.1e} "
        f"of their norm (limit {limit:.0e}; plain ones from themselves {again:.1e})"
    )
    return Check("gradients", other <= limit, found)


def _order(applied: Mapping[str, Any]) -> list[Check]:
    num, correlation = applied["num_batches"], applied["correlation"]
    shuffled = "shuffled" if abs(correlation) < SHUFFLED else "not shuffled"
    return [
        Check(
            "partition",
            applied["is_partition"],
            f"each of {num} global batches keeps its examples, each computed once",
        ),
        Check(
            "resume",
            applied["is_same_later"],
            "from the middle, the rest is divided in the same way",
        ),
        Check(
            "shuffle",
            None,
            f"the script's own: {shuffled} (place and index correlate by {correlation:.2f})",
        ),
    ]
