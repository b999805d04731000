"""The loss on documents that are not trained on."""

from contextlib import AbstractContextManager

import numpy as np
import torch
from data import Corpus, collate, packed
from model import GPT2
from options import Options
from parallel import World

MAX_SEQUENCES = 256


def autocast(options: Options, world: World) -> AbstractContextManager[None]:
    """Compute matrix products as `--precision` says; parameters stay in single precision."""
    return torch.autocast(
        world.device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"
    )


class Validation:
    """Packed sequences, the same ones each time, shared out over the ranks.

    Raises:
        ValueError: If there is not one sequence.
    """

    def __init__(self, corpus: Corpus, options: Options, world: World) -> None:
        self._sequences = packed(corpus, options.context)
        if not len(self._sequences):
            raise ValueError(
                f"{options.data} holds less validation text than one sequence of "
                f"{options.context}; prepare more text, or a larger share with --validation"
            )
        self._options, self._world = options, world

    def loss(self, model: GPT2) -> float:
        """Return the mean loss per token; all ranks must call it and get the same."""
        chosen = np.arange(min(MAX_SEQUENCES, len(self._sequences)))
        mine = chosen[self._world.rank :: self._world.num_ranks].tolist()
        size = self._options.micro_batch
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad(), autocast(self._options, self._world):
            for first in range(0, len(mine), size):
                batch = collate([self._sequences[i] for i in mine[first : first + size]])
                here = batch.to(self._world.device)
                total += torch.tensor([float(model(here.inputs, here.targets)), batch.num_tokens])
        summed, num_tokens = self._world.sum(total).tolist()
        return float(summed / num_tokens)
