"""Which parts are worth it for a job: a short ranked list, and the rest in one line each."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from paceline.balance import BalanceConfig
from paceline.cost import Job
from paceline.overlap import LanePlan
from paceline.plan._schedule import DDP_CAP_MB, Change, Schedule
from paceline.plan._tune import NUM_STEPS, Priced, best_of, candidates
from paceline.timeline import gain_interval

Keeps = Callable[[Schedule], bool]
# Of a part alone, surely more than this is worth a change.
WORTH_IT = 0.02
# What each part changes of the plain way, and nothing else.
BALANCE, WINDOW = "balance", "wider window"
PARTS: dict[str, Keeps] = {
    BALANCE: lambda one: one.is_balanced and one.changes == "nothing" and _sends_plainly(one),
    WINDOW: lambda one: one.changes == "order of data" and _sends_plainly(one),
    "bucket size": lambda one: not one.is_balanced and bool(one.bucket_cap_mb),
    "scheduled blocks": lambda one: not one.is_balanced and _schedules(one, bits=32),
    "16 bits": lambda one: not one.is_balanced and _schedules(one, bits=16),
}
UNKNOWN_SIZES = "the job does not know its examples; pass their sizes"
ORDER = (
    "order: saves no time; order='pair-balance' may lower the training loss of convex models, "
    "docs/order.md"
)
LANES = (
    "lanes: not simulated from a job; split_backward measures on the live model, docs/overlap.md"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """One part that is worth it by itself.

    Attributes:
        part: Which.
        gain: Simulated share of the plain step that it saves.
        gain_low: Low end of the 95 % interval of that, over the simulated steps. It says how much
            steps differ, not how far the simulator is off.
        gain_high: High end.
        changes: What of the training it changes besides its time.
        lines: What to write.
    """

    part: str
    gain: float
    gain_low: float
    gain_high: float
    changes: Change
    lines: tuple[str, ...]

    def __str__(self) -> str:
        head = (
            f"{self.part}: saves {self.gain:.0%} ({self.gain_low:.0%} to {self.gain_high:.0%}) of "
            f"the step, simulated; changes {self.changes}"
        )
        code = (line for part in self.lines for line in part.splitlines())
        return "\n".join([head, *(f"    {line}" for line in code)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What is worth it for a job, and what is not. `str()` is what a person reads.

    Attributes:
        suggestions: Each part alone against plain data parallel training, the largest gain first.
            Gains do not add up.
        not_worth: The other parts, one line each.
        schedule: What to take together, of all that leaves the gradients of every step as they
            are; see `tune`.
        job: What it is for, one line.
    """

    suggestions: tuple[Suggestion, ...]
    not_worth: tuple[str, ...]
    schedule: Schedule
    job: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, safe to save as JSON."""
        return {
            "source": "simulated",
            "suggestions": [asdict(one) for one in self.suggestions],
            "not_worth": list(self.not_worth),
            "schedule": self.schedule.to_dict(),
            "job": self.job,
        }

    def __str__(self) -> str:
        ranked = (f"{rank}. {one}" for rank, one in enumerate(self.suggestions, 1))
        together = str(self.schedule).splitlines()[0]
        rest = (f"not worth it: {line}" for line in self.not_worth)
        return "\n".join([self.job, *ranked, f"together: {together}", *rest])


def advise(
    job: Job,
    config: BalanceConfig | None = None,
    *,
    seconds_per_cost: float | None = None,
    lanes: LanePlan | None = None,
    num_steps: int = NUM_STEPS,
) -> Advice:
    """Say which parts are worth it for `job`, each by itself and together.

    Arguments and errors are those of `tune`. Parts that change the order of data or the numerics
    are listed, and marked so, but left out of `Advice.schedule`.

    Examples:
        >>> import numpy as np
        >>> from paceline.cost import LayerCost, Link, Worker
        >>> job = Job(
        ...     source="predicted",
        ...     layers=(LayerCost(name="0", forward_s=1.0, backward_s=2.0, gradient_bytes=8),),
        ...     link=Link(alpha_s=0.0, bytes_per_s=800.0),
        ...     workers=(Worker(), Worker()),
        ...     sizes=np.array([1.0, 1.0, 1.0, 5.0] * 16),
        ... )
        >>> advice = advise(job, BalanceConfig(batch_size=8))
        >>> advice.suggestions[0].part, advice.suggestions[0].changes
        ('balance', 'nothing')
    """
    found = list(
        candidates(
            job,
            config,
            seconds_per_cost=seconds_per_cost,
            may_change="numerics",
            lanes=lanes,
            num_steps=num_steps,
        )
    )
    plain = found[0]
    best = {name: _best_part(plain, found, keeps) for name, keeps in PARTS.items()}
    told = {name: _suggestion(name, plain, one) for name, one in best.items() if one is not None}
    worth = {name: one for name, one in told.items() if one.gain_low > WORTH_IT}
    # On top of balance, whose steps are shorter already.
    if WINDOW in worth and 1 - worth[WINDOW].gain > (1 - WORTH_IT) * (1 - told[BALANCE].gain):
        del worth[WINDOW]
    kept = best_of([one for one in found if one.schedule.changes == "nothing"])
    return Advice(
        suggestions=tuple(sorted(worth.values(), key=lambda one: -one.gain)),
        not_worth=(
            *(_not_worth(name, told.get(name), job, config) for name in PARTS if name not in worth),
            ORDER,
            *([LANES] if lanes is None else []),
        ),
        schedule=kept.schedule,
        job=str(job),
    )


def _best_part(plain: Priced, found: list[Priced], keeps: Keeps) -> Priced | None:
    """Return the best with that part alone, of those alike the first."""
    fit = [one for one in found[1:] if one.schedule.deferred == () and keeps(one.schedule)]
    if not fit:
        return None
    best = best_of([plain, *fit])
    return min(fit, key=lambda one: one.schedule.step_s) if best is plain else best


def _suggestion(name: str, plain: Priced, one: Priced) -> Suggestion:
    # A window moves work from step to step, so only whole windows can be compared.
    window = one.schedule.config.window if one.schedule.config else 1
    starts = np.arange(0, len(one.step_times_s), window)
    times = (np.add.reduceat(each.step_times_s, starts) for each in (plain, one))
    low, high = gain_interval(*times)
    return Suggestion(
        part=name,
        gain=one.schedule.gain,
        gain_low=low,
        gain_high=high,
        changes=one.schedule.changes,
        lines=one.schedule.lines,
    )


def _not_worth(name: str, found: Suggestion | None, job: Job, config: BalanceConfig | None) -> str:
    if found is not None:
        than = ", little more than balance" if name == WINDOW and found.gain > WORTH_IT else ""
        return f"{name}: would save {max(found.gain, 0.0):.1%} of the step (simulated){than}"
    if len(job.workers) == 1:
        return f"{name}: a single worker has nobody to wait for"
    if name in (BALANCE, WINDOW):
        return f"{name}: {UNKNOWN_SIZES}" if config is None else f"{name}: nothing else to try"
    return f"{name}: all sizes make the buckets of the default"


def _sends_plainly(schedule: Schedule) -> bool:
    return schedule.bucket_cap_mb == DDP_CAP_MB


def _schedules(schedule: Schedule, *, bits: int) -> bool:
    return schedule.bucket_cap_mb is None and (schedule.compression is not None) == (bits == 16)
