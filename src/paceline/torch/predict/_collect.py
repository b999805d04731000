"""Measure training steps on the device at hand into a table with the columns of CHRONOS."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from timeit import repeat
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from paceline.predict.work import Device
from paceline.torch.predict._calibrate_cpu import this_machine
from paceline.torch.predict._collect_table import described, key_of, read_rows, timed, write_rows
from paceline.torch.predict._trace import trace_workload
from paceline.torch.predict._trace_setup import ExampleInput, StepSetup, build, inputs_for

WARM_UP_STEPS, MEASURED_STEPS = 5, 20
CLOCK_HZ = 2e9


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectConfig:
    """What to measure: every combination of the sequences."""

    name: str  # of the model in the table
    batch_sizes: Sequence[int]  # examples per step
    precisions: Sequence[int] = (32,)  # 32, 16 or both
    optimizers: Sequence[str] = ("SGD",)  # class names in `torch.optim`
    device: str = "cpu"  # "cpu", "cuda" or "cuda:1"
    dataset: str = "synthetic"  # name for the table
    dataset_size: int = 0  # training examples; only written down
    num_classes: int = 0  # likewise
    num_steps: int = MEASURED_STEPS  # measured steps of each combination, after five to warm up

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch sizes must be at least 1, got {list(self.batch_sizes)}")
        if self.num_steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.num_steps}")

    def setups(self) -> list[StepSetup]:
        return [
            StepSetup(batch_size=size, precision_bits=bits, optimizer=optimizer)
            for optimizer, bits, size in product(self.optimizers, self.precisions, self.batch_sizes)
        ]


def collect_steps(
    model: nn.Module | Callable[[], Any],
    example_input: ExampleInput | None,
    config: CollectConfig,
    table: Path,
    *,
    input_shape: tuple[int, ...] | None = None,
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Measure every combination that the table lacks, and add a row for each.

    The table is rewritten as a whole after each row, so that it is complete at any time and a
    later call goes on where this one ended.

    Args:
        model: As for `trace_workload`; a function makes a fresh model for each combination.
        example_input: As for `trace_workload`.
        config: What to measure.
        table: CSV file, made if it is not there.
        input_shape: As for `trace_workload`.

    Yields:
        Each combination's row, and whether it was measured now.

    Raises:
        TraceError: If the model cannot be traced, so that its columns are not known.
        ValueError: If its family has no tables, or the file has other columns.
    """
    where = device_at(config.device)
    kept = read_rows(table)
    for setup in config.setups():
        work = trace_workload(
            model,
            example_input,
            input_shape=input_shape,
            batch_size=setup.batch_size,
            precision=setup.precision_bits,
            optimizer=setup.optimizer,
            dataset_size=config.dataset_size,
            num_classes=config.num_classes,
            name=config.name,
            kernels="cpu" if config.device.startswith("cpu") else "gpu",
        )
        row = described(work, where, dataset=config.dataset, input_shape=input_shape)
        found = [other for other in kept if key_of(other) == key_of(row)]
        if found:
            yield found[0], False
            continue
        row |= timed(*_measure(model, example_input, input_shape, setup, config))
        kept.append({name: str(value) for name, value in row.items()})
        write_rows(table, kept)
        yield row, True


def _measure(
    model: nn.Module | Callable[[], Any],
    example_input: ExampleInput | None,
    input_shape: tuple[int, ...] | None,
    setup: StepSetup,
    config: CollectConfig,
) -> tuple[list[float], list[float]]:
    """Return seconds to make a batch, and seconds to compute a step, of each measured step."""
    target = torch.device(config.device)
    module, example_input = build(model, example_input, input_shape)
    module = module.to(target).train()
    examples = inputs_for(example_input, input_shape, setup.batch_size)
    optimizer = setup.make_optimizer(module)
    loader_s, compute_s = [], []
    for _ in range(WARM_UP_STEPS + config.num_steps):
        begin = perf_counter()
        batch = tree_map(partial(_collated, target=target), examples)
        _settle(target)
        middle = perf_counter()
        setup.train(module, batch, optimizer)
        _settle(target)
        loader_s.append(middle - begin)
        compute_s.append(perf_counter() - middle)
    return loader_s[WARM_UP_STEPS:], compute_s[WARM_UP_STEPS:]


def _collated(value: Any, target: torch.device) -> Any:
    """Stack the examples of a batch anew, as the default loader does, and move them."""
    if not isinstance(value, torch.Tensor):
        return value
    return (torch.stack(list(value)) if value.dim() else value).to(target)


def _settle(target: torch.device) -> None:
    if target.type == "cuda":
        torch.cuda.synchronize(target)


def device_at(name: str) -> Device:
    """Return the row of a GPU, or what a short measurement says about this CPU."""
    kind = name.partition(":")[0]
    if kind == "cuda" and torch.cuda.is_available():
        return Device.named(torch.cuda.get_device_name(name))
    if kind != "cpu":
        raise ValueError(f"device must be cpu, or cuda where PyTorch sees a GPU, got {name!r}")
    return _measured_cpu()


def _measured_cpu(side: int = 512, num_values: int = 1 << 23) -> Device:
    square, values = torch.randn(side, side), torch.randn(num_values)
    matmul_s = min(repeat(lambda: square @ square, number=1, repeat=5))
    add_s = min(repeat(lambda: values + 1.0, number=1, repeat=5))
    flops = 2 * side**3 / matmul_s
    cores = os.cpu_count() or 1
    return Device(
        name=f"cpu {this_machine(torch.get_num_threads())['processor']}",
        fp32_flops=flops,
        fp16_flops=flops,
        tensor_flops=flops,
        memory_bytes_per_s=8 * num_values / add_s,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        num_cores=cores,
        num_sms=cores,
        num_tensor_cores=0,
        boost_clock_hz=CLOCK_HZ,
        price_per_hour=0.0,
        source="measured",
    )
