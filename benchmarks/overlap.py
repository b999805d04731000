"""Claims: an empty task costs under 30 us; split backward passes win where planned and never lose.

Also: an asynchronous checkpoint adds little to the steps around it, updates on the assist lane
hide where a core is free, and with `--wire netlab` scheduled training on an emulated-compute lab
gains from a split backward pass.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _overlap_wire import wire_row
from _record import finish, parser, spread
from torch import nn

from paceline.torch._async_checkpoint import AsyncCheckpoint
from paceline.torch._lane_optimizer import LaneOptimizer
from paceline.torch._lanes import Lanes
from paceline.torch._split_backward import split_backward

NUM_LAYERS = 24
# Hidden size and batch; the first two are where splitting is to win, in the others not to lose.
CASES = ((256, 64), (256, 256), (128, 64), (256, 1024), (1024, 128))
# An update that is a good part of the step: few examples, many parameters.
UPDATE_WIDTH, UPDATE_BATCH, UPDATE_STEPS = 1024, 32, 6
NUM_TASKS, NUM_ROUND_TRIPS, NUM_REPEATS = 100_000, 5_000, 5
LANES = ("assist", "comm", "copy", "host")
# 24 layers of 2,048 hidden units: 100.7 M parameters.
CHECKPOINT_WIDTH, CHECKPOINT_BATCH, CHECKPOINT_STEPS = 2048, 64, 20


def lane_overhead() -> dict[str, Any]:
    """Time empty tasks: submitted in a row, on four lanes with tensors, and one by one."""
    tensors = [torch.zeros(1) for _ in range(64)]
    alone_s, ordered_s, there_and_back_s = [], [], []
    with Lanes() as lanes:
        for _ in range(NUM_REPEATS):
            start_s = time.perf_counter()
            for _ in range(NUM_TASKS):
                lanes.submit(_nothing)
            lanes.wait()
            alone_s.append((time.perf_counter() - start_s) / NUM_TASKS)
            start_s = time.perf_counter()
            for task in range(NUM_TASKS):
                reads, writes = tensors[task % 64], tensors[task * 7 % 64]
                lanes.submit(_nothing, lane=LANES[task % 4], reads=[reads], writes=[writes])
            lanes.wait()
            ordered_s.append((time.perf_counter() - start_s) / NUM_TASKS)
            start_s = time.perf_counter()
            for _ in range(NUM_ROUND_TRIPS):
                lanes.submit(_nothing).wait()
            there_and_back_s.append((time.perf_counter() - start_s) / NUM_ROUND_TRIPS)
    return {
        "num_tasks": NUM_TASKS,
        "one_lane_s": spread(alone_s),
        "four_lanes_with_tensors_s": spread(ordered_s),
        "submit_and_wait_s": spread(there_and_back_s),
    }


def split_row(hidden: int, batch: int, rounds: int) -> dict[str, Any]:
    """Let the trial decide, then time plain and split in turns."""
    torch.manual_seed(0)
    parts = [part for _ in range(NUM_LAYERS) for part in (nn.Linear(hidden, hidden), nn.GELU())]
    plain = nn.Sequential(*parts)
    ours = copy.deepcopy(plain)
    x = torch.randn(batch, hidden, requires_grad=True)
    steps = {"plain": _backward(plain, x), "split": _backward(ours, x)}
    with split_backward(ours) as split:
        while split.plan is None:
            steps["split"]()
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(rounds + 3):
            for name in list(steps)[:: 1 if turn % 2 else -1]:
                start_s = time.perf_counter()
                steps[name]()
                seconds[name].append(time.perf_counter() - start_s)
        plan = split.plan
    plain_s, split_s = (np.array(seconds[name][3:]) for name in ("plain", "split"))
    return {
        "hidden": hidden,
        "batch": batch,
        "plain_threads": torch.get_num_threads(),
        "plain_s": spread(plain_s),
        "split_s": spread(split_s),
        "speedup": float(np.median(plain_s) / np.median(split_s)),
        "defers": plan.defers,
        "simulated_plain_s": plan.plain_s,
        "simulated_kept_s": plan.predicted_s,
        "explained": split.explain(),
    }


def optimizer_row(num_threads: int, rounds: int) -> dict[str, Any]:
    """Let the trial decide about deferred updates, then time turns of steps of both ways."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    width = UPDATE_WIDTH
    plain = nn.Sequential(*[p for _ in range(12) for p in (nn.Linear(width, width), nn.GELU())])
    models = {"plain": plain, "lanes": copy.deepcopy(plain)}
    by_hand, deferred = (torch.optim.AdamW(m.parameters(), lr=1e-4) for m in models.values())
    x = torch.randn(UPDATE_BATCH, width)
    updates: dict[str, Callable[[], None]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in models}

    def steps(name: str) -> float:
        start_s = time.perf_counter()
        for _ in range(UPDATE_STEPS):
            models[name](x).square().mean().backward()
            updates[name]()
            models[name].zero_grad(set_to_none=True)
        return (time.perf_counter() - start_s) / UPDATE_STEPS

    with LaneOptimizer(models["lanes"], deferred) as update:
        updates |= {"plain": by_hand.step, "lanes": update.step}
        while "measured" not in update.explain():
            steps("lanes")
            steps("plain")
        for turn in range(rounds):
            for name in list(models)[:: 1 if turn % 2 else -1]:
                seconds[name].append(steps(name))
        update.finish()
        explained = update.explain()
    is_equal = all(map(torch.equal, *(list(m.parameters()) for m in models.values())))
    return {
        "num_parameters": sum(p.numel() for p in plain.parameters()),
        "threads": num_threads,
        "plain_s": spread(seconds["plain"]),
        "lanes_s": spread(seconds["lanes"]),
        "speedup": float(np.median(seconds["plain"]) / np.median(seconds["lanes"])),
        "explained": explained,
        "equal_parameters": is_equal,
    }


def checkpoint_row(rounds: int) -> dict[str, Any]:
    """Time steps with and without a checkpoint that is begun before the first of them."""
    torch.manual_seed(0)
    width = CHECKPOINT_WIDTH
    model = nn.Sequential(*[p for _ in range(24) for p in (nn.Linear(width, width), nn.ReLU())])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(CHECKPOINT_BATCH, width)

    def steps() -> list[float]:
        found = []
        for _ in range(CHECKPOINT_STEPS):
            start_s = time.perf_counter()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            found.append(time.perf_counter() - start_s)
        return found

    added, block_s = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        Lanes() as lanes,
        AsyncCheckpoint(folder, optimizer, lanes=lanes) as checkpoint,
    ):
        for turn in range(rounds + 1):
            plain = steps()
            start_s = time.perf_counter()
            checkpoint.save(turn, {"model": model.state_dict()})
            saving_s = time.perf_counter() - start_s
            saved = steps()
            checkpoint.wait()
            if turn:  # The first makes the buffers.
                added.append((sum(saved) + saving_s) / sum(plain) - 1)
                block_s.append(sum(plain))
        spans = list(lanes.timeline())
    writes_s = [span.duration_s for span in spans if span.name == "write checkpoint"][1:]
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "steps_around": CHECKPOINT_STEPS,
        "steps_around_s": spread(block_s),
        "write_s": spread(writes_s),
        "added_share": spread(added),
    }


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--wire", choices=("none", "netlab"), default="none")
    flags.add_argument("--rounds", type=int, default=60)
    flags.add_argument("--megabytes", type=float, default=50.0, help="gradients, for --wire")
    options = flags.parse_args()
    if options.wire == "netlab":
        row = wire_row(options.megabytes, rounds=15, steps=8, limit_s=400)
        finish("overlap_wire", options, row, "torch")
        return
    result = {
        "lanes": lane_overhead(),
        "split_backward": [split_row(*case, options.rounds) for case in CASES],
        "checkpoint": checkpoint_row(5),
        "optimizer": [optimizer_row(number, options.rounds // 3) for number in (1, 2)],
    }
    finish("overlap", options, result, "torch")


def _backward(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()

    return step


def _nothing() -> None:
    return None


if __name__ == "__main__":
    main()
