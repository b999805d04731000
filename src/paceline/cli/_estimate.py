"""`paceline estimate`: how long a run takes and costs, before it starts."""

import argparse
import importlib
import json
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline._files import shown
from paceline.cli._estimate_choices import (
    PRECISIONS,
    SHARDS,
    Choice,
    choices_in,
    execution_of,
    plot_choices,
    show_choices,
)
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
PROBE_STEPS, PROBE_BUDGET_S = 3, 60.0


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
    estimate.add_argument(
        "--precision", default="32", help="32 (default), 16 (mixed), tf32, bf16 or fp8; or several"
    )
    estimate.add_argument("--optimizer", default="SGD", help="class in torch.optim (default SGD)")
    estimate.add_argument("--device", default="cpu", help="GPUs such as T4,H100, or cpu (default)")
    estimate.add_argument("--workers", default="1", help="data-parallel: 1 (default), 1,8")
    estimate.add_argument("--accumulate", type=int, default=1, help="batches per optimizer step")
    estimate.add_argument(
        "--checkpoint", action="store_true", help="run repeated blocks again in the backward pass"
    )
    estimate.add_argument(
        "--shard", choices=list(SHARDS), default="none",
        help="what workers divide: ZeRO-1, ZeRO-2, or ZeRO-3 and FSDP (default none)",
    )  # fmt: skip
    estimate.add_argument("--channels-last", action="store_true", help="memory format of images")
    estimate.add_argument("--compile", action="store_true", help="the model is compiled")
    estimate.add_argument("--link", help="between workers: 100Gbit/s, 25GB/s, 10Gbit/s+20us")
    estimate.add_argument("--dataset-size", type=int, default=0, help="training examples")
    estimate.add_argument("--epochs", type=float, default=0.0, help="passes over them")
    estimate.add_argument("--price", type=float, help="dollars per hour and worker")
    estimate.add_argument("--predictor", type=Path, help="file from fit (default: the shipped one)")
    estimate.add_argument(
        "--rates", type=Path, help="file of this CPU's rates, written if it is not there"
    )
    estimate.add_argument("--plot", type=Path, help="picture to write: dollars against hours")
    estimate.add_argument(
        "--traceback",
        action="store_true",
        help="print it where the function raised",
    )
    estimate.add_argument("--json", action="store_true", help="print one JSON object")
    estimate.set_defaults(run=run_estimate)


def run_estimate(options: argparse.Namespace) -> int:
    try:
        rows = _estimates(options)
    except ValueError as error:
        if options.traceback and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        raise
    if options.plot is not None:
        plot_choices(rows, options.plot)
    if options.json:
        print(json.dumps(rows[0] if len(rows) == 1 else {"choices": rows}))
    elif len(rows) == 1:
        show(rows[0])
    else:
        show_choices(rows)
    return 0


def _estimates(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one result for each choice; steps that are the same are traced once."""
    from paceline.predict import Device

    choices = choices_in(options)
    wheres = {c: None if c.on_cpu else Device.named(c.device) for c in choices}
    _check_installed(options, any(wheres.values()))
    setups = {choice: _setup(options, choice, where) for choice, where in wheres.items()}
    described: dict[Any, tuple[Workload, StepEstimate | None]] = {}
    rows = []
    for choice, where in wheres.items():
        key = (choice.bits, choice.param_bits, choice.on_cpu)
        if key not in described:
            described[key] = _describe(options, choice)
        rows.append(_row(described[key], choice, where, setups[choice], options))
    return rows


def _row(
    described: "tuple[Workload, StepEstimate | None]",
    choice: Choice,
    where: "Device | None",
    setup: "RunSetup",
    options: argparse.Namespace,
) -> dict[str, Any]:
    from paceline.predict import estimate_run

    workload, measured = described
    own = _own_step(workload, measured, choice, where, options)
    result = as_json(estimate_run(workload, own, setup, device=where), workload, where, setup)
    execution = PRECISIONS[choice.precision]
    return result | {
        "execution": execution, "traced": measured is None, "new_to_predictor": own.new,
    }  # fmt: skip


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


def _setup(options: argparse.Namespace, choice: Choice, where: "Device | None") -> "RunSetup":
    from paceline.predict import Estimate, RunSetup
    from paceline.predict.run import ring_link
    from paceline.predict.work import Sharding

    if options.batch < 1:
        raise ValueError(f"batch must be at least 1, got {options.batch}")
    if not 0 <= options.epochs < float("inf"):
        raise ValueError(f"epochs must be finite and not negative, got {options.epochs}")
    list_price = where.price_per_hour if where else 0.0
    link = None
    if options.link is not None:
        rate, hop_s = parse_link(options.link)
        extra = {} if hop_s is None else {"hop_latency_s": hop_s}
        link = ring_link(rate, choice.num_workers, **extra)
    epochs = Estimate(options.epochs, options.epochs, options.epochs) if options.epochs else None
    return RunSetup(
        num_workers=choice.num_workers,
        link=link,
        micro_batches=options.accumulate,
        sharding=Sharding(num_workers=max(1, choice.num_workers), level=options.shard),
        dataset_size=options.dataset_size,
        epochs=epochs,
        price_per_hour=list_price if options.price is None else options.price,
    )


def _check_installed(options: argparse.Namespace, on_a_gpu: bool) -> None:
    """Name all that is missing at once, before anything is traced."""
    modules = {"torch": "torch"}
    if not options.json:
        modules["rich"] = "report"
    if on_a_gpu:
        modules["lightgbm"] = "predict"
    with needing("estimate", ",".join(modules.values())):
        for module in modules:
            importlib.import_module(module)


def _describe(
    options: argparse.Namespace, choice: Choice
) -> "tuple[Workload, StepEstimate | None]":
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
            precision=choice.bits,
            optimizer=options.optimizer,
            dataset_size=options.dataset_size,
            kernels="cpu" if choice.on_cpu else "gpu",
            num_accumulated=options.accumulate,
            recomputed=options.checkpoint,
            param_bits=choice.param_bits,
        )
        if work.input_kind:
            _say(f"the example input was read as {work.input_kind.replace('batch', 'a batch')}")
        return work, None
    except TraceError as error:
        _say(
            f"{error}; falling back to {PROBE_STEPS} measured steps on this CPU, in about "
            f"{PROBE_BUDGET_S:.0f} s at most"
        )
    setup = StepSetup(
        batch_size=options.batch,
        precision_bits=choice.bits,
        optimizer=options.optimizer,
        num_accumulated=options.accumulate,
        recomputed=options.checkpoint,
        param_bits=choice.param_bits,
    )
    return measure_step(
        function,
        example,
        setup,
        input_shape=shape,
        num_steps=PROBE_STEPS,
        budget_s=PROBE_BUDGET_S,
        say=_say,
    )


def _say(line: str) -> None:
    print(f"paceline: {line}", file=sys.stderr, flush=True)


def _own_step(
    workload: "Workload",
    measured: "StepEstimate | None",
    choice: Choice,
    where: "Device | None",
    options: argparse.Namespace,
) -> "StepEstimate":
    """Return one worker's step: of a device as predicted, of this CPU as measured or by rates."""
    from paceline.predict import StepEstimate, estimate_step

    if where is not None:
        execution = execution_of(choice, options)
        return estimate_step(workload, where, path=options.predictor, execution=execution)
    if measured is not None:
        return measured
    rates = _cpu_rates(options.rates)
    compute = rates.step_time(workload).scaled(options.accumulate)
    return StepEstimate(compute=compute, shares=rates.bounds(workload))


def _cpu_rates(path: Path | None) -> "CpuRates":
    from paceline.predict import CpuRates
    from paceline.torch.predict import calibrate_cpu

    if path is not None and path.exists():
        return CpuRates.load(path)
    _say("measuring this CPU's rates, about ten seconds")
    rates = calibrate_cpu()
    if path is not None:
        rates.save(path)
    return rates
