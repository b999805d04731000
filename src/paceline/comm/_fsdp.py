"""Advice for FSDP2: which layers to shard together, and how far ahead to gather them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.comm._problem import WireProblem
from paceline.comm._wire import Wire, wire_of

LEAST_MEBIBYTES = (0, 1, 2, 4, 8, 16, 32, 64, 128)
PREFETCHES = (0, 1, 2, 3)
# Of two settings this close, the one that holds fewer gathered bytes is advised.
LEAST_GAIN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class FsdpAdvice:
    """How to call `fully_shard`; all times are simulated.

    Attributes:
        groups: Layers to shard together, in forward order, as (first, last).
        prefetch: Groups to gather ahead of the one that runs, forwards and backwards.
        step_s: Seconds per step.
        gathered_bytes: Most parameter bytes that are whole at once.
        per_layer_step_s: Seconds per step with a group per layer and the same prefetch.
        no_prefetch_step_s: Seconds per step with the same groups and nothing gathered ahead.
    """

    groups: tuple[tuple[int, int], ...]
    prefetch: int
    step_s: float
    gathered_bytes: float
    per_layer_step_s: float
    no_prefetch_step_s: float

    def __str__(self) -> str:
        """Say what to do and what it is expected to bring."""
        ahead = "nothing" if not self.prefetch else f"{self.prefetch} group(s)"
        return (
            f"Shard in {len(self.groups)} groups and gather {ahead} ahead "
            f"(set_modules_to_forward_prefetch, set_modules_to_backward_prefetch): simulated "
            f"{1e3 * self.step_s:.1f} ms per step; {1e3 * self.per_layer_step_s:.1f} ms with a "
            f"group per layer, {1e3 * self.no_prefetch_step_s:.1f} ms without prefetch; at most "
            f"{self.gathered_bytes / 2**20:.0f} MiB of parameters are whole at once."
        )


def advise_fsdp(problem: WireProblem) -> FsdpAdvice:
    """Simulate fully sharded training for several group sizes and prefetch depths.

    Per step: each group is gathered before its forward pass, again before its backward pass,
    and its gradients are scattered after it; a gather or a scatter takes half the latency and
    half the bytes of an all-reduce. All share one wire in the order of issue. A group's gather is
    issued when the group `prefetch` places before it begins, so with 0 nothing overlaps it. Layers
    without parameters join the group before them; parameters are as large as gradients. The
    step ends when everything has landed; the next one's first gather does not begin before that.

    Returns:
        The fastest setting; within 1 % of it, the one that holds the fewest bytes.

    Raises:
        ValueError: If no layer has parameters.
    """
    if not len(problem.num_bytes):
        raise ValueError("no layer has parameters, so there is nothing to shard")
    wire = wire_of(problem, latency_share=0.5)
    groupings = _groupings(problem)
    tried = [
        (
            _step_s(problem, wire, first, prefetch),
            _gathered(problem, first, prefetch),
            index,
            prefetch,
        )
        for index, first in enumerate(groupings)
        for prefetch in PREFETCHES
    ]
    near_s = (1 + LEAST_GAIN) * min(tried)[0]
    step_s, gathered, index, prefetch = min(
        (each for each in tried if each[0] <= near_s), key=lambda each: (each[1], each[0])
    )
    first = groupings[index].tolist()
    last = [layer - 1 for layer in first[1:]] + [len(problem.forward_s) - 1]
    return FsdpAdvice(
        groups=tuple(zip(first, last, strict=True)),
        prefetch=prefetch,
        step_s=step_s,
        gathered_bytes=gathered,
        per_layer_step_s=_step_s(problem, wire, groupings[0], prefetch),
        no_prefetch_step_s=_step_s(problem, wire, groupings[index], 0),
    )


def _layer_bytes(problem: WireProblem) -> NDArray[np.float64]:
    return np.bincount(problem.layer, problem.num_bytes, minlength=len(problem.forward_s)).astype(
        np.float64
    )


def _groupings(problem: WireProblem) -> list[NDArray[np.int64]]:
    """Return the first layers of groups of at least so many bytes, for several least sizes."""
    num_bytes = _layer_bytes(problem)
    return [_first_layers(num_bytes, float(size << 20)) for size in LEAST_MEBIBYTES]


def _first_layers(num_bytes: NDArray[np.float64], least: float) -> NDArray[np.int64]:
    firsts, held = [0], 0.0
    for layer, size in enumerate(num_bytes.tolist()):
        if size > 0 and held > 0 and held >= least:
            firsts.append(layer)
            held = 0.0
        held += size
    return np.array(firsts)


def _gathered(problem: WireProblem, first: NDArray[np.int64], prefetch: int) -> float:
    """Return the most bytes of a group and those gathered ahead of it."""
    group = np.add.reduceat(_layer_bytes(problem), first)
    return float(np.convolve(group, np.ones(prefetch + 1)).max())


def _step_s(problem: WireProblem, wire: Wire, first: NDArray[np.int64], prefetch: int) -> float:
    # The backward pass of a layer is what lies between its gradient and the layer's behind it.
    ready_s = np.full(len(problem.forward_s), np.nan)
    ready_s[problem.layer] = problem.ready_s
    ends_s = np.fmax.reduceat(ready_s, first)
    ends_s[0] = problem.backward_s
    group_bytes = np.add.reduceat(_layer_bytes(problem), first)
    return float(
        _sharded(
            wire,
            np.add.reduceat(problem.forward_s, first),
            np.diff(ends_s[::-1], prepend=0.0),
            (wire.alpha_s + wire.block_cost_s) + group_bytes / 2 / wire.bytes_per_s,
            prefetch,
        )
    )


@compiled
def _sharded(
    wire: Wire,
    forward_s: NDArray[np.float64],
    backward_s: NDArray[np.float64],
    half_s: NDArray[np.float64],
    prefetch: int,
) -> float:
    """Run gathers and forward passes, then gathers, backward passes and scatters."""
    num_groups = len(forward_s)
    began_s = np.zeros(2 * num_groups)
    wire_s, time_s, gathered = 0.0, 0.0, 0
    landed_s = np.zeros(2 * num_groups)
    for run in range(2 * num_groups):
        began_s[run] = time_s
        while gathered < 2 * num_groups and gathered <= run + prefetch:
            group = gathered if gathered < num_groups else 2 * num_groups - 1 - gathered
            wire_s = max(wire_s, began_s[run]) + half_s[group]
            landed_s[gathered] = wire_s
            gathered += 1
        group = run if run < num_groups else 2 * num_groups - 1 - run
        time_s = max(time_s, landed_s[run])
        if run < num_groups:
            time_s += forward_s[group]
        else:
            time_s += backward_s[run - num_groups]
            wire_s = max(wire_s, time_s) + half_s[group]
    return max(time_s, wire_s)
