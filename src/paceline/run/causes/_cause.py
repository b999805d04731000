"""One thing that costs time, with what to do about it."""

from dataclasses import dataclass
from typing import Any, Literal

CauseName = Literal["imbalance", "padding", "loader", "slow-rank", "communication", "small-batch"]
# What is worth a change: at least this share of rank time, and surely more than this gain.
LEAST_SHARE, LEAST_GAIN = 0.05, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What costs time in a run.

    Attributes:
        cause: Which of the six.
        share: Measured share of rank time that it takes, without warm-up.
        gain_low: Low end of the 95 % interval of the share of step time that mending it saves,
            simulated from the recorded steps.
        gain_high: High end.
        what: What is seen, one sentence.
        why: What it comes from, one sentence.
        next: The lines to change.
        is_unusual: Whether there is more of it than in any healthy run.
    """

    cause: CauseName
    share: float
    gain_low: float
    gain_high: float
    what: str
    why: str
    next: str
    is_unusual: bool = True

    @property
    def is_worth_it(self) -> bool:
        """Whether its share and its gain stand clear of noise."""
        return self.is_unusual and self.share >= LEAST_SHARE and self.gain_low > LEAST_GAIN

    @property
    def gain(self) -> str:
        """The gain as a person reads it."""
        return f"{self.gain_low:.0%} to {self.gain_high:.0%} of the step time (simulated)"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, safe to save as JSON."""
        return {
            "cause": self.cause,
            "share": round(self.share, 6),
            "gain": [round(self.gain_low, 6), round(self.gain_high, 6)],
        }
