"""Rows of a step-time table: the columns of CHRONOS, read and written."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from paceline._files import read_csv
from paceline.predict.work import Device, Workload

FAMILIES = ("CNN", "MLP", "Transformer")


def described(
    work: Workload, where: Device, *, dataset: str, input_shape: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Return the columns that say what was run and on what."""
    if work.family not in FAMILIES:
        raise ValueError(
            f"step-time tables are of {', '.join(FAMILIES)}; the trace of {work.name} says "
            f"{work.family}"
        )
    return {
        "dataset": dataset,
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
        **_family_columns(work),
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


def timed(loader_s: list[float], compute_s: list[float]) -> dict[str, Any]:
    """Return the columns of seconds to make a batch and to compute, of each measured step."""
    loader, compute = np.array(loader_s) * 1e3, np.array(compute_s) * 1e3
    total = loader + compute
    return {
        "avg_batch_time_ms": float(total.mean()),
        "p90_batch_time_ms": float(np.quantile(total, 0.9)),
        "loader_wait_ms": float(loader.mean()),
        "compute_ms": float(compute.mean()),
        "loader_ratio": float(loader.sum() / total.sum()),
    }


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    names = ("model", "dataset", "optimizer", "batch_size", "precision", "gpu_name")
    return tuple(str(row[name]) for name in names)


def read_rows(table: Path) -> list[dict[str, str]]:
    """Return the rows that a table holds, none if it is not there."""
    if not table.exists():
        return []
    _, rows = read_csv(table)
    if rows and not {"compute_ms", "loader_wait_ms", "gpu_name"} <= set(rows[0]):
        raise ValueError(f"{table} is no table of collect; pass another --output")
    return rows


def write_rows(table: Path, rows: list[dict[str, str]]) -> None:
    """Replace the table as a whole, so that it is complete at any time."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table.parent.mkdir(parents=True, exist_ok=True)
    partial = table.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(table)
