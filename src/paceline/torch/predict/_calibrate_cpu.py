"""Measure what operators cost on this machine's CPU, in about ten seconds."""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from paceline.predict.cpu import CpuRates, OperatorTiming, StepTiming, fit_cpu_rates
from paceline.predict.work import Workload
from paceline.torch.predict._trace import record_step
from paceline.torch.predict._trace_setup import ExampleInput, StepSetup, build, inputs_for

NUM_PASSES = 2
MIN_STEPS = 3
STEP_BUDGET_S = 0.03


@dataclass(frozen=True, slots=True)
class Probe:
    """A small model and the batches to run it on.

    Attributes:
        build: Makes the model.
        example_input: As for `trace_workload`.
        batch_sizes: Each is one probe.
        optimizer: Class name in `torch.optim`.
    """

    build: Callable[[], nn.Module]
    example_input: ExampleInput
    batch_sizes: tuple[int, ...]
    optimizer: str = "SGD"


def calibrate_cpu(
    models: Sequence[Probe] = (), *, num_threads: int = 1, probes: Sequence[Probe] | None = None
) -> CpuRates:
    """Time small training steps on this CPU and fit what operators and steps cost.

    Every operator of every probe is timed where it runs, with the cache as its predecessors
    leave it; whole steps are timed apart, without any hook. Takes about ten seconds, plus a
    few steps for each of `models`. Other load makes it wrong.

    Args:
        models: Further models to calibrate on, besides the probes.
        num_threads: Intra-op threads; a prediction holds for the same number.
        probes: In place of the standard ones.

    Returns:
        Rates for `CpuRates.step_time`.
    """
    chosen = [*(standard_probes() if probes is None else probes), *models]
    with threads(num_threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        runs = [
            _ProbeRun(str(number), probe, size)
            for number, probe in enumerate(chosen)
            for size in probe.batch_sizes
        ]
        # Passes over all probes, so that a disturbance does not hit one probe only.
        for _ in range(NUM_PASSES):
            for run in runs:
                run.measure()
    timings = [timing for run in runs for timing in run.operators]
    steps = [run.step() for run in runs]
    return fit_cpu_rates(timings, steps, machine=this_machine(num_threads))


def time_steps(
    model: nn.Module,
    example_input: ExampleInput | None,
    setup: StepSetup,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_steps: int = MIN_STEPS,
    budget_s: float = 0.0,
) -> list[float]:
    """Train for a few steps on one batch and return the seconds of each.

    One step before them warms up. Weights change; the model is where the caller put it.

    Args:
        model: With real weights.
        example_input: As for `trace_workload`.
        setup: Batch size, precision, optimizer and loss.
        input_shape: As for `trace_workload`.
        num_steps: At least so many.
        budget_s: Go on until this much time is used.
    """
    inputs = inputs_for(example_input, input_shape, setup.batch_size)
    optimizer = setup.make_optimizer(model)
    seconds: list[float] = []
    used_s = 0.0
    while len(seconds) <= num_steps or used_s < budget_s:
        begin = perf_counter()
        optimizer.zero_grad()
        setup.loss_of(model, inputs).backward()
        optimizer.step()
        seconds.append(perf_counter() - begin)
        used_s += seconds[-1]
    return seconds[1:]


@contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """Use so many intra-op threads inside, and the former number after."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def this_machine(num_threads: int) -> dict[str, str]:
    """Return where a measurement was made, as plain text."""
    return {
        "processor": _processor(),
        "threads": str(num_threads),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


class _ProbeRun:
    """One probe at one batch size, and what was measured of it."""

    def __init__(self, name: str, probe: Probe, batch_size: int) -> None:
        self._name = name
        self._model, example_input = build(probe.build, probe.example_input)
        self._setup = StepSetup(batch_size=batch_size, optimizer=probe.optimizer)
        self._inputs = inputs_for(example_input, None, batch_size)
        self._workload: Workload | None = None
        self._seconds: list[float] = []
        self.operators: list[OperatorTiming] = []

    def measure(self) -> None:
        """Run a recorded step and a few plain ones."""
        recorder, self._workload = record_step(self._model, self._inputs, self._setup, timed=True)
        timed = zip(recorder.calls, recorder.seconds, strict=True)
        self.operators += (OperatorTiming(work, seconds, self._name) for work, seconds in timed)
        self._seconds += time_steps(
            self._model, lambda _: self._inputs, self._setup, budget_s=STEP_BUDGET_S
        )

    def step(self) -> StepTiming:
        """Return the median step."""
        assert self._workload is not None
        return StepTiming(self._workload, float(np.median(self._seconds)), self._name)


def _processor() -> str:
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int) -> None:
        super().__init__()
        self.rnn = kind(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.rnn(x)[0]


class _Messages(nn.Module):
    """One round of message passing: rows gathered, transformed and summed by index."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> Any:
        messages = torch.relu(self.linear(x))[source]
        return x + torch.zeros_like(x).index_add(0, target, messages)


def _graph(width: int) -> Callable[[int], Any]:
    def inputs(num_nodes: int) -> Any:
        edges = torch.arange(4 * num_nodes) * 7919 % num_nodes
        return torch.randn(num_nodes, width), edges, edges.flip(0)

    return inputs


def _linears(width: int, hidden: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.LayerNorm(hidden),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(hidden, width),
        nn.Tanh(),
        nn.Softmax(-1),
    )


def _convolutions(channels: int, kernel: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.Conv2d(channels, 2 * channels, 1, stride=2),
        nn.SiLU(),
        nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, 10),
    )


def _attention(width: int, heads: int, dropout: float) -> Callable[[], nn.Module]:
    """With dropout, attention runs as single products; without, as one fused operator."""
    return lambda: nn.TransformerEncoderLayer(
        width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )


def standard_probes() -> list[Probe]:
    """Return small models that run every class of operator at several sizes."""
    small, large = (4, 64), (16, 256)
    return [
        *(
            Probe(_linears(width, hidden), torch.zeros(1, width), sizes, optimizer)
            for width, hidden, sizes, optimizer in (
                (32, 64, (8, 128), "SGD"),
                (128, 512, large, "AdamW"),
                (512, 1024, (32, 512), "SGD"),
                (64, 256, (1024, 4096), "Adam"),
            )
        ),
        *(
            Probe(_convolutions(channels, kernel), torch.zeros(1, 3, side, side), sizes, "SGD")
            for channels, kernel, side, sizes in (
                (8, 3, 16, small),
                (16, 5, 32, (4, 32)),
                (32, 3, 32, (8, 32)),
                (64, 1, 16, (8, 32)),
                (64, 3, 8, (16, 64)),
            )
        ),
        *(
            Probe(_attention(width, heads, drop), torch.zeros(1, length, width), sizes, "AdamW")
            for width, heads, length, drop, sizes in (
                (32, 2, 16, 0.1, small),
                (64, 4, 64, 0.1, (4, 32)),
                (128, 8, 128, 0.1, (2, 16)),
                (256, 4, 32, 0.1, (4, 32)),
                (32, 2, 32, 0.0, (8, 64)),
                (64, 4, 128, 0.0, (2, 16)),
                (192, 3, 64, 0.0, (4, 16)),
            )
        ),
        *(
            Probe(_recurrence(kind, width), torch.zeros(1, length, width), sizes, "SGD")
            for kind, width, length, sizes in (
                (nn.LSTM, 32, 16, small),
                (nn.LSTM, 128, 32, (8, 64)),
                (nn.LSTM, 256, 8, (16, 128)),
                (nn.GRU, 64, 16, (8, 64)),
            )
        ),
        *(
            Probe(_rows(num_rows, width), torch.zeros(1, 32, dtype=torch.int64), (8, 128), "SGD")
            for num_rows, width in ((1000, 32), (4000, 64), (8000, 128))
        ),
        *(Probe(_messages(width), _graph(width), (256, 4096), "Adam") for width in (16, 64)),
    ]


def _recurrence(kind: type[nn.LSTM] | type[nn.GRU], width: int) -> Callable[[], nn.Module]:
    return lambda: _Recurrent(kind, width)


def _rows(num_rows: int, width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Embedding(num_rows, width), nn.Linear(width, width))


def _messages(width: int) -> Callable[[], nn.Module]:
    return lambda: _Messages(width)
