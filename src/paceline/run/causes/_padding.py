"""Ranks compute on padding."""

import numpy as np

from paceline.plan import PADDED_LINES
from paceline.run.causes._cause import Cause
from paceline.run.causes._compute_model import Work
from paceline.run.causes._evidence import Evidence
from paceline.run.causes._imbalance import batch_size_of
from paceline.timeline import gain_interval

# Batches of similar lengths keep some padding.
REMOVED = (0.8, 1.0)


def padding(evidence: Evidence) -> Cause:
    """Price the same batches without 80 to 100 % of their padding."""
    replay, grid = evidence.replay, evidence.grid
    saved_s = _saved_s(evidence)
    before_s = replay.steps_s()
    low, _ = gain_interval(before_s, replay.steps_s(without_s=REMOVED[0] * saved_s))
    _, high = gain_interval(before_s, replay.steps_s(without_s=REMOVED[1] * saved_s))
    share = float(saved_s.mean() / grid.step_s.mean())
    padded = _padded_share(evidence)
    return Cause(
        cause="padding",
        share=share,
        gain_low=max(low, 0.0),
        gain_high=max(high, 0.0),
        what=f"{share:.0%} of rank time is computing on padding",
        why=f"{padded:.0%} of all positions hold padding"
        if padded
        else "the batches do not tell how much of them is padding, or have none",
        next=PADDED_LINES.format(batch_size=batch_size_of(evidence)),
    )


def _padded_share(evidence: Evidence) -> float:
    counts, elements = evidence.grid.num_padding, evidence.grid.num_elements
    known = np.isfinite(counts) & np.isfinite(elements)
    total = float(elements[known].sum())
    return float(counts[known].sum()) / total if total else 0.0


def _saved_s(evidence: Evidence) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    work, model = evidence.work, evidence.model
    num_padding = np.minimum(np.nan_to_num(evidence.grid.num_padding), work.num_elements)
    dense = Work(work.num_microbatches, work.num_examples, work.num_elements - num_padding)
    saved_s = (model.predict(work) - model.predict(dense)) * model.pace[:, None]
    return np.asarray(np.clip(saved_s, 0.0, evidence.grid.compute_s))
