"""Measure training steps on the device at hand into a table with the columns of CHRONOS."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from paceline.predict.work import Device, Workload
from paceline.torch.predict._calibrate_cpu import this_machine
from paceline.torch.predict._trace import trace_workload
from paceline.torch.predict._trace_setup import ExampleInput, StepSetup, build, inputs_for

FAMILIES = ("CNN", "MLP", "Transformer")
WARM_UP_STEPS, MEASURED_STEPS = 5, 20
CLOCK_HZ = 2e9


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectConfig:
    """What to measure: every combination of the sequences.

    Attributes:
        name: Of the model, as the table shall call it.
        batch_sizes: Examples per step.
        precisions: 32, 16 or both.
        optimizers: Class names in `torch.optim`.
        device: "cpu", "cuda" or "cuda:1".
        dataset: Name for the table.
        dataset_size: Training examples; only written down.
        num_classes: Likewise.
        num_steps: Measured steps of each combination, after five to warm up.
    """

    name: str
    batch_sizes: Sequence[int]
    precisions: Sequence[int] = (32,)
    optimizers: Sequence[str] = ("SGD",)
    device: str = "cpu"
    dataset: str = "synthetic"
    dataset_size: int = 0
    num_classes: int = 0
    num_steps: int = MEASURED_STEPS

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch sizes must be at least 1, got {list(self.batch_sizes)}")
        if self.num_steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.num_steps}")

    def setups(self) -> list[StepSetup]:
        """Return every combination."""
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
    where = _device_row(config.device)
    kept = _read(table)
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
        )
        described = _describe(work, where, config, input_shape)
        found = [row for row in kept if _key(row) == _key(described)]
        if found:
            yield found[0], False
            continue
        row = described | _times(*_measure(model, example_input, input_shape, setup, config))
        kept.append({name: str(value) for name, value in row.items()})
        _write(table, kept)
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
        batch = _to(_collated(examples), target)
        _settle(target)
        middle = perf_counter()
        optimizer.zero_grad()
        setup.loss_of(module, batch).backward()
        optimizer.step()
        _settle(target)
        loader_s.append(middle - begin)
        compute_s.append(perf_counter() - middle)
    return loader_s[WARM_UP_STEPS:], compute_s[WARM_UP_STEPS:]


def _collated(value: Any) -> Any:
    """Stack the examples of a batch anew, as the default loader does."""
    if isinstance(value, torch.Tensor):
        return torch.stack(list(value)) if value.dim() else value
    if isinstance(value, dict):
        return {key: _collated(item) for key, item in value.items()}
    return tuple(map(_collated, value)) if isinstance(value, tuple) else value


def _to(value: Any, target: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(target)
    if isinstance(value, dict):
        return {key: _to(item, target) for key, item in value.items()}
    return tuple(_to(item, target) for item in value) if isinstance(value, tuple) else value


def _settle(target: torch.device) -> None:
    if target.type == "cuda":
        torch.cuda.synchronize(target)


def _times(loader_s: list[float], compute_s: list[float]) -> dict[str, Any]:
    loader, compute = np.array(loader_s) * 1e3, np.array(compute_s) * 1e3
    total = loader + compute
    return {
        "avg_batch_time_ms": float(total.mean()),
        "p90_batch_time_ms": float(np.quantile(total, 0.9)),
        "loader_wait_ms": float(loader.mean()),
        "compute_ms": float(compute.mean()),
        "loader_ratio": float(loader.sum() / total.sum()),
    }


def _describe(
    work: Workload, where: Device, config: CollectConfig, input_shape: tuple[int, ...] | None
) -> dict[str, Any]:
    if work.family not in FAMILIES:
        raise ValueError(
            f"step-time tables are of {', '.join(FAMILIES)}; the trace of {work.name} says "
            f"{work.family}"
        )
    common = {
        "dataset": config.dataset,
        "input_shape": str(tuple(input_shape or ())),
        "num_classes": work.num_classes,
        "dataset_size": work.dataset_size,
        "optimizer": work.optimizer,
        "learning_rate": 1e-3,
        "batch_size": work.batch_size,
        "precision": work.precision_bits,
        "amp": work.precision_bits == 16,
        "model": work.name,
        "architecture": work.family,
        "depth": work.depth,
        "param_count": work.num_params,
        "param_bytes": work.param_bytes,
        "optimizer_state_bytes": work.optimizer_state_bytes,
        "master_param_bytes": work.master_param_bytes,
        "total_state_bytes": work.total_state_bytes,
        "flops_fwd_per_sample": work.forward_flops_per_example,
        "flops_train_per_sample": work.train_flops_per_example,
        "flops_train_per_batch": work.train_flops_per_batch,
    }
    return common | _family_columns(work) | _device_columns(where)


def _family_columns(work: Workload) -> dict[str, Any]:
    if work.family == "Transformer":
        return {
            "seq_len": work.num_tokens,
            "d_model": work.width,
            "d_ff": 4 * work.width,
            "n_heads": work.num_heads,
            "act_bytes_per_seq_proxy": work.activation_bytes_per_example,
        }
    proxy = {"act_bytes_per_sample_proxy": work.activation_bytes_per_example}
    if work.family == "MLP":
        return proxy | {"embed_dim": work.width, "num_patches": work.num_tokens}
    return proxy | {
        "flops_1x1_frac": work.conv_1x1_fraction,
        "flops_3x3_frac": work.conv_3x3_fraction,
        "flops_depthwise_frac": work.depthwise_fraction,
        "flops_grouped_frac": work.grouped_fraction,
        "bn_layers": work.num_norm_layers,
        "act_layers": work.num_activation_layers,
        "sum_hwC": work.sum_conv_outputs,
        "max_hwC": work.max_conv_outputs,
    }


def _device_columns(where: Device) -> dict[str, Any]:
    return {
        "gpu_name": where.name,
        "Boost Clock (MHz)": where.boost_clock_hz / 1e6,
        "Memory (GB)": where.memory_bytes / 2**30,
        "GPU Memory Bandwidth (GB/s)": where.memory_bytes_per_s / 1e9,
        "Cores": where.num_cores,
        "SM": where.num_sms,
        "TC": where.num_tensor_cores,
        "FP16": where.fp16_flops / 1e9,
        "FP32": where.fp32_flops / 1e9,
    }


def _device_row(name: str) -> Device:
    """Return the data sheet of a GPU, or what a short measurement says about this CPU.

    Raises:
        ValueError: If PyTorch has no such device, or its GPU is no row of `devices.csv`.
    """
    kind = name.partition(":")[0]
    if kind == "cuda" and torch.cuda.is_available():
        return Device.named(torch.cuda.get_device_name(name))
    if kind != "cpu":
        raise ValueError(f"device must be cpu, or cuda where PyTorch sees a GPU, got {name!r}")
    return _measured_cpu()


def _measured_cpu(side: int = 512, num_values: int = 1 << 23) -> Device:
    square, values = torch.randn(side, side), torch.randn(num_values)
    flops = 2 * side**3 / _best_s(lambda: square @ square)
    cores = os.cpu_count() or 1
    return Device(
        name=f"cpu {this_machine(torch.get_num_threads())['processor']}",
        fp32_flops=flops,
        fp16_flops=flops,
        tensor_flops=flops,
        memory_bytes_per_s=8 * num_values / _best_s(lambda: values + 1.0),
        memory_bytes=_memory_bytes(),
        num_cores=cores,
        num_sms=cores,
        num_tensor_cores=0,
        boost_clock_hz=CLOCK_HZ,
        price_per_hour=0.0,
        source="measured",
    )


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _best_s(call: Callable[[], Any], num_calls: int = 5) -> float:
    seconds = []
    for _ in range(num_calls):
        begin = perf_counter()
        call()
        seconds.append(perf_counter() - begin)
    return min(seconds)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    names = ("model", "dataset", "optimizer", "batch_size", "precision", "gpu_name")
    return tuple(str(row[name]) for name in names)


def _read(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"compute_ms", "loader_wait_ms", "gpu_name"} <= set(rows[0]):
        raise ValueError(f"{table} is no table of collect; pass another --output")
    return rows


def _write(table: Path, rows: list[dict[str, str]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table.parent.mkdir(parents=True, exist_ok=True)
    partial = table.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(table)
