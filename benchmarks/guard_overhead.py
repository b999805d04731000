"""Claim: at its default interval, `paceline.torch.guard` costs under 0.5 % of step time."""

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import finish, parser, spread
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline.testing import run_ranks
from paceline.torch import Guard, guard

LAYERS, DIM, BATCH = 8, 512, 512
EVERY = 100


def build(dim: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(dim, dim) for _ in range(LAYERS)]
    bare = torch.nn.Sequential(*[m for layer in layers for m in (layer, torch.nn.GELU())])
    model = DistributedDataParallel(bare)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def timed_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor
) -> float:
    start = time.perf_counter()
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
    return time.perf_counter() - start


def paired_steps(dim: int, batch_size: int, num_pairs: int) -> list[list[float]]:
    """Time plain and guarded steps in turn, the first of each pair alternating.

    The guard of each pair lives for two steps, of which the second is timed, and compares only
    at its start: so this is what hooks and threads cost. Each step begins where the ranks have met.
    """
    model, optimizer = build(dim)
    batch = torch.randn(batch_size, dim)
    seconds: list[list[float]] = [[], []]
    for pair in range(-5, num_pairs):
        for guarded in ((False, True), (True, False))[pair % 2]:
            with guard(model, optimizer) if guarded else nullcontext():
                timed_step(model, optimizer, batch)  # While the guard's threads start.
                dist.barrier()
                elapsed = timed_step(model, optimizer, batch)
            if pair >= 0:
                seconds[int(guarded)].append(elapsed)
    return seconds


def timed_checks(guarded: Guard, num_checks: int) -> list[float]:
    seconds = []
    for _ in range(num_checks):
        start = time.perf_counter()
        guarded.check()
        seconds.append(time.perf_counter() - start)
    return seconds[num_checks // 5 :]


def measure(rank: int, folder: str, num_pairs: int) -> None:
    plain, guarded = paired_steps(DIM, BATCH, num_pairs)
    tiny_plain, tiny_guarded = paired_steps(2, 1, 2 * num_pairs)
    model, optimizer = build(DIM)
    with guard(model, optimizer) as checked:
        checks = timed_checks(checked, num_pairs)
    found = [plain, guarded, tiny_plain, tiny_guarded, checks]
    Path(folder, str(rank)).write_text(json.dumps(found), encoding="utf-8")


def summary(options: argparse.Namespace, found: list[list[float]]) -> dict[str, Any]:
    plain, guarded, tiny_plain, tiny_guarded, checks = map(np.array, found)
    hooks_s = float(np.median(tiny_guarded - tiny_plain))
    per_step_s = hooks_s + float(np.median(checks)) / EVERY
    return {
        "num_ranks": options.ranks,
        "step_s": spread(plain),
        "ratio_per_pair_without_checks": spread(guarded / plain),
        # The same hooks on a step of a millisecond, where their cost stands clear of the noise.
        "hooks_per_step_s": hooks_s,
        "check_s": spread(checks),
        "every": EVERY,
        "share_of_step": per_step_s / float(np.median(plain)),
    }


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--pairs", type=int, default=100)
    flags.add_argument("--ranks", type=int, default=2)
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(measure, options.ranks, folder, options.pairs)
        found = json.loads(Path(folder, "0").read_text(encoding="utf-8"))
    finish("guard_overhead", options, summary(options, found), "torch")


if __name__ == "__main__":
    main()
