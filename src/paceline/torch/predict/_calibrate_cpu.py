"""Measure what operators cost on this machine's CPU, in about ten seconds."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import torch

from paceline.predict.cpu import CpuRates, OperatorTiming, StepTiming, fit_cpu_rates
from paceline.predict.work import Workload
from paceline.torch.model import processor_name
from paceline.torch.predict._calibration_models import TimedModel, standard_models
from paceline.torch.predict._measured_step import threads, time_steps
from paceline.torch.predict._trace import record_step
from paceline.torch.predict._trace_setup import StepSetup, build, inputs_for

NUM_PASSES = 2
STEP_BUDGET_S = 0.03


def calibrate_cpu(
    models: Sequence[TimedModel] = (), *, num_threads: int = 1, with_standard: bool = True
) -> CpuRates:
    """Time small training steps on this CPU and fit what operators and steps cost.

    Every operator of every model is timed where it runs, with the cache as its predecessors
    leave it; whole steps are timed apart, without any hook. Takes about ten seconds, plus a
    few steps for each of `models`. Other load makes it wrong.

    Args:
        models: Further models to calibrate on, besides the standard ones.
        num_threads: Intra-op threads; a prediction holds for the same number.
        with_standard: Whether to time the standard models too.

    Returns:
        Rates for `CpuRates.step_time`.
    """
    chosen = [*(standard_models() if with_standard else ()), *models]
    with threads(num_threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        runs = [
            _ModelRun(str(number), model, size)
            for number, model in enumerate(chosen)
            for size in model.batch_sizes
        ]
        # Passes over all models, so that a disturbance does not hit one model only.
        for _ in range(NUM_PASSES):
            for run in runs:
                run.measure()
    timings = [timing for run in runs for timing in run.operators]
    return fit_cpu_rates(timings, [run.step() for run in runs], machine=this_machine(num_threads))


def this_machine(num_threads: int) -> dict[str, str]:
    return {
        "processor": processor_name(),
        "threads": str(num_threads),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


class _ModelRun:
    """One model at one batch size, and what was measured of it."""

    def __init__(self, name: str, timed: TimedModel, batch_size: int) -> None:
        self._name = name
        self._model, example_input = build(timed.build, timed.example_input)
        self._setup = StepSetup(batch_size=batch_size, optimizer=timed.optimizer)
        self._inputs = inputs_for(example_input, None, batch_size)
        self._workload: Workload | None = None
        self._seconds: list[float] = []
        self.operators: list[OperatorTiming] = []

    def measure(self) -> None:
        recorder, self._workload = record_step(self._model, self._inputs, self._setup, timed=True)
        timed = zip(recorder.calls, recorder.seconds, strict=True)
        self.operators += (OperatorTiming(work, seconds, self._name) for work, seconds in timed)
        self._seconds += time_steps(
            self._model, lambda _: self._inputs, self._setup, budget_s=STEP_BUDGET_S
        )

    def step(self) -> StepTiming:
        assert self._workload is not None
        return StepTiming(self._workload, float(np.median(self._seconds)), self._name)
