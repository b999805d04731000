"""The job at hand, once it is known: its loader, its ranks, its prices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from paceline.run import Steps
from paceline.torch.model import tensors_in
from paceline.torch.run.apply._deal import Deal, Dealt
from paceline.torch.run.apply._independence import Call
from paceline.torch.run.apply._price import Price, Regrouped
from paceline.torch.run.apply._talk import Talk
from paceline.torch.run.apply._weights import Weights

MASK = "attention_mask"


class Recorded(Protocol):
    """What the recorder of this rank knows."""

    loop: Any

    def first_steps(self) -> Steps:
        """Return the steps so far."""


@dataclass(slots=True)
class Job:
    """A training loop whose batches are divided.

    Attributes:
        deal: Of its loader.
        talk: All ranks.
        weights: What weighs its losses.
        price: What its batches cost.
        sizes: Of all examples.
        microbatches: Of each step.
        num_planned: Batches that were planned so far.
    """

    deal: Deal
    talk: Talk
    weights: Weights
    price: Price
    sizes: NDArray[np.float64]
    microbatches: int
    num_planned: int = 0

    @property
    def changed(self) -> str:
        """What was changed, one line."""
        how = "by padded length" if self.price.padded else "by length"
        return (
            f"each global batch of {type(self.deal.loader.sampler).__name__} is divided over the "
            "ranks "
            f"{how}, gradients weighed to be the same"
        )

    def batches(self, dealt: NDArray[np.int64], found: Regrouped) -> Iterator[Dealt]:
        """Yield this rank's part of each global batch."""
        num_batches, _, size = dealt.shape
        slots, rank = dealt.reshape(num_batches, -1), self.talk.rank
        dealt_to = np.arange(slots.shape[1]) // size
        for rows, owner, plain_s in zip(slots, found.owner, found.plain_s, strict=True):
            mine = owner == rank
            is_divided = bool((owner != dealt_to).any())
            yield Dealt(rows[mine].tolist(), dealt_to[mine], is_divided, plain_s)


def dealt_by_all(own: NDArray[np.int64], talk: Talk) -> NDArray[np.int64]:
    """Return what the samplers of all ranks dealt, shape `(num_batches, num_ranks, size)`."""
    ranks = talk.gather(own)
    num = min(len(one) for one in ranks)
    return np.stack([one[:num] for one in ranks], axis=1)


def lengths_of(call: Call, batch: Any, sizes: NDArray[np.float64]) -> torch.Tensor:
    """Return the length of each example of a batch along the axis that is padded."""
    mask = call.get(MASK)
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return mask.sum(1).cpu()
    widest = max(tensors_in(batch), key=torch.Tensor.numel)
    others = widest.shape[2:].numel() if widest.dim() > 2 else 1
    return torch.from_numpy(sizes // others).long()
