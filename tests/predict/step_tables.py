"""Small made-up step-time tables with the columns of the real ones."""

import csv
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np

GPUS: dict[str, Mapping[str, float]] = {
    "Tesla T4": {"FP16": 65130, "FP32": 8141, "bw": 320, "cores": 2560, "sm": 40, "tc": 320},
    "Tesla V100-SXM2-16GB": {
        "FP16": 31330,
        "FP32": 15670,
        "bw": 897,
        "cores": 5120,
        "sm": 80,
        "tc": 640,
    },
    "NVIDIA L4": {"FP16": 30290, "FP32": 30290, "bw": 300, "cores": 7424, "sm": 60, "tc": 240},
    "NVIDIA H100 PCIe": {
        "FP16": 204900,
        "FP32": 51220,
        "bw": 2040,
        "cores": 14592,
        "sm": 114,
        "tc": 456,
    },
}
MODELS = {"mixer": (8, 2e8, 1.5e6), "resmlp": (12, 5e8, 5e6), "asmlp": (10, 9e8, 7e6)}
DATASETS = {"STL10": ("(3, 96, 96)", 5000, 0.3), "CIFAR100": ("(3, 32, 32)", 50000, 0.05)}
DATASETS["TinyImageNet"] = ("(3, 64, 64)", 100000, 1.5)


def mlp_rows(seed: int = 0, noise: float = 0.05) -> list[dict[str, object]]:
    """Rows of an MLP table whose times follow a roofline with noise, 288 of them."""
    rng = np.random.default_rng(seed)
    choices = product(GPUS, MODELS, DATASETS, (32, 128), (16, 32), ("SGD", "AdamW"))
    return [_row(rng, noise, *choice) for choice in choices]


def _row(
    rng: np.random.Generator,
    noise: float,
    gpu_name: str,
    model: str,
    dataset: str,
    batch: int,
    precision: int,
    optimizer: str,
) -> dict[str, object]:
    gpu, (depth, flops, params) = GPUS[gpu_name], MODELS[model]
    shape, num_examples, loader_ms = DATASETS[dataset]
    rate = gpu["FP16"] if precision == 16 else gpu["FP32"]
    launch = 3.0 + depth * (1.0 + 0.2 * (precision == 16) + 0.1 * (optimizer != "SGD"))
    work = 3 * flops * batch / rate / 1e6 * 2
    compute = float(np.hypot(launch, work) * np.exp(rng.normal(0, noise)))
    loader = max(0.1, loader_ms * batch - compute)
    return {
        "dataset": dataset,
        "input_shape": shape,
        "dataset_size": num_examples,
        "optimizer": optimizer,
        "batch_size": batch,
        "precision": precision,
        "model": model,
        "architecture": "MLP",
        "embed_dim": 128,
        "depth": depth,
        "param_count": params,
        "avg_batch_time_ms": compute + loader,
        "avg_loader_ms": loader,
        "avg_compute_ms": compute,
        "flops_train_per_batch": 3 * flops * batch,
        "act_bytes_per_sample_proxy": 64 * 128 * 4,
        "gpu_name": gpu_name,
        "FP16": gpu["FP16"],
        "FP32": gpu["FP32"],
        "GPU Memory Bandwidth (GB/s)": gpu["bw"],
        "Cores": gpu["cores"],
        "SM": gpu["sm"],
        "TC": gpu["tc"],
        "Boost Clock (MHz)": 1600,
    }


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows to one CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
