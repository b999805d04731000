"""How a step is run, where that is not as in the tables.

The tables hold plain 32-bit steps and automatic mixed precision, each batch in one piece, on one
device. What else users choose between changes terms of the roofline by factors that follow from
counting (accumulation, checkpointing, sharding, rates of matrix units) or, where nothing can be
counted (`torch.compile`, channels-last), were assumed from what their authors report.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from paceline.predict.step._rates import conv_rate_32, has_tf32, rate_16
from paceline.predict.step._rows import FloatArray, StepRows

Precision = Literal["fp32", "tf32", "amp", "bf16", "fp8"]
Sharding = Literal["none", "optimizer", "full"]

BITS: dict[str, int] = {"fp32": 32, "tf32": 32, "amp": 16, "bf16": 16, "fp8": 16}
# A forward pass more, of the three that forward and backward count as.
RECOMPUTED = 4 / 3
# Of eight passes over the parameters in 32 bits, those that each micro-batch makes.
PASSES_PER_MICRO_BATCH = 0.4
# Assumed: fused operators start fewer kernels and keep what is between them in registers (J. Ansel
# et al., "PyTorch 2", ASPLOS 2024: 1.4 times faster training on an A100 in the mean).
COMPILED_KERNELS, COMPILED_BYTES = 0.4, 0.6
# Assumed: without it, 16-bit convolutions on matrix units copy from and to that layout (PyTorch,
# "Channels Last Memory Format", tutorial: 1.1 to 1.4 times faster).
CHANNELS_LAST = 0.85
# Assumed: matrix units are used for a smaller share of the time than ordinary cores.
TF32_UTILISATION = 0.6
CONV_FLOPS = ("conv FLOPs, 16 bit", "conv FLOPs, 32 bit", "3 x 3 conv FLOPs, 32 bit",
              "conv FLOPs, TF32", "depthwise FLOPs")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a step is run.

    Attributes:
        precision: "fp32" (PyTorch's default, convolutions in TF32 where there is TF32), "tf32"
            (matrix products too), "amp" (autocast), "bf16" (parameters too), or "fp8" (matrix
            products, at twice the 16-bit rate where the device has it, else at the same).
        channels_last: Memory format of a convolutional model.
        compiled: Whether `torch.compile` (or XLA) fuses operators.
        micro_batches: Backward passes per optimizer step, each of the rows' batch.
        checkpointing: Whether the forward pass is computed again in the backward pass.
        sharding: What workers divide: "none", "optimizer" (ZeRO-1, ZeRO-2) or "full" (ZeRO-3,
            FSDP), whose time on the wire is not part of this.
        num_shards: Workers that it is divided over.

    Raises:
        ValueError: If a name is unknown or a number is below 1.

    Examples:
        >>> Execution(precision="bf16", compiled=True).precision_bits
        16
    """

    precision: Precision
    channels_last: bool = False
    compiled: bool = False
    micro_batches: int = 1
    checkpointing: bool = False
    sharding: Sharding = "none"
    num_shards: int = 1

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, get_args(Precision)),
            ("sharding", self.sharding, get_args(Sharding)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.micro_batches < 1 or self.num_shards < 1:
            raise ValueError(
                f"micro_batches ({self.micro_batches}) and num_shards ({self.num_shards}) must be "
                "at least 1"
            )

    @property
    def precision_bits(self) -> int:
        """What a row of steps says about this precision: 32, or 16 for the others."""
        return BITS[self.precision]

    def factors(self, rows: StepRows) -> dict[str, FloatArray | float]:
        """By what the roofline's terms change against a step as in the tables, by their names."""
        kernels, flops, moved = self._counts()
        params, optimizer = self._parameter_passes()
        half = rows["precision_bits"] == 16
        convs = np.where(half & self.channels_last, CHANNELS_LAST, 1.0)
        casts = 0.0 if self.precision == "bf16" else kernels
        return {
            **dict.fromkeys(("conv kernel", "block kernel"), kernels),
            "kernel, mixed precision": casts * (2.0 if self.precision == "fp8" else 1.0),
            **dict.fromkeys(CONV_FLOPS, flops * convs),
            "matmul FLOPs, 16 bit": flops / self._fp8_speedup(rows),
            "matmul FLOPs, 32 bit": flops / self._tf32_speedup(rows),
            "conv activation bytes": moved * convs,
            "block activation bytes": moved,
            "parameter bytes": params,
            "parameter bytes, adaptive optimizer": optimizer,
            "parameter bytes, mixed precision": self.micro_batches * bool(casts),
        }

    def _counts(self) -> tuple[float, float, float]:
        """Kernels, FLOPs and activation bytes."""
        again = self.micro_batches * (RECOMPUTED if self.checkpointing else 1.0)
        if not self.compiled:
            return again, again, again
        return again * COMPILED_KERNELS, again, again * COMPILED_BYTES

    def _parameter_passes(self) -> tuple[float, float]:
        """Passes over all parameters, and those that an adaptive optimizer adds."""
        narrow = 0.5 if self.precision == "bf16" else 1.0
        own = narrow / (self.num_shards if self.sharding != "none" else 1)
        passes = PASSES_PER_MICRO_BATCH * self.micro_batches * narrow
        return passes + (1 - PASSES_PER_MICRO_BATCH) * own, own

    def _tf32_speedup(self, rows: StepRows) -> FloatArray | float:
        if self.precision != "tf32":
            return 1.0
        ratio = TF32_UTILISATION * conv_rate_32(rows) / rows["fp32_flops"]
        return np.where(has_tf32(rows), ratio, 1.0)

    def _fp8_speedup(self, rows: StepRows) -> FloatArray | float:
        if self.precision != "fp8":
            return 1.0
        return np.maximum(rows["fp8_flops"] / rate_16(rows), 1.0)
