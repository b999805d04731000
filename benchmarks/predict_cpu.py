"""Claim: after ten seconds of calibration, CPU steps are predicted within 15 % (median)."""

import os
import time
from typing import Any

import numpy as np
import torch
from _predict_models import calibration_models, test_models
from _record import finish, parser, spread

from paceline.predict.remaining import RemainingTime
from paceline.torch.predict import (
    StepSetup,
    TimedModel,
    build,
    calibrate_cpu,
    inputs_for,
    threads,
    time_steps,
    trace_workload,
)

NUM_PASSES, MIN_STEPS, PASS_BUDGET_S = 4, 3, 0.15
FIRST_STEPS, NEXT_STEPS = 20, 200


def measure_all(timed_models: dict[str, TimedModel]) -> dict[tuple[str, int], float]:
    """Return the median step of each model and batch size, over passes spread in time."""
    keys = [(name, size) for name, timed in timed_models.items() for size in timed.batch_sizes]
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    models = {name: timed.build() for name, timed in timed_models.items()}
    for _ in range(NUM_PASSES):
        for name, size in keys:
            setup = StepSetup(batch_size=size, optimizer=timed_models[name].optimizer)
            seconds[name, size] += time_steps(
                models[name],
                timed_models[name].example_input,
                setup,
                num_steps=MIN_STEPS,
                budget_s=PASS_BUDGET_S,
            )
    return {key: float(np.median(values)) for key, values in seconds.items()}


def remaining_errors(timed: TimedModel, batch_size: int) -> dict[str, float]:
    """Return relative errors of 200 steps' time, predicted from the 20 before them.

    In wall-clock seconds, and in CPU seconds, which other load on the machine disturbs less.
    """
    model, example_input = build(timed.build, timed.example_input)
    setup = StepSetup(batch_size=batch_size, optimizer=timed.optimizer)
    inputs = inputs_for(example_input, None, batch_size)
    optimizer = setup.make_optimizer(model)
    marks = []
    for _ in range(FIRST_STEPS + NEXT_STEPS + 1):
        marks.append((time.perf_counter(), time.process_time()))
        setup.train(model, inputs, optimizer)
    wall_s, cpu_s = np.diff(marks, axis=0).T
    return {"wall": remaining_error(wall_s), "cpu": remaining_error(cpu_s)}


def remaining_error(seconds: "np.ndarray[Any, Any]") -> float:
    left = RemainingTime(len(seconds))
    for step_s in seconds[:FIRST_STEPS]:
        left.update(float(step_s))
    return float(left.remaining().median / seconds[FIRST_STEPS:].sum() - 1.0)


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    timed_models, load = test_models(), os.getloadavg()[0]
    with threads(1):
        torch.manual_seed(0)
        begin = time.perf_counter()
        rates = calibrate_cpu(calibration_models())
        calibration_s = time.perf_counter() - begin
        measured = measure_all(timed_models)
        remaining = {
            name: remaining_errors(timed, timed.batch_sizes[0])
            for name, timed in timed_models.items()
        }
    rows: list[dict[str, Any]] = []
    for (name, size), seconds in measured.items():
        timed = timed_models[name]
        work = trace_workload(
            timed.build,
            timed.example_input,
            batch_size=size,
            optimizer=timed.optimizer,
            kernels="cpu",
        )
        estimate = rates.step_time(work)
        rows.append(
            {
                "model": name,
                "batch_size": size,
                "measured_s": seconds,
                "predicted_s": estimate.median,
                "low_s": estimate.low,
                "high_s": estimate.high,
                "relative_error": estimate.median / seconds - 1.0,
            }
        )
    errors = np.abs([row["relative_error"] for row in rows])
    result = {
        "calibration_s": calibration_s,
        "rows": rows,
        "absolute_relative_error": spread(errors),
        "share_inside_interval": float(
            np.mean([row["low_s"] <= row["measured_s"] <= row["high_s"] for row in rows])
        ),
        "remaining_relative_error": remaining,
        "remaining_absolute_relative_error": {
            clock: spread(np.abs([errors[clock] for errors in remaining.values()]))
            for clock in ("wall", "cpu")
        },
        "load_average": load,
        "intra_op_threads": 1,
    }
    finish("predict_cpu", options, result, "torch")


if __name__ == "__main__":
    main()
