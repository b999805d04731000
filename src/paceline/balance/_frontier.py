"""What mixing costs: the same epoch planned with ever wider windows."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

import numpy as np
from numpy.typing import ArrayLike

from paceline.balance._config import BalanceConfig
from paceline.balance._epoch_plan import EpochPlan
from paceline.balance._plan import plan_epoch
from paceline.balance._quality import measure_quality
from paceline.cost import Worker, checked_column

WHOLE_EPOCH = sys.maxsize
WINDOWS = (1, 2, 4, 8, 16, 32, WHOLE_EPOCH)
# The knee is this near the most even stop.
NEARLY = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MixingStop:
    """One stop between the plain shuffle and steps as even as possible.

    Attributes:
        window: Steps over which examples move.
        mixing: The value of `BalanceConfig.mixing` that means this window.
        imbalance: As in `PlanQuality`; simulated, with what micro-batches cost by themselves.
        padding: Share of what is computed that is padding, by cost.
        reunion: As in `PlanQuality`; 1 is a perfect shuffle.
    """

    window: int
    mixing: float
    imbalance: float
    padding: float
    reunion: float


def mixing_frontier(
    costs: ArrayLike,
    config: BalanceConfig,
    *,
    windows: Sequence[int] = WINDOWS,
    sizes: ArrayLike | None = None,
    workers: tuple[Worker, ...] | None = None,
) -> tuple[MixingStop, ...]:
    """Plan two epochs with each window, and say how even and how mixed they are.

    `BalanceConfig.mixing` is the dial, and `window` what it means here. Windows of an epoch or more
    are one stop, the last. Takes as long as planning twice the number of windows. See `knee_of`.

    Args:
        costs: Cost of each example, shape `(num_examples,)`.
        config: What fixes the plans, besides its window.
        windows: Steps to try, ascending.
        sizes: As for `plan_epoch`.
        workers: As for `plan_epoch`.

    Examples:
        >>> config = BalanceConfig(
        ...     batch_size=16, num_workers=2, counts="free", padded=True, num_microbatches="auto"
        ... )
        >>> stops = mixing_frontier(range(1, 257), config, windows=(1, 8))
        >>> stops[0].reunion < stops[1].reunion, stops[0].imbalance > stops[1].imbalance
        (True, True)
    """
    num_steps = max(len(checked_column("costs", costs)) // config.batch_size, 1)
    inside = [window for window in windows if window < num_steps]
    chosen = inside if len(inside) == len(windows) else [*inside, WHOLE_EPOCH]
    configs = [replace(config, mixing=None, window=window) for window in chosen]
    return tuple(_stop(costs, each, num_steps, sizes, workers) for each in configs)


def knee_of(stops: Sequence[MixingStop]) -> MixingStop:
    """Return the first stop that is nearly as even as any: wider windows only mix less.

    Args:
        stops: As `mixing_frontier` returns them, the most mixed first.

    Raises:
        ValueError: If there is no stop.

    Examples:
        >>> values = ((1, 1.0, 1.5, 1.0), (8, 0.5, 1.04, 1.2), (64, 0.0, 1.0, 5.0))
        >>> names = ("window", "mixing", "imbalance", "reunion")
        >>> stops = [MixingStop(padding=0.0, **dict(zip(names, v, strict=True))) for v in values]
        >>> knee_of(stops).window
        8
    """
    if not stops:
        raise ValueError("there is no stop to choose from; pass what mixing_frontier returns")
    best = min(stop.imbalance for stop in stops)
    return next(stop for stop in stops if stop.imbalance <= NEARLY * best)


def _stop(
    costs: ArrayLike,
    config: BalanceConfig,
    num_steps: int,
    sizes: ArrayLike | None,
    workers: tuple[Worker, ...] | None,
) -> MixingStop:
    plan, later = (
        plan_epoch(costs, config, epoch=epoch, sizes=sizes, workers=workers) for epoch in (0, 1)
    )
    quality = measure_quality(plan, costs, config, later)
    assert quality.reunion is not None
    return MixingStop(
        window=config.window,
        mixing=1 - log(min(config.window, num_steps)) / log(max(num_steps, 2)),
        imbalance=quality.imbalance,
        padding=_padding(plan, costs) if config.padded else 0.0,
        reunion=quality.reunion,
    )


def _padding(plan: EpochPlan, costs: ArrayLike) -> float:
    cost = checked_column("costs", costs)[plan.examples]
    begins, counts = plan.micro_offsets[:-1], np.diff(plan.micro_offsets)
    computed = float((np.maximum.reduceat(cost, begins) * counts).sum())
    return 1 - float(cost.sum()) / computed if computed else 0.0
