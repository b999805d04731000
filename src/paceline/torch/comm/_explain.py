"""Say which plan was chosen and why, in words."""

import numpy as np

from paceline.torch.comm._candidates import LEAST_GAIN, Candidate
from paceline.torch.comm._control import PlanControl
from paceline.torch.comm._mode import Mode
from paceline.torch.model import MIN_GAIN


def explain(control: PlanControl) -> str:
    """Return a few lines; predicted times are simulated, the others measured."""
    choice, times = control.choice, control.times
    doing = _doing(control)
    if choice.chosen is None:
        return doing
    lines = [
        doing,
        f"overlap: {_overlap(control)}",
        f"lower bound (simulated): {choice.bound_s * 1e3:.4g} ms per step",
        *(_candidate(one, median_s) for one, median_s in choice.tried),
    ]
    for times_s, name in (
        (times.first_s, "first steps, as plain data parallel"),
        (times.kept_s, "since then"),
    ):
        if times_s:
            lines.append(f"measured: {np.median(times_s) * 1e3:.4g} ms per step, {name}")
    return "\n".join(lines)


def _doing(control: PlanControl) -> str:
    plan = control.current.plan
    if control.mode is Mode.MEASURING:
        done = f"step {control.probe.num_steps} of {control.settings.num_measure_steps}"
        return f"measuring: {done}, as plain data parallel"
    if control.mode is Mode.TRYING:
        return f"trying: {plan.name} takes its turn"
    return f"plan: {plan.name}, {plan.num_blocks} blocks per step"


def _overlap(control: PlanControl) -> str:
    if control.mode is Mode.OVERLAPPED:
        return "the backward pass and the next forward pass"
    if control.reason:
        why = control.reason
    elif control.settings.planner is not None:
        why = "the given plan waits for all"
    else:
        was_timed = any(median_s < np.inf for _, median_s in control.choice.tried)
        how, gain = ("measured", MIN_GAIN) if was_timed else ("predicted", LEAST_GAIN)
        why = f"no plan was {how} to win by {100 * gain:.3g} %"
    return f"the backward pass only, because {why}"


def _candidate(one: Candidate, median_s: float) -> str:
    measured = f"measured {median_s * 1e3:.4g} ms" if median_s < np.inf else "not timed"
    return (
        f"- {one.plan.name}, {one.plan.num_blocks} blocks: predicted (simulated) "
        f"{one.predicted_s * 1e3:.4g} ms, {measured}"
    )
