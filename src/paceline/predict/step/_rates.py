"""FLOPs per second that a device offers to each precision, of rows of steps."""

import numpy as np
from numpy.typing import NDArray

from paceline.predict.step._rows import FloatArray, StepRows

TF32_FLOPS_PER_CLOCK = 200


def rate_16(rows: StepRows) -> FloatArray:
    """FLOPs per second in 16 bits: without matrix units no less than in 32, as autocast sums."""
    has_units = rows["num_tensor_cores"] > 0
    ordinary = np.maximum(rows["fp16_flops"], rows["fp32_flops"])
    rate: FloatArray = np.where(has_units, rows["tensor_flops"], ordinary)
    return rate


def has_tf32(rows: StepRows) -> NDArray[np.bool_]:
    """Whether matrix units take 32-bit numbers: since Ampere, with fewer bits of each."""
    units = rows["num_tensor_cores"]
    clocks = np.maximum(units * rows["boost_clock_hz"], 1.0)
    return np.asarray((units > 0) & (rows["tensor_flops"] / clocks > TF32_FLOPS_PER_CLOCK))


def conv_rate_32(rows: StepRows) -> FloatArray:
    """FLOPs per second of 32-bit convolutions, which PyTorch computes in TF32 where it can."""
    rate: FloatArray = np.where(has_tf32(rows), rows["tensor_flops"] / 2, rows["fp32_flops"])
    return rate
