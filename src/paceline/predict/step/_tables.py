"""Read measured step-time tables: CSV files with the columns of CHRONOS [1].

Each table is of one family of models, and the families name some things
differently; what comes out is one kind of row. Columns that are computed from the measured
time are read only as the answer, or not at all.

References:
    [1] CHRONOS, training-time prediction, public tables under the MIT licence.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline._files import read_csv, shown, told
from paceline.predict.step._rows import StepRows, block_activation_bytes, concatenate
from paceline.predict.work import Device

COMPUTE = ("compute_ms", "avg_compute_ms")
LOADER = ("loader_wait_ms", "avg_loader_ms")
COMMON = (
    "dataset", "optimizer", "batch_size", "precision", "model", "architecture", "depth",
    "param_count", "flops_train_per_batch", "gpu_name", "FP16", "FP32",
    "GPU Memory Bandwidth (GB/s)", "Cores", "SM", "TC", "Boost Clock (MHz)",
)  # fmt: skip
BY_FAMILY = {
    "CNN": (
        "input_shape", "bn_layers", "act_layers", "flops_1x1_frac", "flops_3x3_frac",
        "flops_depthwise_frac", "act_bytes_per_sample_proxy",
    ),
    "MLP": ("input_shape", "embed_dim", "act_bytes_per_sample_proxy"),
    "Transformer": ("seq_len", "d_model", "d_ff", "act_bytes_per_seq_proxy"),
}  # fmt: skip
# Weighted layers and matrix products of one block, from the papers of the architectures: two
# perceptrons of two layers; one layer over tokens and two over channels; two 1 x 1 layers around
# two shifted branches, then two layers; four projections, two products of attention, two layers.
LAYERS_PER_BLOCK = {"mixer": 4, "resmlp": 3, "asmlp": 6}
LAYERS_PER_TRANSFORMER_BLOCK = 8
CONVOLUTIONAL = (
    "conv_fraction", "conv_1x1_fraction", "conv_3x3_fraction", "depthwise_fraction",
)  # fmt: skip
TEXT_COLUMNS = frozenset({"dataset", "optimizer", "model", "architecture", "gpu_name"})
# Token ids are 64-bit integers; image transformers resize to 224 x 224 and cut 16 x 16 patches.
TOKEN_BYTES, RESIZED_IMAGE_BYTES, RESIZED_NUM_PATCHES = 8.0, 3.0 * 224 * 224, 196

Raw = Mapping[str, NDArray[np.str_]]
Numbers = Mapping[str, NDArray[np.float64]]


def read_step_tables(folder: str | Path) -> StepRows:
    """Read every CSV file of a folder of step-time tables.

    Args:
        folder: Holds the `*.csv` files, or a folder `step_time` that does.

    Returns:
        The rows of all files in the order of their names, times in seconds.

    Raises:
        ValueError: If there is no table, a column is missing (the message names the file and the
            columns), a number does not parse, or a value is out of range.
    """
    here = Path(folder)
    here = here / "step_time" if (here / "step_time").is_dir() else here
    paths = sorted(here.glob("*.csv"))
    if not paths:
        raise ValueError(f"there is no *.csv file in {here}; pass the folder of the tables")
    return concatenate(_read_table(path) for path in paths)


def _read_table(path: Path) -> StepRows:
    header, rows = read_csv(path)
    family = rows[0].get("architecture") or "" if rows else ""
    _check_columns(path, header, family)
    raw = {name: np.array([row[name] or "" for row in rows]) for name in header}
    try:
        return StepRows(_columns(raw, family))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def _check_columns(path: Path, header: Sequence[str], family: str) -> None:
    if family not in BY_FAMILY:
        raise ValueError(
            f"{path.name}: the column architecture must say one of {', '.join(BY_FAMILY)} in "
            f"every row, got {shown(family)} in the first"
        )
    missing = [name for name in COMMON + BY_FAMILY[family] if name not in header]
    missing += [" or ".join(pair) for pair in (COMPUTE, LOADER) if not set(pair) & set(header)]
    if missing:
        raise ValueError(f"{path.name} lacks the columns {', '.join(missing)}")


def _columns(raw: Raw, family: str) -> dict[str, NDArray[np.str_] | NDArray[np.float64]]:
    wanted = {*COMMON, *COMPUTE, *LOADER, *chain(*BY_FAMILY.values())}
    numeric = wanted - TEXT_COLUMNS - {"input_shape"}
    number = {name: _numbers(name, raw[name]) for name in raw if name in numeric}
    batch, known = number["batch_size"], [_known(name) for name in raw["gpu_name"].tolist()]
    fp16 = number["FP16"] * 1e9
    return {
        **dict.fromkeys(CONVOLUTIONAL, np.zeros(len(batch))),
        "family": raw["architecture"],
        "dataset": raw["dataset"],
        "model": raw["model"],
        "variant": _variant(raw) if family == "MLP" else raw["model"],
        "optimizer": raw["optimizer"],
        # As the device table spells it, so that a host is found by either name.
        "device": np.array(
            [d.name if d else n for d, n in zip(known, raw["gpu_name"], strict=True)]
        ),
        "batch_size": batch,
        "precision_bits": number["precision"],
        "num_params": number["param_count"],
        "depth": number["depth"],
        "train_flops_per_example": number["flops_train_per_batch"] / np.where(batch > 0, batch, 1),
        **_FAMILY_WORK[family](raw, number),
        "fp32_flops": number["FP32"] * 1e9,
        "fp16_flops": fp16,
        # The tables lack the rates of matrix units.
        "tensor_flops": np.array(
            [d.tensor_flops if d else rate for d, rate in zip(known, fp16, strict=True)]
        ),
        "fp8_flops": np.array([d.fp8_flops if d else 0.0 for d in known]),
        "memory_bytes_per_s": number["GPU Memory Bandwidth (GB/s)"] * 1e9,
        "num_cores": number["Cores"],
        "num_sms": number["SM"],
        "num_tensor_cores": number["TC"],
        "boost_clock_hz": number["Boost Clock (MHz)"] * 1e6,
        "compute_s": _first_of(number, COMPUTE) / 1e3,
        "loader_s": _first_of(number, LOADER) / 1e3,
    }


def _numbers(name: str, texts: NDArray[np.str_]) -> NDArray[np.float64]:
    try:
        return texts.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"column {name}: {told(error)}") from None


def _first_of(number: Numbers, names: Sequence[str]) -> NDArray[np.float64]:
    return next(number[name] for name in names if name in number)


def _variant(raw: Raw) -> NDArray[np.str_]:
    return np.char.add(np.char.add(raw["model"], "-"), raw["embed_dim"])


def _cnn_work(raw: Raw, number: Numbers) -> dict[str, NDArray[np.float64]]:
    return {
        "activation_bytes_per_example": number["act_bytes_per_sample_proxy"],
        "num_norm_layers": number["bn_layers"],
        "num_kernels": number["depth"] + number["bn_layers"] + number["act_layers"],
        "num_activation_layers": number["act_layers"],
        "conv_fraction": np.ones(len(number["depth"])),
        "conv_1x1_fraction": number["flops_1x1_frac"],
        "conv_3x3_fraction": number["flops_3x3_frac"],
        "depthwise_fraction": number["flops_depthwise_frac"],
        "example_bytes": _image_bytes(raw),
    }


def _mlp_work(raw: Raw, number: Numbers) -> dict[str, NDArray[np.float64]]:
    layers = [LAYERS_PER_BLOCK.get(n, LAYERS_PER_TRANSFORMER_BLOCK) for n in raw["model"].tolist()]
    return {
        "activation_bytes_per_example": number["act_bytes_per_sample_proxy"],
        "example_bytes": _image_bytes(raw),
        **_block_layers(number["depth"], np.array(layers)),
    }


def _transformer_work(raw: Raw, number: Numbers) -> dict[str, NDArray[np.float64]]:
    """Work of a pre-norm encoder, its FLOPs recounted.

    The tables' own count multiplies by the depth once too often and by a factor that grows with the
    sequence; 2 FLOPs per multiply-add over the four projections, the feed-forward pair and the two
    products of attention is what a trace of the same model says.
    """
    width, tokens = number["d_model"], number["seq_len"]
    per_token = 8 * width**2 + 4 * width * number["d_ff"] + 4 * tokens * width
    is_image = tokens == RESIZED_NUM_PATCHES
    return {
        "train_flops_per_example": 3 * number["depth"] * tokens * per_token,
        "activation_bytes_per_example": block_activation_bytes(
            number["act_bytes_per_seq_proxy"], number["depth"]
        ),
        "example_bytes": np.where(is_image, RESIZED_IMAGE_BYTES, TOKEN_BYTES * tokens),
        **_block_layers(number["depth"], LAYERS_PER_TRANSFORMER_BLOCK),
    }


def _block_layers(
    depth: NDArray[np.float64], per_block: int | NDArray[np.int_]
) -> dict[str, NDArray[np.float64]]:
    """Two norms and two activation-like functions per block, and the last norm."""
    return {
        "num_norm_layers": 2 * depth + 1,
        "num_kernels": depth * per_block + 4 * depth + 1,
        "num_activation_layers": 2 * depth,
    }


_FAMILY_WORK = {"CNN": _cnn_work, "MLP": _mlp_work, "Transformer": _transformer_work}


def _image_bytes(raw: Raw) -> NDArray[np.float64]:
    shapes = [[int(part) for part in re.findall(r"\d+", text)] for text in raw["input_shape"]]
    if not all(shapes):
        raise ValueError("column input_shape must hold shapes such as (3, 32, 32) in every row")
    return np.array([float(np.prod(shape)) for shape in shapes])


@cache
def _known(name: str) -> Device | None:
    """The row of the device table; None counts as a device without matrix units."""
    try:
        return Device.named(name)
    except ValueError:
        return None
