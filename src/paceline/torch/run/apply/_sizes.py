"""How big the examples of a script's dataset are, as far as that can be seen from outside."""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paceline.torch.run.apply._loss_form import Unfit

NUM_TRIED = 32
# Looking at every example may take this share of the epoch, or this long.
MOST_SHARE, MOST_S = 0.05, 5.0


def size_of(example: Any) -> int:
    """Return how many numbers the largest part of an example holds.

    Examples:
        >>> size_of({"input_ids": [5, 7, 9], "label": 1}), size_of((np.ones((4, 2)), 3))
        (3, 8)
    """
    if isinstance(example, torch.Tensor):
        return example.numel()
    if isinstance(example, np.ndarray):
        return example.size
    if isinstance(example, str | bytes):
        return len(example)
    if isinstance(example, Mapping):
        return max(map(size_of, example.values()), default=1)
    if isinstance(example, tuple | list):
        if example and all(isinstance(one, int | float) for one in example):
            return len(example)
        return max(map(size_of, example), default=1)
    return 1


def measured_share(dataset: Any, rank: int, num_ranks: int, epoch_s: float) -> NDArray[np.float64]:
    """Return the sizes of every `num_ranks`-th example from `rank` on.

    Raises:
        Unfit: If looking at all of them would take too long.
    """
    indices = range(rank, len(dataset), num_ranks)
    with _same_random_state():
        begin_s = time.perf_counter()
        sizes = [size_of(dataset[index]) for index in indices[:NUM_TRIED]]
        takes_s = (time.perf_counter() - begin_s) * len(indices) / max(len(sizes), 1)
        most_s = max(MOST_S, MOST_SHARE * epoch_s)
        if takes_s > most_s:
            raise Unfit(
                f"looking at the lengths of {len(dataset)} examples would take {takes_s:.0f} s, "
                f"more than {most_s:.0f} s"
            )
        sizes += [size_of(dataset[index]) for index in indices[NUM_TRIED:]]
    return np.array(sizes, dtype=np.float64)


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Let the script go on with the random numbers that it would have had."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the script's
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
