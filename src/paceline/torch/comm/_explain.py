"""Say which plan was chosen and why, in words."""

import numpy as np

from paceline.torch.comm._candidates import Candidate
from paceline.torch.comm._control import PlanControl


def explain(control: PlanControl) -> str:
    """Return a few lines; predicted times are simulated, the others measured."""
    phase = control.phase
    if control.chosen is None:
        return phase
    lines = [
        phase,
        f"overlap: {_reason(control)}",
        f"lower bound (simulated): {control.bound_s * 1e3:.4g} ms per step",
        *(_candidate(one, median_s) for one, median_s in control.tried),
    ]
    for times_s, name in (
        (control.first_s, "first steps, as plain data parallel"),
        (control.kept_s, "since then"),
    ):
        if times_s:
            lines.append(f"measured: {np.median(times_s) * 1e3:.4g} ms per step, {name}")
    return "\n".join(lines)


def _candidate(one: Candidate, median_s: float) -> str:
    measured = f"measured {median_s * 1e3:.4g} ms" if median_s < np.inf else "not timed"
    return (
        f"- {one.plan.name}, {one.plan.num_blocks} blocks: predicted (simulated) "
        f"{one.predicted_s * 1e3:.4g} ms, {measured}"
    )


def _reason(control: PlanControl) -> str:
    if control.overlaps:
        return "the backward pass and the next forward pass"
    if control.reason:
        return f"the backward pass only, because {control.reason}"
    if control.planner is not None:
        return "the backward pass only, because the given plan waits for all"
    how = "measured" if any(s < np.inf for _, s in control.tried) else "predicted"
    return f"the backward pass only, because no plan was {how} to win by 1 %"
