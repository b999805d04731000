"""All ranks are there, and wait for the wire."""

import numpy as np

from paceline.plan import BF16, BUCKET_LINE, SCHEDULED_LINE
from paceline.run.causes._cause import Cause
from paceline.run.causes._evidence import Evidence
from paceline.timeline import gain_interval

DDP_CAP_MB, SCHEDULED = 25.0, "ScheduledDataParallel"


def communication(evidence: Evidence) -> Cause:
    """Price less exposed communication.

    At least half of it goes, as with gradients of 16 instead of 32 bits. At best the forward and
    the backward pass hide what they have room for.
    """
    grid, replay = evidence.grid, evidence.replay
    before_s, wire_s = replay.steps_s(), replay.wire_s
    half_s = replay.steps_s(wire_s=wire_s / 2)
    hidden_s = replay.steps_s(wire_s=np.maximum(wire_s - grid.passes_s, 0.0))
    low, _ = gain_interval(before_s, half_s)
    _, high = gain_interval(before_s, np.minimum(half_s, hidden_s))
    share = evidence.shares["wire"]
    return Cause(
        cause="communication",
        share=share,
        gain_low=max(low, 0.0),
        gain_high=max(high, 0.0),
        what=f"{share:.0%} of rank time is waiting for the wire, all ranks there",
        why=_why(evidence),
        next=_next(evidence),
    )


def _why(evidence: Evidence) -> str:
    exposed_ms = 1e3 * float(evidence.replay.wire_s.mean())
    num_bytes = evidence.fact("gradient_bytes")
    of = f" for {num_bytes / 1e6:.1f} MB of gradients" if num_bytes else ""
    return (
        f"after the last rank's backward pass the all-reduce takes {exposed_ms:.1f} ms{of}, "
        f"under {evidence.fact('parallel') or 'data parallelism'}"
    )


def _next(evidence: Evidence) -> str:
    num_bytes = evidence.fact("gradient_bytes") or 0
    cap_mb = evidence.fact("bucket_cap_mb") or DDP_CAP_MB
    lines = []
    if evidence.fact("parallel") != SCHEDULED:
        lines.append(SCHEDULED_LINE)
    if 0 < num_bytes < 2 * cap_mb * 2**20:
        cap = max(round(num_bytes / 2**20 / 8), 1)
        lines.append(f"or more buckets: {BUCKET_LINE.format(cap=cap)}")
    lines.append(f"or fewer bytes: {BF16}; or fewer all-reduces: accumulate gradients")
    return "\n".join(lines)
