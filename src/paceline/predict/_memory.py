"""What a training step holds in memory, and the largest batch that a device takes."""

from dataclasses import dataclass

from paceline.predict._devices import Device
from paceline.predict._workload import Workload

# Values of 4 bytes per parameter that PyTorch's optimizers keep from step to step. Adafactor
# keeps a row and a column per matrix, which is next to nothing.
KEPT_VALUES = {
    "SGD": 1.0,
    "RMSprop": 1.0,
    "Adagrad": 1.0,
    "Muon": 1.0,
    "Adafactor": 0.01,
    "Adam": 2.0,
    "AdamW": 2.0,
}
OTHER_KEPT_VALUES = 2.0
# Bytes that autograd keeps over bytes of the tables' proxy, of a transformer per block.
KEPT_PER_PROXY = {"CNN": 0.75, "MLP": 8.0, "Transformer": 3.3}
# Context, libraries and what the allocator cannot use.
RESERVED_BYTES, RESERVED_SHARE = 600 << 20, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each worker at the peak of a step; predicted, not measured.

    Attributes:
        parameters: In 32 bits.
        gradients: In 32 bits, and once more in buckets with several workers.
        optimizer: Kept from step to step.
        activations: Kept for the backward pass, inputs included, at this batch size.
        copies: 16-bit copies of parameters under mixed precision.
        temporaries: Of the optimizer, which updates all parameters at once on a GPU; they
            and the activations are never there together.
        batch_size: Examples per step and worker.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    copies: int
    temporaries: int
    batch_size: int

    @property
    def peak(self) -> int:
        """Sum at the fullest moment."""
        return self.fixed + max(self.activations + self.copies, self.temporaries)

    @property
    def fixed(self) -> int:
        """What is there in every moment, whatever the batch."""
        return self.parameters + self.gradients + self.optimizer

    def fits(self, device: Device) -> bool:
        """Return whether the peak fits, with 600 MiB and 5 % of the device left for others."""
        return self.peak <= usable_bytes(device)

    def largest_batch(self, device: Device) -> int:
        """Return the most examples per step and worker that fit; 0 if not even one does.

        Examples:
            >>> from paceline.predict._devices import device
            >>> memory = MemoryEstimate(parameters=4 << 30, gradients=4 << 30,
            ...     optimizer=8 << 30, activations=1 << 30, copies=0, temporaries=4 << 30,
            ...     batch_size=32)
            >>> memory.fits(device("T4")), memory.largest_batch(device("A100"))
            (False, 1901)
        """
        usable = usable_bytes(device) - self.fixed
        if usable < self.temporaries:
            return 0
        per_example = max(1.0, self.activations / self.batch_size)
        return max(0, int((usable - self.copies) / per_example))


def estimate_memory(workload: Workload, *, num_workers: int = 1) -> MemoryEstimate:
    """Return what a step of the workload holds, on each of `num_workers` workers.

    A traced workload tells what autograd keeps; a row of a table only a proxy, which is
    multiplied by a typical ratio of its family and may be off by half.

    Examples:
        >>> work = Workload(family="MLP", batch_size=32, num_params=1_000_000,
        ...     forward_flops_per_example=2e6, optimizer="AdamW", saved_bytes_per_example=4e4)
        >>> estimate_memory(work).peak
        20000000
    """
    params = workload.param_bytes
    kept = KEPT_VALUES.get(workload.optimizer, OTHER_KEPT_VALUES)
    adaptive = workload.optimizer != "SGD"
    return MemoryEstimate(
        parameters=params,
        gradients=params * (2 if num_workers > 1 else 1),
        optimizer=int(kept * params),
        activations=int(workload.batch_size * _bytes_per_example(workload)),
        copies=params // 2 if workload.precision_bits == 16 else 0,
        temporaries=params if adaptive else 0,
        batch_size=workload.batch_size,
    )


def usable_bytes(device: Device) -> int:
    """Return what a job can have of a device's memory."""
    return int(device.memory_bytes * (1 - RESERVED_SHARE)) - RESERVED_BYTES


def _bytes_per_example(workload: Workload) -> float:
    traced = max(workload.saved_bytes_per_example, workload.working_bytes_per_example)
    if traced:
        return traced + workload.example_bytes
    ratio = KEPT_PER_PROXY.get(workload.family, 1.0)
    if workload.family == "Transformer":
        ratio *= max(workload.depth, 1)
    return ratio * workload.activation_bytes_per_example + workload.example_bytes
