"""Claim: published training throughputs that no table held are predicted, with honest intervals.

`predict_published.csv` holds *measured* throughputs of one GPU as their authors published them,
with the source of each row; `predict_published_cnns.csv` the work of its convolutional models,
traced once by `trace_workload` from torchvision's and timm's definitions. Transformers are counted
from their published shapes. Half of the rows, drawn by a checksum of source and model, was looked
at while the predictor was developed; the other half was scored at the end. Beside it: arithmetic at
35 % of the peak rate, and the textbook roofline at full rates.
"""

import argparse
import csv
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _record import finish, parser

import paceline.predict
from paceline.predict import Device, Workload, load_step_predictor
from paceline.predict.step import Execution, step_row

HERE = Path(__file__).parent
SHIPPED = Path(paceline.predict.__file__).parent / "predictor.json"
MFU = 0.35
HALVES = ("development", "kept")


class Shape(NamedTuple):
    """A transformer as its paper or configuration describes it."""

    num_params: float
    depth: int
    width: int
    key_width: int  # of all key heads together
    hidden: int  # of the perceptron, times its number of input products
    vocabulary: int  # that every position is projected to; 0 without such a head


SHAPES = {
    # Devlin et al. 2018; heads over masked positions or spans are left out.
    "bert_large": Shape(0.336e9, 24, 1024, 1024, 2 * 4096, 0),
    "gpt3_5b": Shape(5.05e9, 24, 4096, 4096, 2 * 16384, 51200),  # NeMo's configuration
    "llama2_7b": Shape(6.74e9, 32, 4096, 4096, 3 * 11008, 32000),  # Touvron et al. 2023
    "llama3_8b": Shape(8.03e9, 32, 4096, 1024, 3 * 14336, 128256),  # Grattafiori et al. 2024
}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def half_of(row: Mapping[str, str]) -> str:
    return HALVES[zlib.crc32(f"{row['source']}|{row['model']}".encode()) % 2]


def execution_of(row: Mapping[str, str]) -> Execution:
    shards = int(row["num_shards"])
    return Execution(
        precision=row["precision"],  # type: ignore[arg-type]
        channels_last=row["channels_last"] == "1",
        compiled=row["compiled"] == "1",
        micro_batches=int(row["micro_batches"]),
        sharding="optimizer" if shards > 1 else "none",
        num_shards=shards,
    )


def workload_of(row: Mapping[str, str], cnns: Mapping[str, Mapping[str, str]]) -> Workload:
    """One micro-batch of the row's model."""
    bits = execution_of(row).precision_bits
    common: dict[str, Any] = {
        "name": row["model"],
        "batch_size": int(row["batch_size"]),
        "precision_bits": bits,
        "optimizer": row["optimizer"],
    }
    if row["model"] in SHAPES:
        return _transformer(SHAPES[row["model"]], int(row["num_tokens"]), bits // 8, common)
    made = cnns[row["model"]]
    whole = ("num_params", "depth", "num_norm_layers", "num_activation_layers", "num_kernels")
    shares = ("conv_1x1_fraction", "conv_3x3_fraction", "depthwise_fraction")
    counted: dict[str, Any] = {name: int(made[name]) for name in whole}
    counted |= {name: float(made[name]) for name in shares}
    return Workload(
        family="CNN",
        forward_flops_per_example=1e9 * float(made["forward_gflops"]),
        activation_bytes_per_example=1e6 * float(made["activation_mb"]) * bits / 32,
        example_bytes=3.0 * int(made["image_side"]) ** 2,
        **common,
        **counted,
    )


def _transformer(
    shape: Shape, num_tokens: int, value_bytes: int, common: dict[str, Any]
) -> Workload:
    """Counted as the tables' transformers are; see `read_step_tables`."""
    projections = 4 * shape.width * (shape.width + shape.key_width)
    per_token = projections + 2 * shape.width * shape.hidden + 4 * num_tokens * shape.width
    head = 2 * shape.width * shape.vocabulary
    return Workload(
        family="Transformer",
        num_params=int(shape.num_params),
        depth=shape.depth,
        forward_flops_per_example=num_tokens * (shape.depth * per_token + head),
        activation_bytes_per_example=5.0 * num_tokens * shape.width * value_bytes,
        num_norm_layers=2 * shape.depth + 1,
        num_activation_layers=2 * shape.depth,
        num_kernels=12 * shape.depth + 1,
        width=shape.width,
        num_tokens=num_tokens,
        example_bytes=8.0 * num_tokens,
        **common,
    )


def baselines(work: Workload, device: Device, execution: Execution) -> dict[str, float]:
    """Seconds of an optimizer step: arithmetic at 35 % of the peak, and the textbook roofline."""
    flops = work.train_flops_per_batch * execution.micro_batches
    has_tf32 = device.num_tensor_cores and device.tensor_flops > 2 * device.fp32_flops
    peak = device.peak_flops(work.precision_bits)
    if execution.precision == "fp8":
        peak = max(peak, device.fp8_flops)
    if execution.precision == "tf32" and has_tf32:
        peak = device.tensor_flops / 2
    passes = 3 * work.activation_bytes_per_example * work.batch_size * execution.micro_batches
    depth = work.depth / 5 if work.family == "Transformer" else 1.0
    moved = depth * passes + 4 * work.param_bytes
    return {
        "35 % of peak": flops / peak / MFU,
        "roofline": max(flops / peak, moved / device.memory_bytes_per_s),
    }


def scores(found: list[dict[str, Any]], key: str) -> dict[str, float]:
    ratio = np.array([row[key] / row["measured_s"] for row in found])
    error = 100 * np.abs(ratio - 1)
    inside = [row["low_s"] <= row["measured_s"] <= row["high_s"] for row in found]
    scored = {
        "num_rows": len(found),
        "mape": round(float(error.mean()), 1),
        "median_error": round(float(np.median(error)), 1),
        "geometric_mean_ratio": round(float(np.exp(np.log(ratio).mean())), 3),
    }
    return scored | ({"inside": round(100 * float(np.mean(inside)), 1)} if key == "ours" else {})


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    by = {
        name: {
            value: scores([row for row in found if row[name] == value], "ours")
            for value in sorted({row[name] for row in found})
        }
        for name in ("device", "family", "precision")
    }
    return {key: scores(found, key) for key in ("ours", "35 % of peak", "roofline")} | by


def predicted(path: Path, halves: tuple[str, ...]) -> list[dict[str, Any]]:
    predictor = load_step_predictor(path)
    cnns = {row["model"]: row for row in rows_of(HERE / "predict_published_cnns.csv")}
    found = []
    for row in rows_of(HERE / "predict_published.csv"):
        if half_of(row) not in halves:
            continue
        execution, device = execution_of(row), Device.named(row["device"])
        work = workload_of(row, cnns)
        (step,) = predictor.predict(step_row(work, device), execution=execution)
        examples = work.batch_size * execution.micro_batches
        found.append(
            {
                **{name: row[name] for name in ("source", "model", "precision")},
                "device": device.name,
                "family": work.family,
                "half": half_of(row),
                "new": step.shift,
                "batch_size": work.batch_size,
                "measured_s": examples / float(row["examples_per_s"]),
                "ours": step.compute.median,
                "low_s": step.compute.low,
                "high_s": step.compute.high,
                **baselines(work, device, execution),
            }
        )
    return found


def _options() -> argparse.Namespace:
    flags = parser(__doc__ or "")
    flags.add_argument("--predictor", type=Path, default=SHIPPED, help="default: the shipped one")
    flags.add_argument("--half", choices=HALVES, help="score only one half")
    return flags.parse_args()


def main() -> None:
    options = _options()
    found = predicted(options.predictor, (options.half,) if options.half else HALVES)
    halves = sorted({row["half"] for row in found})
    result: dict[str, Any] = {
        half: summary([row for row in found if row["half"] == half]) for half in halves
    }
    result["all"] = summary(found)
    result["rows"] = [
        {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        for row in found
    ]
    finish("predict_published", options, result, "lightgbm")


if __name__ == "__main__":
    main()
