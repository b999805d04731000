"""What a run says: what costs time, why, what to change next, and what not to bother with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.run.causes import CAUSES, Cause, Evidence, Grid

# Below this many steps after warm-up, nothing stands clear of noise.
LEAST_STEPS = 10
WORTH_SAYING = 0.05
SAVING = {
    "imbalance": "even batches",
    "padding": "less padding",
    "loader": "loading ahead",
    "slow-rank": "every rank at the pace of the others",
    "communication": "less exposed communication",
    "small-batch": "larger batches",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What costs time in a run. `str()` is what a person reads in a terminal.

    Shares are measured, of rank time, without warm-up. Gains are simulated from the recorded
    steps: each is what one change alone saves of the step time, so they do not add up.

    Attributes:
        headline: What was looked at.
        causes: What is worth a change, largest share first; empty for a healthy run.
        not_worth: What would not help here, one line each.
        notes: What was seen and has no cause among the six.
    """

    headline: str
    causes: tuple[Cause, ...]
    not_worth: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def what(self) -> str:
        """What costs most, one sentence."""
        return self.causes[0].what if self.causes else "nothing here is worth a change"

    @property
    def why(self) -> str:
        """What that comes from; empty for a healthy run."""
        return self.causes[0].why if self.causes else ""

    @property
    def next(self) -> str:
        """The lines to change first; empty for a healthy run."""
        return self.causes[0].next if self.causes else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, safe to save as JSON."""
        return {
            "what": self.what,
            "why": self.why,
            "next": self.next,
            "causes": [cause.to_dict() for cause in self.causes],
            "not_worth": list(self.not_worth),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rows = [self.headline, f"what   {self.what}"]
        if self.causes:
            rows += [f"why    {self.why}", f"next   saves {self.causes[0].gain}"]
            rows += [f"         {line}" for line in self.next.splitlines()]
        rows += [f"also   {one.cause}: {one.what}; saves {one.gain}" for one in self.causes[1:]]
        rows += [f"note   {line}" for line in self.notes]
        return "\n".join([*rows, *(f"not    {line}" for line in self.not_worth)])


def verdict_of(grid: Grid, facts: Sequence[Mapping[str, Any]], headline: str) -> Verdict:
    """Tell what costs time in `grid`."""
    if grid.num_steps < LEAST_STEPS:
        note = f"{grid.num_steps} steps after warm-up say nothing yet; record {LEAST_STEPS} or more"
        return Verdict(headline=headline, causes=(), not_worth=(), notes=(note,))
    evidence = Evidence.of(grid, facts)
    found = [tell(evidence) for tell in CAUSES]
    causes = sorted((one for one in found if one.is_worth_it), key=lambda one: -one.share)
    rest = [one for one in found if not one.is_worth_it]
    return Verdict(
        headline=headline,
        causes=tuple(causes),
        not_worth=tuple(map(_not_worth, rest)),
        notes=tuple(_notes(evidence)),
    )


def _not_worth(cause: Cause) -> str:
    return (
        f"{cause.cause}: {cause.share:.1%} of rank time; {SAVING[cause.cause]} would save "
        f"{cause.gain_low:.1%} to {cause.gain_high:.1%} (simulated)"
    )


def _notes(evidence: Evidence) -> list[str]:
    """Say what is seen and is none of the six."""
    notes = []
    noise, shares = evidence.waits["noise"], evidence.shares
    if noise >= WORTH_SAYING:
        notes.append(
            f"{noise:.0%} of rank time is waiting for a rank that was late by chance: its passes "
            "varied without a cause that was recorded"
        )
    outside = shares["between"] + shares["after"]
    if outside >= WORTH_SAYING:
        notes.append(
            f"{outside:.0%} of rank time is outside of passes, loader and update: validation, "
            "logging, moving batches"
        )
    return notes
