"""What is known about one step before it runs."""

from dataclasses import dataclass
from typing import Literal

from paceline.predict._conformal import Estimate
from paceline.predict.work import Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """Seconds of one worker's training step by itself, with 90 % intervals.

    Attributes:
        compute: Forward pass, backward pass and optimizer on the device.
        total: The same and the wait for data; None for a step that never waits.
        loader: What the host needs to deliver the batch while the device computes, where known.
        shares: Relative parts of compute, memory and launch in the compute time, where known.
        shift: What the predictor took to be new, such as "device+model" or "configuration"; the
            intervals are calibrated for it. Empty where no table was asked.
        source: "predicted", or "measured" by a probe.
    """

    compute: Estimate
    total: Estimate | None = None
    loader: Estimate | None = None
    shares: tuple[tuple[Bound, float], ...] = ()
    shift: str = ""
    source: Literal["predicted", "measured"] = "predicted"

    @property
    def step(self) -> Estimate:
        """Seconds of the whole step."""
        return self.total or self.compute

    @property
    def loader_wait(self) -> Estimate:
        """Seconds that the step waits for data."""
        ends = [
            max(getattr(self.step, end) - getattr(self.compute, end), 0.0)
            for end in ("median", "low", "high")
        ]
        return Estimate(ends[0], min(ends), max(ends))

    @property
    def new(self) -> str:
        """All that the predictor had not seen before, in words."""
        if self.shift == "known":
            return "nothing"
        *most, last = [f"the {name}" for name in self.shift.split("+")] if self.shift else [""]
        return f"{', '.join(most)} and {last}" if most else last
