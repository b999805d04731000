"""Ranks wait for the one with the largest batch."""

import numpy as np

from paceline.plan import BALANCE_LINES
from paceline.run.causes._cause import Cause
from paceline.run.causes._evidence import Evidence
from paceline.timeline import gain_interval

# Where batches are balanced already, they are balanced by another cost than the measured one.
REFINE = (
    "batches.refit(run.gather())  # after each epoch: each rank's measured speed\n"
    "or measure what an example costs: measure_cost, docs/ragged-text.md"
)


def imbalance(evidence: Evidence) -> Cause:
    """Price batches of equal cost: each rank gets the mean of the step's expected costs."""
    replay, model = evidence.replay, evidence.model
    expected_s = model.predict(evidence.work)
    above_s = (expected_s - expected_s.mean(axis=0)) * model.pace[:, None]
    low, high = gain_interval(replay.steps_s(), replay.steps_s(without_s=above_s))
    share = max(evidence.waits["size"], 0.0)
    return Cause(
        cause="imbalance",
        share=share,
        gain_low=max(low, 0.0),
        gain_high=max(high, 0.0),
        what=f"{share:.0%} of rank time is waiting for the rank with the largest batch; "
        f"{who_is_last(evidence)}",
        why=_why(evidence),
        next=_next(evidence),
    )


def batch_size_of(evidence: Evidence) -> str:
    """Return the examples of a step over all ranks, or what stands for them."""
    counts = evidence.grid.num_examples
    return f"{np.median(counts.sum(axis=0)):.0f}" if np.isfinite(counts).all() else "..."


def who_is_last(evidence: Evidence) -> str:
    """Say whether it is one rank that arrives last, or another one each time."""
    counts = np.bincount(evidence.last, minlength=evidence.grid.num_ranks)
    share, rank = counts.max() / counts.sum(), int(counts.argmax())
    if share > max(0.75, 1.5 / len(counts)):
        return f"in {share:.0%} of the steps that is rank {rank}"
    return "it is another rank each step"


def _next(evidence: Evidence) -> str:
    names = (evidence.fact("sampler"), evidence.fact("batch_sampler"))
    if any(str(name).startswith("Balanced") for name in names):
        return REFINE
    return BALANCE_LINES.format(batch_size=batch_size_of(evidence))


def _why(evidence: Evidence) -> str:
    size = evidence.work.num_elements
    ratio = float((size.max(axis=0) / np.maximum(size.min(axis=0), 1.0)).mean())
    low, high = np.quantile(size, (0.01, 0.99)).tolist()
    text = (
        f"in a step the largest batch has {ratio:.1f} times the elements of the smallest "
        f"(over the run {low:,.0f} to {high:,.0f})"
    )
    sampler = evidence.fact("batch_sampler") or evidence.fact("sampler")
    sampler = evidence.fact("sampler") if sampler == "BatchSampler" else sampler
    return f"{text}; the sampler is {sampler}" if sampler else text
