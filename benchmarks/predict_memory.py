"""Claim: a training step's peak memory on a CPU is predicted within 15 % from its trace alone."""

from typing import Any

import numpy as np
import torch
from _predict_models import calibration_models, test_models
from _record import finish, parser, spread

from paceline.predict import MemoryEstimate, estimate_memory
from paceline.testing import measure_peak_bytes
from paceline.torch.predict import StepSetup, TimedModel, threads, trace_workload

OPTIMIZERS = ("SGD", "AdamW")


def all_models() -> dict[str, TimedModel]:
    small = zip(("small MLP", "small CNN", "small transformer"), calibration_models(), strict=True)
    return {**dict(small), **test_models()}


def row_of(name: str, timed: TimedModel, batch_size: int, optimizer: str) -> dict[str, Any]:
    """Return one step's measured peak, and the peak predicted from two traces.

    One trace is of the step itself, the other of the model's smallest batch.
    """
    setup = StepSetup(batch_size=batch_size, optimizer=optimizer)
    measured = measure_peak_bytes(timed.build, timed.example_input, setup)
    own, small = (
        predicted_memory(timed, traced_size, optimizer, batch_size)
        for traced_size in (batch_size, timed.batch_sizes[0])
    )
    return {
        "model": name,
        "batch_size": batch_size,
        "smallest_batch_size": timed.batch_sizes[0],
        "optimizer": optimizer,
        "measured_peak_bytes": measured,
        "predicted_peak_bytes": own.peak,
        "relative_error": own.peak / measured - 1.0,
        "relative_error_from_smallest_batch": small.peak / measured - 1.0,
        "predicted_fullest_phase": own.fullest.phase,
    }


def predicted_memory(
    timed: TimedModel, traced_size: int, optimizer: str, batch_size: int
) -> MemoryEstimate:
    work = trace_workload(
        timed.build,
        timed.example_input,
        batch_size=traced_size,
        optimizer=optimizer,
        kernels="cpu",
    )
    return estimate_memory(work.with_batch_size(batch_size), foreach=False)


def summary(errors: list[float]) -> dict[str, Any]:
    size = np.abs(errors)
    return {
        "absolute_relative_error": spread(size),
        "worst_absolute_relative_error": float(size.max()),
        "largest_underestimate": min(errors),
        "largest_overestimate": max(errors),
    }


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    with threads(1):
        torch.manual_seed(0)
        rows = [
            row_of(name, timed, batch_size, optimizer)
            for name, timed in all_models().items()
            for batch_size in (timed.batch_sizes[0], timed.batch_sizes[-1])
            for optimizer in OPTIMIZERS
        ]
    large = [row for row in rows if row["batch_size"] > row["smallest_batch_size"]]
    result = {
        "rows": rows,
        "same_batch": summary([row["relative_error"] for row in rows]),
        "large_from_smallest_batch": summary(
            [row["relative_error_from_smallest_batch"] for row in large]
        ),
        "intra_op_threads": 1,
    }
    finish("predict_memory", options, result, "torch")


if __name__ == "__main__":
    main()
