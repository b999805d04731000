"""Decide by simulation which weight gradients to defer, and with how many threads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.overlap._step import SplitCost, Threads, step_graph
from paceline.timeline import simulate

# Cost of handing a task over and running it, beside its work; see benchmarks/overlap.py.
OVERHEAD_S = 20e-6
MIN_GAIN = 0.02
BOUNDS = (1, 2, 3, 5, 8, 13)
LAYERS_PER_TASK = (1, 2, 4, 8)
NUM_ENDS = 6
# A tighter bound on what is held is taken when it costs less than this.
BOUND_SLACK = 1.005


@dataclass(frozen=True, slots=True)
class Way:
    """How a step could run: threads per phase (None: as they are), and what its parts cost so."""

    threads: Threads | None
    cost: SplitCost


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """What is deferred, with how many threads, and why. Times are simulated.

    Attributes:
        deferred: Names of the layers whose weight gradients are deferred; None for all there are.
        num_layers: Layers that could be.
        plain_s: Seconds of a step in which nothing is deferred.
        predicted_s: Seconds of a step as planned.
        reason: Why it was planned so, for a person.
        threads: Intra-op threads per phase; None to leave them as they are.
        max_pending: Tasks that the assist lane may hold; None for no bound.
        layers_per_task: Layers whose weight gradients make one task: waking a thread costs
            more than the weight gradients of a small layer.
    """

    deferred: tuple[str, ...] | None
    num_layers: int
    plain_s: float
    predicted_s: float
    reason: str
    threads: Threads | None = None
    max_pending: int | None = None
    layers_per_task: int = 1

    @property
    def defers(self) -> bool:
        """Whether anything is deferred."""
        return self.deferred is None or bool(self.deferred)

    @property
    def gain(self) -> float:
        """Plain over planned seconds, simulated; 1 where nothing is won or known."""
        return self.plain_s / self.predicted_s if self.predicted_s > 0 else 1.0

    def __str__(self) -> str:
        if not self.defers:
            return f"nothing is deferred: {self.reason}"
        which = "all" if self.deferred is None else f"{len(self.deferred)} of {self.num_layers}"
        threads = "" if self.threads is None else f", threads: {self.threads}"
        return f"weight gradients of {which} layers are deferred{threads}: {self.reason}"


def defer_all(*, threads: Threads | None = None, max_pending: int | None = None) -> LanePlan:
    """Return the plan that defers every layer, without asking whether it pays.

    Examples:
        >>> print(defer_all())
        weight gradients of all layers are deferred: as told
    """
    return LanePlan(
        deferred=None,
        num_layers=0,
        threads=threads,
        max_pending=max_pending,
        plain_s=0.0,
        predicted_s=0.0,
        reason="as told",
    )


def choose_way(
    plain: Way,
    ways: Sequence[Way],
    *,
    overhead_s: float = OVERHEAD_S,
    min_gain: float = MIN_GAIN,
) -> LanePlan:
    """Return the way of the least simulated step time, and what to defer in it.

    In each way, layers whose weight gradients take longer than a threshold are deferred, up to
    some layer, some layers to a task; a coarse grid of all three is simulated. The tightest bound
    on pending tasks that costs less than 0.5 % is taken. Deterministic; ties go to the earlier
    way and to fewer layers per task. Takes some 40 simulations per way.

    Args:
        plain: The step as it is; nothing is deferred in it.
        ways: What else could be done, with costs measured or estimated for it.
        overhead_s: Seconds that deferring one task costs each of the two lanes.
        min_gain: Share of the plain step that must be won, else nothing is deferred.

    Examples:
        >>> cost = SplitCost.of(forward_s=2.0, input_s=[1.0] * 4, weight_s=[1.0] * 4)
        >>> chosen = choose_way(Way(Threads(), cost), [Way(Threads(), cost)])
        >>> chosen.deferred, round(chosen.gain, 2)
        (('0', '1', '2'), 1.43)
    """
    plain_s = simulate(step_graph(plain.cost, (False,) * plain.cost.num_layers)).makespan_s
    found = [one for way in ways for one in _simulated(way, overhead_s)]
    best = min(found, key=lambda one: round(one.seconds / max(plain_s, 1e-12), 9), default=None)
    if best is None or best.seconds > plain_s * (1 - min_gain):
        return defer_nothing(plain, plain_s, _why_nothing(best, plain_s, min_gain))
    bound, seconds = _bound(best, overhead_s)
    names = np.array(best.way.cost.names)[list(best.deferred)].tolist()
    return LanePlan(
        deferred=tuple(dict.fromkeys(names)),
        num_layers=len(set(best.way.cost.names)),
        threads=best.way.threads,
        max_pending=bound,
        plain_s=plain_s,
        predicted_s=seconds,
        reason=f"{seconds * 1e3:.4g} ms instead of {plain_s * 1e3:.4g} ms per step (simulated)",
        layers_per_task=best.layers_per_task,
    )


@dataclass(frozen=True, slots=True)
class _Simulated:
    way: Way
    deferred: tuple[bool, ...]
    layers_per_task: int
    seconds: float


def _simulated(way: Way, overhead_s: float) -> Iterator[_Simulated]:
    for deferred in _candidates(way.cost):
        for count in LAYERS_PER_TASK:
            if count == 1 or 2 * count <= sum(deferred):
                graph = step_graph(way.cost, deferred, overhead_s=overhead_s, layers_per_task=count)
                yield _Simulated(way, deferred, count, simulate(graph).makespan_s)


def defer_nothing(plain: Way, plain_s: float, reason: str) -> LanePlan:
    """Return the plan that leaves the step as it is."""
    return LanePlan(
        deferred=(),
        num_layers=len(set(plain.cost.names)),
        threads=plain.threads,
        plain_s=plain_s,
        predicted_s=plain_s,
        reason=reason,
    )


def _why_nothing(best: _Simulated | None, plain_s: float, min_gain: float) -> str:
    if best is None:
        return "there is nothing to defer, or nowhere to run it"
    return (
        f"the best split takes {best.seconds * 1e3:.4g} ms, plain {plain_s * 1e3:.4g} ms per step "
        f"(simulated), and {min_gain:.0%} must be won"
    )


def _candidates(cost: SplitCost) -> Iterator[tuple[bool, ...]]:
    """Yield what could be deferred: long enough tasks, and not the last ones."""
    if not cost.num_layers or not cost.weight_s.any():
        return
    layers = np.arange(cost.num_layers)
    # After the last input gradients main has nothing else to do, so it keeps some.
    ends = np.unique(np.linspace(1, cost.num_layers, min(cost.num_layers, NUM_ENDS)).astype(int))
    for least_s in np.unique(np.quantile(cost.weight_s, [0.0, 0.5])):
        long_enough = (cost.weight_s >= least_s) & (cost.weight_s > 0)
        for end in ends[::-1].tolist():
            chosen = long_enough & (layers < end)
            if chosen.any():
                yield tuple(chosen.tolist())


def _bound(best: _Simulated, overhead_s: float) -> tuple[int | None, float]:
    for bound in BOUNDS:
        if bound * best.layers_per_task >= sum(best.deferred):
            break
        graph = step_graph(
            best.way.cost,
            best.deferred,
            overhead_s=overhead_s,
            max_pending=bound,
            layers_per_task=best.layers_per_task,
        )
        seconds = simulate(graph).makespan_s
        if seconds <= best.seconds * BOUND_SLACK:
            return bound, seconds
    return None, best.seconds
