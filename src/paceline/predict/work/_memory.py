"""What a training step holds in memory, and the largest batch that a device takes."""

from dataclasses import dataclass, replace

from paceline.predict.work._devices import Device
from paceline.predict.work._sharding import Sharding
from paceline.predict.work._workload import MemoryMoment, Workload

# Values of 4 bytes per parameter that PyTorch's optimizers keep from step to step. Adafactor
# keeps a row and a column per matrix, which is next to nothing.
KEPT_VALUES = {"SGD": 1.0, "RMSprop": 1.0, "Adagrad": 1.0, "Muon": 1.0, "Adafactor": 0.01}
OTHER_KEPT_VALUES = 2.0  # Adam, AdamW
# Values per parameter that they make for a moment where they update all parameters at once:
# roots of second moments, and Adagrad's steps.
FOREACH_TEMPORARIES = {"SGD": 0, "Muon": 0, "Adagrad": 2}
OTHER_FOREACH_TEMPORARIES = 1
# Bytes that autograd keeps over bytes of the tables' proxy, of a transformer per block.
KEPT_PER_PROXY = {"CNN": 0.75, "MLP": 8.0, "Transformer": 3.3}
# Context, libraries and what the allocator cannot use.
RESERVED_BYTES, RESERVED_SHARE = 600 << 20, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each worker at the peak of a step; predicted, not measured.

    Attributes:
        parameters: In 32 bits, or 16 where the workload says so.
        optimizer: Kept from step to step.
        buckets: Copies of gradients that several workers exchange; 0 for one worker, and where
            gradients are divided.
        moments: What is held besides, where it may be the most; they are never there together.
        batch_size: Examples per step and worker.
    """

    parameters: int
    optimizer: int
    buckets: int
    moments: tuple[MemoryMoment, ...]
    batch_size: int

    @property
    def fixed(self) -> int:
        """What is there in every moment, whatever the batch."""
        return self.parameters + self.optimizer + self.buckets

    @property
    def fullest(self) -> MemoryMoment:
        """The moment of the peak."""
        return max(self.moments, key=lambda moment: moment.bytes_at(self.batch_size))

    @property
    def peak(self) -> int:
        """Sum at the fullest moment."""
        return self.fixed + self.fullest.bytes_at(self.batch_size)

    def fits(self, device: Device) -> bool:
        """Return whether the peak fits, with 600 MiB and 5 % of the device left for others."""
        return self.peak <= usable_bytes(device)

    def largest_batch(self, device: Device) -> int:
        """Return the most examples per step and worker that fit; 0 if not even one does.

        Examples:
            >>> from paceline.predict.work._devices import Device
            >>> forward = MemoryMoment(
            ...     phase="forward", bytes_per_example=float(32 << 20), other_bytes=0)
            >>> update = MemoryMoment(
            ...     phase="optimizer", bytes_per_example=0.0, other_bytes=8 << 30)
            >>> memory = MemoryEstimate(parameters=4 << 30, optimizer=8 << 30, buckets=0,
            ...     moments=(forward, update), batch_size=32)
            >>> memory.fits(Device.named("T4")), memory.largest_batch(Device.named("A100"))
            (False, 2029)
        """
        usable = usable_bytes(device) - self.fixed
        rooms = ((usable - m.other_bytes) / max(1.0, m.bytes_per_example) for m in self.moments)
        return max(0, int(min(rooms)))


def estimate_memory(
    workload: Workload,
    *,
    num_workers: int = 1,
    foreach: bool = True,
    sharding: Sharding | None = None,
) -> MemoryEstimate:
    """Return what a step of the workload holds, on each of `num_workers` workers.

    Gradients are taken to be freed before each forward pass (`zero_grad(set_to_none=True)`, as
    is the default). A traced workload knows what is alive at each operator; a row of a table
    has only a proxy, which is multiplied by a typical ratio of its family and may be off by half.

    Args:
        workload: One worker's step.
        num_workers: Data-parallel workers.
        foreach: Whether the optimizer updates all parameters at once, which is PyTorch's
            default on a GPU, or one after another, as on a CPU.
        sharding: What the workers divide; unset for nothing. It counts instead of `num_workers`.

    Raises:
        ValueError: If `sharding` divides the matrices of a model that is no transformer.

    Examples:
        >>> work = Workload(family="MLP", batch_size=32, num_params=1_000_000,
        ...     forward_flops_per_example=2e6, optimizer="AdamW", saved_bytes_per_example=4e4)
        >>> estimate_memory(work).peak
        20000000
        >>> divided = Sharding(num_workers=4, level="parameters")
        >>> estimate_memory(work, sharding=divided).parameters
        1000000
    """
    divided = sharding or Sharding(num_workers=num_workers)
    kept = KEPT_VALUES.get(workload.optimizer, OTHER_KEPT_VALUES)
    own_bytes = divided.held_bytes(workload, "optimizer")
    moments = divided.moments(workload, workload.moments or _assumed_moments(workload))
    if foreach:
        moments = _updating_at_once(moments, workload, own_bytes)
    exchanges = divided.num_workers > 1 and divided.level in ("none", "optimizer")
    return MemoryEstimate(
        parameters=divided.held_bytes(workload, "parameters"),
        optimizer=int(kept * own_bytes),
        buckets=divided.held_bytes(workload, "gradients") if exchanges else 0,
        moments=_with_gathered(moments, divided.gathered_bytes(workload)),
        batch_size=workload.batch_size,
    )


def usable_bytes(device: Device) -> int:
    """Return what a job can have of a device's memory."""
    return int(device.memory_bytes * (1 - RESERVED_SHARE)) - RESERVED_BYTES


def _updating_at_once(
    moments: tuple[MemoryMoment, ...], workload: Workload, own_bytes: int
) -> tuple[MemoryMoment, ...]:
    """Let the optimizer's moment hold temporaries of all its parameters beside all gradients."""
    *passes, update = moments
    values = FOREACH_TEMPORARIES.get(workload.optimizer, OTHER_FOREACH_TEMPORARIES)
    held = max(moment.other_bytes for moment in passes) + values * own_bytes
    return (*passes, replace(update, other_bytes=max(held, update.other_bytes)))


def _with_gathered(moments: tuple[MemoryMoment, ...], num_bytes: int) -> tuple[MemoryMoment, ...]:
    *passes, update = moments
    whole = [replace(moment, other_bytes=moment.other_bytes + num_bytes) for moment in passes]
    return (*whole, update)


def _assumed_moments(workload: Workload) -> tuple[MemoryMoment, ...]:
    """Take activations to be there until all gradients are."""
    params = workload.param_bytes
    copies = params // 2 if workload.precision_bits < workload.param_bits else 0
    ratio = KEPT_PER_PROXY.get(workload.family, 1.0)
    blocks = max(workload.depth, 1) if workload.family == "Transformer" else 1
    typically = ratio * blocks * workload.activation_bytes_per_example
    kept = workload.saved_bytes_per_example or typically
    inputs = workload.example_bytes
    return (
        MemoryMoment(
            phase="backward",
            bytes_per_example=kept + inputs,
            other_bytes=params + copies,
            gradient_bytes=params,
        ),
        MemoryMoment(
            phase="optimizer", bytes_per_example=inputs, other_bytes=params, gradient_bytes=params
        ),
    )
