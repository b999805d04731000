"""`paceline estimate`: how long a run takes and costs, before it starts."""

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline._files import shown
from paceline.cli._estimate_report import as_json, show
from paceline.cli._model_flags import add_model_flags, example_input, load_function, needing
from paceline.errors import TraceError

# NumPy, numba and torch take seconds to import: what needs them is imported inside functions.
if TYPE_CHECKING:
    from paceline.predict import CpuRates, Device, RunSetup, StepEstimate, Workload

LINK_PATTERN = re.compile(
    r"\s*([0-9.eE]+)\s*([KMGT]?)(i?)(bit|b|B)(?:/s|ps)?\s*(?:\+\s*([0-9.eE]+)\s*(us|ms|s))?\s*"
)
LATENCY_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
PROBE_STEPS = 3


def add_estimate(commands: Any) -> None:
    estimate = commands.add_parser(
        "estimate",
        help="predict time, cost and memory of a training run",
        description="Predict time, cost and memory of a training run. With several workers the "
        "step is simulated from predicted layers; on the device cpu it follows from rates "
        "measured on this machine in about ten seconds.",
    )
    add_model_flags(estimate)
    estimate.add_argument("--batch", type=int, required=True, help="examples per step and worker")
    estimate.add_argument("--precision", type=int, default=32, help="32 or 16 (default 32)")
    estimate.add_argument("--optimizer", default="SGD", help="class in torch.optim (default SGD)")
    estimate.add_argument("--device", default="cpu", help="GPU by name, or cpu (default)")
    estimate.add_argument("--workers", type=int, default=1, help="data-parallel (default 1)")
    estimate.add_argument("--link", help="between workers: 100Gbit/s, 25GB/s, 10Gbit/s+20us")
    estimate.add_argument("--dataset-size", type=int, default=0, help="training examples")
    estimate.add_argument("--epochs", type=float, default=0.0, help="passes over them")
    estimate.add_argument("--price", type=float, help="dollars per hour and worker")
    estimate.add_argument("--predictor", type=Path, help="file from fit (default: the shipped one)")
    estimate.add_argument(
        "--rates", type=Path, help="file of this CPU's rates, written if it is not there"
    )
    estimate.add_argument("--json", action="store_true", help="print one JSON object")
    estimate.set_defaults(run=run_estimate)


def run_estimate(options: argparse.Namespace) -> int:
    from paceline.predict import Device, estimate_run

    where = None if options.device.lower() == "cpu" else Device.named(options.device)
    _check_installed(options, where)
    setup = _setup(options, where)
    workload, measured = _describe(options)
    own = _own_step(workload, measured, where, options)
    found = estimate_run(workload, own, setup, device=where)
    result = as_json(found, workload, where, setup)
    result |= {"traced": measured is None, "new_to_predictor": own.new}
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


def parse_link(text: str) -> tuple[float, float | None]:
    """Return bytes per second, and seconds of latency of a hop if given.

    Examples:
        >>> parse_link("100Gbit/s")
        (12500000000.0, None)
        >>> parse_link("25GB/s+1ms")
        (25000000000.0, 0.001)
    """
    found = LINK_PATTERN.fullmatch(text)
    rate = _number(found.group(1)) if found else 0.0
    if found is None or not 0 < rate < float("inf"):
        raise ValueError(
            "link must be a positive rate such as 100Gbit/s or 25GB/s, with +10us for the latency "
            f"of a hop, got {shown(text)}"
        )
    _, prefix, binary, unit, latency, latency_unit = found.groups()
    power = " KMGT".index(prefix) if prefix else 0
    bytes_per_s = rate * (1024.0 if binary else 1000.0) ** power / (1 if unit == "B" else 8)
    return bytes_per_s, _number(latency) * LATENCY_UNITS[latency_unit] if latency else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _setup(options: argparse.Namespace, where: "Device | None") -> "RunSetup":
    from paceline.predict import Estimate, RunSetup
    from paceline.predict.run import ring_link

    if options.batch < 1:
        raise ValueError(f"batch must be at least 1, got {options.batch}")
    if not 0 <= options.epochs < float("inf"):
        raise ValueError(f"epochs must be finite and not negative, got {options.epochs}")
    list_price = where.price_per_hour if where else 0.0
    link = None
    if options.link is not None:
        rate, hop_s = parse_link(options.link)
        extra = {} if hop_s is None else {"hop_latency_s": hop_s}
        link = ring_link(rate, options.workers, **extra)
    epochs = Estimate(options.epochs, options.epochs, options.epochs) if options.epochs else None
    return RunSetup(
        num_workers=options.workers,
        link=link,
        dataset_size=options.dataset_size,
        epochs=epochs,
        price_per_hour=list_price if options.price is None else options.price,
    )


def _check_installed(options: argparse.Namespace, where: "Device | None") -> None:
    """Name all that is missing at once, before anything is traced."""
    modules = {"torch": "torch"}
    if not options.json:
        modules["rich"] = "report"
    if where is not None:
        modules["lightgbm"] = "predict"
    with needing("estimate", ",".join(modules.values())):
        for module in modules:
            importlib.import_module(module)


def _describe(options: argparse.Namespace) -> "tuple[Workload, StepEstimate | None]":
    """Trace the model; if that fails, run it here and say so."""
    from paceline.torch.predict import StepSetup, measure_step, trace_workload

    function = load_function(options.model)
    example, shape = example_input(options.input_shape)
    try:
        work = trace_workload(
            function,
            example,
            input_shape=shape,
            batch_size=options.batch,
            precision=options.precision,
            optimizer=options.optimizer,
            dataset_size=options.dataset_size,
        )
        return work, None
    except TraceError as error:
        print(
            f"paceline: {error}; falling back to {PROBE_STEPS} measured steps on this CPU",
            file=sys.stderr,
        )
    setup = StepSetup(
        batch_size=options.batch, precision_bits=options.precision, optimizer=options.optimizer
    )
    return measure_step(function, example, setup, input_shape=shape, num_steps=PROBE_STEPS)


def _own_step(
    workload: "Workload",
    measured: "StepEstimate | None",
    where: "Device | None",
    options: argparse.Namespace,
) -> "StepEstimate":
    """Return one worker's step: of a device as predicted, of this CPU as measured or by rates."""
    from paceline.predict import StepEstimate, estimate_step

    if where is not None:
        return estimate_step(workload, where, path=options.predictor)
    if measured is not None:
        return measured
    rates = _cpu_rates(options.rates)
    return StepEstimate(compute=rates.step_time(workload), shares=rates.bounds(workload))


def _cpu_rates(path: Path | None) -> "CpuRates":
    from paceline.predict import CpuRates
    from paceline.torch.predict import calibrate_cpu

    if path is not None and path.exists():
        return CpuRates.load(path)
    print("paceline: measuring this CPU's rates, about ten seconds", file=sys.stderr)
    rates = calibrate_cpu()
    if path is not None:
        rates.save(path)
    return rates
