"""What a run says: what costs time, why, what to change next, and what not to bother with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from paceline.run.causes import CAUSES, Cause, Evidence, Grid

# Below this many steps after warm-up, nothing stands clear of noise.
LEAST_STEPS = 10
WORTH_SAYING, WORTH_A_NUMBER = 0.05, 0.005
WIDTH, INDENT = 88, 7
SAVING = {
    "imbalance": "even batches",
    "padding": "less padding",
    "loader": "loading ahead",
    "slow-rank": "equal ranks",
    "communication": "hiding it",
    "small-batch": "larger ones",
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
        is_known: Whether there were steps enough to tell.
        applied: What `--apply` changed and gained, or why it did not; empty without it.
    """

    headline: str
    causes: tuple[Cause, ...]
    not_worth: tuple[str, ...]
    notes: tuple[str, ...]
    is_known: bool = True
    applied: str = ""

    @property
    def what(self) -> str:
        """What costs most, one sentence."""
        if self.causes:
            return self.causes[0].what
        return "nothing here is worth a change" if self.is_known else "too few steps to tell"

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
            "applied": self.applied,
        }

    def __str__(self) -> str:
        rows = [_wrapped("", self.headline), _wrapped("what", self.what)]
        if self.causes:
            rows += [_wrapped("why", self.why), _wrapped("next", f"saves {self.causes[0].gain}")]
            rows += [f"{'':<{INDENT}}  {line}" for line in self.next.splitlines()]
        also = (f"{one.cause}: {one.what}; saves {one.gain}" for one in self.causes[1:])
        rows += [_wrapped("also", line) for line in also]
        rows += [_wrapped("note", line) for line in self.notes]
        rows += [_wrapped("not", line) for line in self.not_worth]
        return "\n".join(
            [*rows, *([_wrapped("", f"applied: {self.applied}")] * bool(self.applied))]
        )


def _wrapped(word: str, text: str) -> str:
    indent = " " * INDENT if word else ""
    return fill(
        text,
        WIDTH,
        initial_indent=f"{word:<{len(indent)}}",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def verdict_of(grid: Grid, facts: Sequence[Mapping[str, Any]], headline: str) -> Verdict:
    """Tell what costs time in `grid`."""
    if grid.num_steps < LEAST_STEPS:
        note = f"{grid.num_steps} steps after warm-up say nothing yet; record {LEAST_STEPS} or more"
        return Verdict(headline=headline, causes=(), not_worth=(), notes=(note,), is_known=False)
    evidence = Evidence.of(grid, facts)
    found = [tell(evidence) for tell in CAUSES]
    worth = [one for one in found if one.is_worth_it]
    folded = [one for one in worth if _goes_with(one, worth, grid)]
    causes = sorted((one for one in worth if one not in folded), key=lambda one: -one.share)
    rest = [_not_worth(one) for one in found if one not in worth]
    return Verdict(
        headline=headline,
        causes=tuple(causes),
        not_worth=(*map(_mended_by_larger, folded), *rest),
        notes=tuple(_notes(evidence, {one.cause for one in causes})),
    )


def _mended_by_larger(cause: Cause) -> str:
    return f"{cause.cause}: {cause.share:.1%} of rank time, which larger batches mend as well"


def _goes_with(cause: Cause, worth: Sequence[Cause], grid: Grid) -> bool:
    """Tell a wire or a loader that small batches alone make look slow: larger ones mend both.

    A loader takes longer for larger batches, so of its time only what is less than the fixed part
    goes with them. A wire does not.
    """
    fixed = {one.cause: one.share for one in worth}.get("small-batch", 0.0)
    shares = grid.shares()
    busy = sum(shares[name] for name in ("forward", "loss", "backward", "optimizer"))
    least = {"communication": busy if fixed else 0.0, "loader": fixed}.get(cause.cause, 0.0)
    return cause.share < least


def _not_worth(cause: Cause) -> str:
    seen = f"{cause.cause}: {cause.share:.1%} of rank time"
    if cause.gain_high < WORTH_A_NUMBER:
        return seen
    return (
        f"{seen}; {SAVING[cause.cause]} would save {cause.gain_low:.1%} to {cause.gain_high:.1%} "
        "(simulated)"
    )


def _notes(evidence: Evidence, told: set[str]) -> list[str]:
    """Say what is seen and is none of the six, or hidden by one of them."""
    notes = []
    hidden = evidence.hidden_by_others()
    if told & {"slow-rank", "loader"} and "imbalance" not in told and hidden >= WORTH_SAYING:
        notes.append(
            f"once that is mended, uneven batches would cost {hidden:.0%} of rank time (simulated)"
        )
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
