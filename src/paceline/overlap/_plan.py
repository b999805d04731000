"""Plan a job: what its weight gradients would win on a lane of their own."""

import numpy as np

from paceline.cost import Job
from paceline.overlap._choose import MIN_GAIN, OVERHEAD_S, LanePlan, Way, choose_way, defer_nothing
from paceline.overlap._step import SplitCost


def plan_lanes(
    job: Job,
    *,
    free_share: float,
    weight_share: float = 0.5,
    overhead_s: float = OVERHEAD_S,
    min_gain: float = MIN_GAIN,
) -> LanePlan:
    """Decide which layers' weight gradients to defer, by simulating the step.

    A job says what a layer's backward pass costs as a whole. For a matrix product, input and
    weight gradient take the same number of operations, hence `weight_share`; where the parts
    were measured, use `choose_way`, as `paceline.split_backward` does.

    Args:
        job: Its layers are in forward order; with several workers and a link, the gradients
            are also sent.
        free_share: Speed of the assist lane while main is busy, relative to main: 1 for a
            free core as fast as main's, 0 for a saturated device or no free core.
        weight_share: Part of a layer's backward pass that its weight gradients take.
        overhead_s: Seconds that deferring one task costs each of the two lanes.
        min_gain: Share of the plain step that must be won, else nothing is deferred.

    Returns:
        The plan; `deferred` names layers in the order of the backward pass, so the last first.

    Raises:
        ValueError: If a share is out of [0, 1], or several workers have no link.

    Examples:
        >>> from paceline.cost import LayerCost
        >>> layer = LayerCost(name="0", forward_s=0.01, backward_s=0.02, gradient_bytes=8)
        >>> print(plan_lanes(Job(source="predicted", layers=(layer,) * 4), free_share=0.0))
        nothing is deferred: no core or device time is free beside main (free_share 0)
    """
    for name, share in (("free_share", free_share), ("weight_share", weight_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")
    whole = _cost(job, weight_share, 1.0)
    if free_share == 0:
        reason = "no core or device time is free beside main (free_share 0)"
        return defer_nothing(Way(None, whole), whole.total_s, reason)
    split = _cost(job, weight_share, free_share)
    return choose_way(
        Way(None, whole), [Way(None, split)], overhead_s=overhead_s, min_gain=min_gain
    )


def _cost(job: Job, weight_share: float, free_share: float) -> SplitCost:
    layers = job.layers[::-1]
    backward_s = np.array([layer.backward_s for layer in layers])
    trained = np.array([layer.gradient_bytes > 0 for layer in layers], dtype=bool)
    weight_s = np.where(trained, weight_share * backward_s, 0.0)
    return SplitCost.of(
        forward_s=job.forward_s,
        input_s=backward_s - weight_s,
        weight_s=weight_s,
        assist_s=weight_s / free_share,
        wire_s=_wire_s(job),
        names=[layer.name for layer in layers],
    )


def _wire_s(job: Job) -> list[float]:
    if len(job.workers) == 1:
        return []
    if job.link is None:
        raise ValueError(
            f"a job of {len(job.workers)} workers needs a link; measure it in a process group or "
            "pass one"
        )
    return [job.link.transfer_s(layer.gradient_bytes) for layer in job.layers[::-1]]
