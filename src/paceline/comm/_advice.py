"""Advice for those who keep DistributedDataParallel: which bucket size."""

from dataclasses import dataclass

from paceline.comm._baselines import plan_ddp_cap
from paceline.comm._buckets import DDP_BUCKET_BYTES
from paceline.comm._judge import step_time_s
from paceline.comm._problem import WireProblem

BUCKET_CAPS_MB = (1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 25, 32, 50, 75, 100, 200)
# A smaller gain is within what a simulation misses; then the default stays.
LEAST_GAIN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketAdvice:
    """Which `bucket_cap_mb` to give to DistributedDataParallel; all times are simulated.

    Attributes:
        bucket_cap_mb: The advised cap, in DDP's unit of 2**20 bytes.
        step_s: Seconds per step with it.
        default_step_s: Seconds per step with DDP's default, 25.
        bound_s: Seconds that no schedule beats.
        step_s_of_cap: Seconds per step for each cap that was tried, in MiB.
    """

    bucket_cap_mb: int
    step_s: float
    default_step_s: float
    bound_s: float
    step_s_of_cap: dict[int, float]

    def __str__(self) -> str:
        """Say what to do and what it is expected to bring."""
        default = f"{1e3 * self.default_step_s:.1f} ms per step with the default of 25 MB"
        least = f"no schedule takes less than {1e3 * self.bound_s:.1f} ms"
        if self.step_s == self.default_step_s:
            return (
                f"Keep bucket_cap_mb=25: simulated {default}; "
                f"no other size gains {LEAST_GAIN:.0%}; {least}."
            )
        gain = 1 - self.step_s / self.default_step_s
        return (
            f"Set bucket_cap_mb={self.bucket_cap_mb}: simulated {1e3 * self.step_s:.1f} ms "
            f"instead of {default} ({gain:.0%} less); {least}."
        )


def advise_buckets(problem: WireProblem) -> BucketAdvice:
    """Simulate DDP with several bucket sizes; advise the best, of equals the largest.

    The default stays unless the best takes at least 1 % less time.

    Examples:
        >>> import numpy as np
        >>> from paceline.cost import Link
        >>> problem = WireProblem(forward_s=np.full(8, 0.01), layer=np.arange(8),
        ...     num_bytes=np.full(8, 4e6), ready_s=0.02 * np.arange(8, 0, -1),
        ...     backward_s=0.16, link=Link(1e-3, 2e8))
        >>> print(advise_buckets(problem))
        Set bucket_cap_mb=3: simulated 268.0 ms instead of 381.0 ms per step with the \
default of 25 MB (30% less); no schedule takes less than 240.0 ms.
    """
    prices = {cap: step_time_s(problem, plan_ddp_cap(problem, cap)) for cap in BUCKET_CAPS_MB}
    default = DDP_BUCKET_BYTES >> 20
    best = min(prices, key=lambda cap: (prices[cap], -cap))
    if prices[best] > (1 - LEAST_GAIN) * prices[default]:
        best = default
    return BucketAdvice(
        bucket_cap_mb=best,
        step_s=prices[best],
        default_step_s=prices[default],
        bound_s=problem.bound_s,
        step_s_of_cap=prices,
    )
