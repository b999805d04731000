"""The learning rate over a run: up in a line, down in half a cosine."""

import math

import torch

LEAST_SHARE = 0.1


def learning_rate(step: int, *, num_steps: int, num_warmup: int, peak: float) -> float:
    """Return the learning rate of `step`, counted from 0.

    It rises to `peak` in the first `num_warmup` steps, and falls to a tenth of that in the last.

    Examples:
        >>> [round(learning_rate(s, num_steps=6, num_warmup=2, peak=1.0), 3) for s in range(6)]
        [0.5, 1.0, 1.0, 0.775, 0.325, 0.1]
    """
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    done = (step - num_warmup) / max(1, num_steps - 1 - num_warmup)
    return peak * (LEAST_SHARE + (1 - LEAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set it in all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
