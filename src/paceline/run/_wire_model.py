"""How much of an all-reduce is exposed, from what one step's passes can hide."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Comm = Literal["ddp", "overlapped"]
COMMS: tuple[Comm, ...] = ("ddp", "overlapped")
FIRST_BUCKET_BYTES, MIB = 2**20, 2**20
# Fewer buckets than this say the same; more only cost time.
MAX_BUCKETS = 64
# Beyond this rate, which no wire has, the size does not show.
MAX_BYTES_PER_S = 1e15
NUM_HALVINGS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class WireModel:
    """A ring all-reduce of the gradients, during the passes and after them; see `ring_link`.

    Attributes:
        gradient_bytes: Bytes of all gradients.
        bucket_bytes: Bytes that DistributedDataParallel sends at once; its first bucket has 1 MiB.
        hop_s: Seconds of a hop, whatever it carries.
        bytes_per_s: Bytes per second of each wire, each way.
    """

    gradient_bytes: float
    bucket_bytes: float
    hop_s: float
    bytes_per_s: float

    def exposed_s(self, num_ranks: int, forward_s: Array, backward_s: Array, comm: Comm) -> Array:
        """Return what outlasts the passes, in each step.

        Under "ddp", buckets are sent one after the other as the backward pass fills them, evenly.
        Under "overlapped", at best: both passes hide what they have room for.

        Args:
            num_ranks: Ranks of the ring.
            forward_s: Seconds of the forward pass, shape `(num_steps,)`.
            backward_s: Seconds of the backward pass that sends.
            comm: How gradients are sent.
        """
        if num_ranks == 1:
            return np.zeros_like(backward_s)
        # Behind it are the predictors, which take a moment to import.
        from paceline.predict.run import ring_link

        sizes = self._buckets()
        link = ring_link(self.bytes_per_s, num_ranks, hop_latency_s=self.hop_s)
        takes_s = link.alpha_s + sizes / link.bytes_per_s
        if comm == "overlapped":
            return np.asarray(np.maximum(takes_s.sum() - forward_s - backward_s, 0.0))
        end_s = np.zeros_like(backward_s)
        for ready, bucket_s in zip(np.cumsum(sizes) / sizes.sum(), takes_s, strict=True):
            end_s = np.maximum(end_s, ready * backward_s) + bucket_s
        return np.asarray(np.maximum(end_s - backward_s, 0.0))

    def fitted(
        self, num_ranks: int, forward_s: Array, backward_s: Array, measured_s: float
    ) -> Self:
        """Return the wire whose mean exposed time is the one that was measured.

        One number is known, so the rate alone is fitted. Where latency alone takes longer, the hop
        is made faster.
        """

        def too_slow(wire: Self) -> bool:
            exposed_s = wire.exposed_s(num_ranks, forward_s, backward_s, "ddp")
            return bool(exposed_s.mean() > measured_s)

        endless = replace(self, bytes_per_s=MAX_BYTES_PER_S)
        if too_slow(endless):
            calls = 2.0 * (num_ranks - 1)
            return replace(endless, hop_s=measured_s / calls)
        low, high = 1.0, MAX_BYTES_PER_S
        for _ in range(NUM_HALVINGS):
            middle = float(np.sqrt(low * high))
            slow = too_slow(replace(self, bytes_per_s=middle))
            low, high = (middle, high) if slow else (low, middle)
        return replace(self, bytes_per_s=high)

    def _buckets(self) -> Array:
        rest = max(self.gradient_bytes - FIRST_BUCKET_BYTES, 0.0)
        num = int(min(np.ceil(rest / self.bucket_bytes), MAX_BUCKETS))
        first = min(self.gradient_bytes, FIRST_BUCKET_BYTES)
        return np.concatenate([[first], np.full(num, rest / max(num, 1))])
