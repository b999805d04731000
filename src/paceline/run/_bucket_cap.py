"""Which buckets of DistributedDataParallel a measured run should have had."""

from dataclasses import replace
from typing import NamedTuple

from paceline.run._curve import WhatIf
from paceline.run._what_if import fitted_wire, share_of_passes
from paceline.run._wire_model import MIB
from paceline.run.causes import Evidence

CAPS_MB = (1.0, 2.0, 4.0, 8.0, 16.0, 25.0, 50.0, 100.0)
LEAST_GAIN = 1.05


class BucketCap(NamedTuple):
    """A size of buckets that is better than what the run had.

    Attributes:
        cap_mb: For `DistributedDataParallel(bucket_cap_mb=...)`.
        gain: Times that a step would be faster, simulated.
    """

    cap_mb: float
    gain: float


def better_bucket_cap(evidence: Evidence) -> BucketCap | None:
    """Return the size of buckets that exposes least of the run's all-reduce, if it is worth it."""
    grid = evidence.grid
    is_ddp = evidence.fact("parallel") == "DistributedDataParallel"
    if not (grid.is_joint and is_ddp and evidence.fact("gradient_bytes")):
        return None
    forward, backward = share_of_passes(evidence)
    passes_s = grid.compute_s.mean(axis=0)
    wire = fitted_wire(evidence, WhatIf(num_workers=(grid.num_ranks,)))
    exposed_s = {
        cap_mb: float(
            replace(wire, bucket_bytes=cap_mb * MIB)
            .exposed_s(grid.num_ranks, forward * passes_s, backward * passes_s, "ddp")
            .mean()
        )
        for cap_mb in CAPS_MB
    }
    best = min(exposed_s, key=lambda cap_mb: exposed_s[cap_mb])
    step_s = float(grid.step_s.mean())
    gain = step_s / max(step_s - float(grid.wire_s.mean()) + exposed_s[best], 1e-12)
    return BucketCap(best, gain) if gain >= LEAST_GAIN else None
