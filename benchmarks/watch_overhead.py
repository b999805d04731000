"""Claim: `paceline.watch` costs under 1 % of a step that takes 50 ms or more."""

import time
from contextlib import nullcontext

import numpy as np
import torch
from _record import finish, parser, spread

import paceline

LAYERS, DIM, BATCH = 8, 512, 512


def timed_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor, *, watched: bool
) -> float:
    with paceline.watch(model, optimizer) if watched else nullcontext():
        start = time.perf_counter()
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - start


def paired_steps(
    dim: int, batch_size: int, num_pairs: int
) -> tuple["np.ndarray[tuple[int], np.dtype[np.float64]]", ...]:
    """Time plain and watched steps in turn, the first of each pair alternating."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(dim, dim) for _ in range(LAYERS)]
    model = torch.nn.Sequential(*[m for layer in layers for m in (layer, torch.nn.GELU())])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = torch.randn(batch_size, dim)
    seconds = np.zeros((2, num_pairs))
    for pair in range(-5, num_pairs):
        for watched in ((False, True), (True, False))[pair % 2]:
            elapsed = timed_step(model, optimizer, batch, watched=watched)
            if pair >= 0:
                seconds[int(watched), pair] = elapsed
    return seconds[0], seconds[1]


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--pairs", type=int, default=200)
    options = flags.parse_args()
    torch.set_num_threads(1)
    plain, watched = paired_steps(DIM, BATCH, options.pairs)
    tiny_plain, tiny_watched = paired_steps(2, 1, 20 * options.pairs)
    overhead_s = float(np.median(tiny_watched - tiny_plain))
    result = {
        "step_s": spread(plain),
        "ratio_of_medians": float(np.median(watched) / np.median(plain)),
        "ratio_per_pair": spread(watched / plain),
        # The same hooks on a step of microseconds, where their cost stands clear of the noise.
        "hooks_per_step_s": overhead_s,
        "hooks_share_of_step": overhead_s / float(np.median(plain)),
    }
    finish("watch_overhead", options, result, "torch")


if __name__ == "__main__":
    main()
