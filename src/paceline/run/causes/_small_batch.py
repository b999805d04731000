"""Most of the time does not depend on how much is in a batch."""

from paceline.run.causes._cause import Cause
from paceline.run.causes._evidence import Evidence
from paceline.timeline import gain_interval

# Every step has a fixed part. Of what a rank computes, this much of it is too much.
MOST_FIXED = 0.4
LARGER = (2, 8)


def small_batch(evidence: Evidence) -> Cause:
    """Price batches twice to eight times as large: the fixed part divides by it.

    Fixed are what a micro-batch takes whatever is in it, and the optimizer. The gain is time per
    example.
    """
    grid, replay, model = evidence.grid, evidence.replay, evidence.model
    passes_s = model.microbatch_s * evidence.work.num_microbatches * model.pace[:, None]
    fixed_s = passes_s + grid.seconds["optimizer"]
    before_s = replay.steps_s()
    by_twice, by_eight = (replay.steps_s(without_s=(1 - 1 / more) * fixed_s) for more in LARGER)
    low, _ = gain_interval(before_s, by_twice)
    _, high = gain_interval(before_s, by_eight)
    share = float(fixed_s.mean() / grid.step_s.mean())
    busy_s = float((grid.compute_s + grid.seconds["optimizer"]).mean())
    return Cause(
        cause="small-batch",
        share=share,
        gain_low=max(low, 0.0),
        gain_high=max(high, 0.0),
        what=f"{share:.0%} of rank time does not depend on how much is in a batch",
        why=_why(evidence),
        next=_next(evidence),
        is_unusual=float(fixed_s.mean()) > MOST_FIXED * busy_s,
    )


def _why(evidence: Evidence) -> str:
    update_ms = 1e3 * float(evidence.grid.seconds["optimizer"].mean())
    if not evidence.model.knows_fixed:
        return f"the update takes {update_ms:.2f} ms; the cost of an empty batch is not known"
    fixed_ms = 1e3 * evidence.model.microbatch_s
    return (
        f"a micro-batch costs {fixed_ms:.2f} ms and the update {update_ms:.2f} ms whatever it has"
    )


def _next(evidence: Evidence) -> str:
    examples = evidence.work.num_examples / evidence.work.num_microbatches
    size = round(float(examples.mean()))
    return (
        f"DataLoader(..., batch_size={4 * size})  # now {size} per rank; scale the rate\n"
        "or torch.compile(model), which makes the fixed part smaller"
    )
