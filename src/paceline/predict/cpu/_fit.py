"""Fit what operators and steps cost on a CPU from those that were timed."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import log

import numpy as np

from paceline.cost import fit_nonnegative
from paceline.predict._conformal import conformal_offsets
from paceline.predict.cpu._rates import CpuRates, OperatorTiming, StepTiming, kinds_of, terms_of
from paceline.predict.work import OperatorWork

MIN_TIMINGS = 4
LEAST_S = 5e-7
# Weight of a scale of one, in steps: the root of a quarter of them.
SCALE_PULL = 0.5


def fit_cpu_rates(
    operators: Iterable[OperatorTiming],
    steps: Sequence[StepTiming] = (),
    *,
    machine: Mapping[str, str] | None = None,
) -> CpuRates:
    """Fit what operators and steps cost, by non-negative least squares on relative errors.

    A kind of operator with too few timings of its own falls back to its class. The interval is
    that of models which neither operators nor steps were fitted on, each left out in turn.

    Args:
        operators: Timed operators; alike ones are joined by their median. The time of an
            empty call, the median of the views, is taken off each: what calls cost is in
            the steps.
        steps: Timed whole steps of traced workloads; without any, a step is taken to be the
            sum of its operators. Steps of one model only leave the interval too narrow.
        machine: Kept in the result.

    Raises:
        ValueError: If there are no timed operators.
    """
    timed = list(operators)
    rates = _fit(timed, steps, dict(machine or {}))
    if not steps:
        return rates
    residuals = _held_out_residuals(timed, steps) or _residuals(rates, steps)
    return replace(rates, log_offsets=conformal_offsets(residuals))


def _fit(
    operators: Sequence[OperatorTiming], steps: Sequence[StepTiming], machine: Mapping[str, str]
) -> CpuRates:
    coefficients = _fit_kinds(_joined(operators))
    if not coefficients:
        raise ValueError("no timed operators to fit; time more models")
    rates = CpuRates(coefficients=coefficients, machine=machine)
    return _fit_steps(rates, steps) if steps else rates


def _residuals(rates: CpuRates, steps: Sequence[StepTiming]) -> list[float]:
    return [log(step.seconds / rates.step_time(step.workload).median) for step in steps]


def _held_out_residuals(
    operators: Sequence[OperatorTiming], steps: Sequence[StepTiming]
) -> list[float]:
    """Predict each model's steps from the others; one that alone runs a kind is skipped."""
    models = {step.model for step in steps}
    found: list[float] = []
    for model in sorted(models) if len(models) > 1 else ():
        others = [step for step in steps if step.model != model]
        with suppress(ValueError):
            rates = _fit([one for one in operators if one.model != model], others, {})
            found += _residuals(rates, [step for step in steps if step.model == model])
    return found


def _fit_steps(rates: CpuRates, steps: Sequence[StepTiming]) -> CpuRates:
    terms = np.array([rates.step_terms(step.workload) for step in steps])
    seconds = np.array([step.seconds for step in steps])
    # Rows that pull the scales towards one, so that a few steps do not distort them.
    pull = np.zeros((2, terms.shape[1]))
    pull[0, 0] = pull[1, 1] = SCALE_PULL * len(steps) ** 0.5
    rows = np.concatenate([terms / seconds[:, None], pull])
    targets = np.concatenate([np.ones_like(seconds), pull.max(axis=1)])
    if len(np.unique(rows, axis=0)) >= rows.shape[1]:
        weights = fit_nonnegative(rows, targets)
    else:
        weights = np.zeros(rows.shape[1])
        weights[:2] = np.median(seconds / terms[:, :2].sum(axis=1))
    return replace(
        rates,
        scales=(float(weights[0]), float(weights[1])),
        overhead=tuple(weights[2:].tolist()),
    )


def _joined(operators: Iterable[OperatorTiming]) -> list[OperatorTiming]:
    seconds: dict[OperatorWork, list[float]] = defaultdict(list)
    for timing in operators:
        seconds[timing.work].append(timing.seconds)
    views = [s for work, times in seconds.items() if work.operator_class == "view" for s in times]
    empty_s = float(np.median(views)) if views else 0.0
    return [
        OperatorTiming(work, max(float(np.median(times)) - empty_s, LEAST_S))
        for work, times in seconds.items()
        if work.operator_class != "view"
    ]


def _fit_kinds(timings: list[OperatorTiming]) -> dict[str, tuple[float, ...]]:
    by_kind: dict[str, list[OperatorTiming]] = defaultdict(list)
    for timing in timings:
        for kind in kinds_of(timing.work):
            by_kind[kind].append(timing)
    fitted = {kind: _fit_kind(kind, some) for kind, some in by_kind.items()}
    return {kind: weights for kind, weights in fitted.items() if weights}


def _fit_kind(kind: str, timings: list[OperatorTiming]) -> tuple[float, ...]:
    """Return the coefficients, as many terms as the timings can identify."""
    terms = np.array([terms_of(timing.work, kind) for timing in timings])
    seconds = np.array([timing.seconds for timing in timings])
    num_different = len(np.unique(terms, axis=0))
    if "/" in kind and num_different < MIN_TIMINGS:
        return ()
    num_terms = min(terms.shape[1], max(1, num_different // 2))
    weights = fit_nonnegative(terms[:, :num_terms] / seconds[:, None], np.ones_like(seconds))
    return tuple(weights.tolist())
