"""The least step time that any order of sending could give, in pieces of any size."""

import numpy as np

from paceline.comm._problem import WireProblem


def fluid_bound_s(problem: WireProblem, *, latency_share: float = 0.5) -> float:
    """Return seconds per step that no plan for these tensors beats, at least `bound_s`.

    `bound_s` knows totals only. Here a gradient is sent after it is ready and before its
    layer's forward pass, in pieces of any size that cost nothing but one latency. Without
    latency such an order exists exactly if, for every moment `r` and layer `l`, what is
    ready from `r` on and needed up to `l` fits in between [1], so no step is shorter than

        r + latency + bytes(ready from r on, needed up to l) / bandwidth + forward time from l on

    for any `r` and `l`. What is carried over counts for the total only. O(num_tensors²) time.

    Args:
        problem: One step, seen from the wire.
        latency_share: Latency before the first byte over that of an all-reduce. A
            reduce-scatter takes half; with 1 the bound holds for plans of all-reduces.

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
    # Halves wait for each other, so both latencies are over before a tensor has landed.
    first_s = problem.block_cost_s + latency_share * problem.link.alpha_s
    least_s = problem.block_cost_s + problem.link.alpha_s
    needed = problem.layer < len(problem.forward_s)
    wire_s = problem.num_bytes[needed] / problem.link.bytes_per_s
    tail_s = np.cumsum(problem.forward_s[::-1])[::-1][problem.layer[needed]]
    ready_s = problem.ready_s[needed]
    step_s = problem.bound_s
    for start_s in np.unique(ready_s):
        # Tensors are sorted by layer, so a running sum is what is needed so far.
        later = ready_s >= start_s
        sent_s = np.maximum(first_s + np.cumsum(wire_s[later]), least_s)
        step_s = max(step_s, float((start_s + sent_s + tail_s[later]).max()))
    return step_s
