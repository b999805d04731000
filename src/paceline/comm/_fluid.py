"""The least step time that any order of travel could give, on a wire without latency."""

import numpy as np

from paceline.comm._problem import WireProblem


def fluid_bound_s(problem: WireProblem) -> float:
    """Return seconds per step that no plan for these tensors beats, at least `bound_s`.

    `bound_s` knows totals only. Here a gradient travels after it is ready and before its
    layer's forward pass, in pieces of any size without latency. Such an order exists
    exactly if, for every moment `r` and layer `l`, what is ready from `r` on and needed
    up to `l` fits in between [1], so the least step time is the largest of

        r + bytes(ready from r on, needed up to l) / bandwidth + forward time from l on.

    It can be reached with blocks small enough if they cost nothing. O(num_tensors²) time.

    Args:
        problem: One step, seen from the wire.

    References:
        [1] W. Horn, "Some simple scheduling algorithms", Naval Research Logistics
        Quarterly 21(1), 1974.

    Examples:
        >>> from paceline.cost import Link
        >>> problem = WireProblem(forward_s=np.array([1.0]), layer=np.array([0]),
        ...     num_bytes=np.array([2.0]), ready_s=np.array([3.0]), backward_s=3.0,
        ...     link=Link(0.0, 1.0))
        >>> problem.bound_s, fluid_bound_s(problem)
        (4.0, 6.0)
    """
    wire_s = problem.num_bytes / problem.link.bytes_per_s
    tail_s = np.cumsum(problem.forward_s[::-1])[::-1][problem.layer]
    step_s = problem.bound_s
    for ready_s in np.unique(problem.ready_s):
        # Tensors are sorted by layer, so a running sum is what is needed so far.
        travels_s = np.cumsum(np.where(problem.ready_s >= ready_s, wire_s, 0.0))
        step_s = max(step_s, float((ready_s + travels_s + tail_s).max()))
    return step_s
