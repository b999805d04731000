"""Seconds of a traced step on a CPU: what each kind of operator costs here, added up.

Every operator takes `fixed + flops / rate + bytes / bandwidth`, with bandwidths that fall
where the data outgrows the caches, and further terms where a kind of operator needs them. The
coefficients are fitted, per kind of operator, to timed operators; what a step takes beyond
its operators (Python, autograd, allocations) to timed steps.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from paceline._files import read_json, shown
from paceline.predict._conformal import Estimate
from paceline.predict.work import Bound, OperatorWork, Workload

# Beyond these an operator's data leaves the second-level cache, and the share of the last one.
CACHE_BYTES = (1 << 20, 16 << 20)
FORMAT = 1
MAX_TERMS = 8
DENSE = frozenset({"matmul", "conv", "depthwise", "attention", "recurrent"})


@dataclass(frozen=True, slots=True)
class OperatorTiming:
    """One operator, the median of its measured seconds, and the model in which it ran."""

    work: OperatorWork
    seconds: float
    model: str = ""


@dataclass(frozen=True, slots=True)
class StepTiming:
    """One training step, the median of its measured seconds, and whose step it was."""

    workload: Workload
    seconds: float
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRates:
    """What operators cost on one machine, fitted by `fit_cpu_rates`.

    Attributes:
        coefficients: Per kind of operator, seconds per unit of each term.
        scales: Factors on the summed times of dense and of other operators in a real step.
        overhead: Seconds per Python call, operator of forward and backward pass, and
            operator of the optimizer, which no operator's own time holds.
        log_offsets: Logarithms of the factors from a prediction to its interval.
        machine: Where it was measured: processor, threads, versions, date.
    """

    coefficients: Mapping[str, tuple[float, ...]]
    scales: tuple[float, float] = (1.0, 1.0)
    overhead: tuple[float, float, float] = (0.0, 0.0, 0.0)
    log_offsets: tuple[float, float] = (-0.3, 0.3)
    machine: Mapping[str, str] = field(default_factory=dict)

    def operator_s(self, work: OperatorWork) -> float:
        """Return the predicted seconds of one call of an operator.

        Raises:
            ValueError: If neither its kind nor its class was calibrated.
        """
        if work.operator_class == "view":
            return 0.0
        for kind in kinds_of(work):
            if kind in self.coefficients:
                weights = np.array(self.coefficients[kind])
                return float(terms_of(work, kind)[: len(weights)] @ weights)
        raise ValueError(
            f"operators of class {work.operator_class!r} were not calibrated; known kinds: "
            f"{', '.join(sorted(self.coefficients)):.500}"
        )

    def step_time(self, workload: Workload) -> Estimate:
        """Return the predicted seconds of one step of a traced workload.

        Takes time in proportion to the number of different operators.

        Raises:
            ValueError: If the workload holds no operators: it was not traced at this batch size.

        Examples:
            >>> rates = CpuRates(coefficients={"matmul": (1e-6, 1e-10)})
            >>> mm = OperatorWork(operator="mm", operator_class="matmul", phase="forward",
            ...     flops=1e6, read_bytes=0.0, written_bytes=0.0, num_calls=2,
            ...     dims=(1, 50, 100, 100))
            >>> work = Workload(family="MLP", batch_size=1, num_params=0,
            ...     forward_flops_per_example=2e6, operators=(mm,))
            >>> round(rates.step_time(work).median, 6)
            0.000202
        """
        seconds = float(np.dot(self.step_terms(workload), (*self.scales, *self.overhead)))
        low, high = np.exp(self.log_offsets)
        return Estimate(seconds, seconds * float(low), seconds * float(high))

    def seconds_by_class(self, workload: Workload) -> dict[str, float]:
        """Return how a step's predicted seconds divide by class of operator, and overhead."""
        total: dict[str, float] = defaultdict(float)
        for work in workload.operators:
            scale = self.scales[work.operator_class not in DENSE]
            total[work.operator_class] += scale * work.num_calls * self.operator_s(work)
        total["overhead"] = float(np.dot(_counts(workload), self.overhead))
        return dict(total)

    def bounds(self, workload: Workload) -> tuple[tuple[Bound, float], ...]:
        """Return relative parts of a step: arithmetic, memory traffic, and calls."""
        seconds = self.seconds_by_class(workload)
        launch_s = seconds.pop("overhead")
        dense_s = sum(value for name, value in seconds.items() if name in DENSE)
        memory_s = sum(seconds.values()) - dense_s
        return (("compute", dense_s), ("memory", memory_s), ("launch", launch_s))

    def step_terms(self, workload: Workload) -> NDArray[np.float64]:
        """Return what a step's seconds are linear in: `scales`, then `overhead`."""
        if not workload.operators:
            raise ValueError(
                "the workload holds no operators; trace the model at this batch size with "
                "trace_workload"
            )
        sums_s = [0.0, 0.0]
        for work in workload.operators:
            sums_s[work.operator_class not in DENSE] += work.num_calls * self.operator_s(work)
        return np.array([*sums_s, *_counts(workload)])

    def save(self, path: Path) -> None:
        """Write the rates as JSON."""
        path.write_text(
            json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is no rates file.
        """
        try:
            found: dict[str, Any] = read_json(path)
            if found.pop("format") != FORMAT:
                raise KeyError("format")
            items = found["coefficients"].items()
            return cls(
                coefficients={str(key): _numbers(value) for key, value in items},
                overhead=_numbers(found["overhead"], 3),  # type: ignore[arg-type]  # counted
                scales=_numbers(found["scales"], 2),  # type: ignore[arg-type]
                log_offsets=tuple(np.clip(_numbers(found["log_offsets"], 2), -9, 9).tolist()),
                machine=dict(found["machine"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{path} holds no CPU rates ({shown(error)}); measure them with calibrate_cpu"
            ) from error


def _numbers(values: Any, count: int | None = None) -> tuple[float, ...]:
    column = np.array(values, dtype=np.float64)
    most = MAX_TERMS if count is None else count
    if column.ndim != 1 or not (count or 0) <= len(column) <= most or not np.isfinite(column).all():
        raise ValueError(f"{shown(values)} must be {count or 'up to 8'} finite numbers")
    return tuple(column.tolist())


def kinds_of(work: OperatorWork) -> tuple[str, ...]:
    """Return the kind that prices an operator, then its class as the fallback."""
    kind = work.operator_class
    if kind == "matmul":
        return ("matmul/batched", "matmul") if work.dims and work.dims[0] > 1 else ("matmul",)
    return (f"{kind}/{work.operator}", kind)


def terms_of(work: OperatorWork, kind: str) -> NDArray[np.float64]:
    """Return what the seconds are linear in; never more than eight."""
    moved = work.read_bytes + work.written_bytes
    beyond = [max(moved - size, 0.0) for size in CACHE_BYTES]
    if kind.startswith("matmul") and work.dims:
        batch, m, k, n = work.dims
        sides = [batch, batch * m * k, batch * k * n, batch * m * n]
        return np.array([1.0, work.flops, *sides, *beyond[1:]])
    if kind.startswith(("conv", "depthwise")) and work.dims:
        groups, positions, k, channels = work.dims[:4]
        unfolded = groups * positions * k
        return np.array([1.0, work.flops, moved, k * channels, unfolded, *beyond])
    if kind.startswith("attention") and work.dims:
        batch, heads, queries, keys, _ = work.dims
        return np.array([1.0, work.flops, moved, batch * heads * queries * keys, batch * heads])
    if kind.startswith("recurrent") and work.dims:
        steps, batch, weights = work.dims
        return np.array([1.0, work.flops, steps, moved, steps * weights])
    return np.array([1.0, moved, *beyond, work.written_bytes])


def _counts(workload: Workload) -> tuple[int, int, int]:
    counts = {"forward": 0, "backward": 0, "optimizer": 0}
    for work in workload.operators:
        counts[work.phase] += work.num_calls
    return (workload.num_python_calls, counts["forward"] + counts["backward"], counts["optimizer"])
