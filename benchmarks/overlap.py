"""Claims: an empty task costs under 30 us; split backward passes win where planned and never lose.

Also: an asynchronous checkpoint adds little to the steps around it, updates on the assist lane
hide where a core is free, and with `--wire netlab` scheduled training on an emulated-compute lab
gains from a split backward pass.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _overlap_wire import wire_row
from _record import finish, parser, spread
from torch import nn

from paceline.overlap import Lane
from paceline.torch import AsyncCheckpoint
from paceline.torch.overlap import LaneOptimizer, Lanes
from paceline.torch.overlap.split import split_backward

NUM_LAYERS = 24
# Hidden size and batch; the first two are where splitting is to win, in the others not to lose.
CASES = ((256, 64), (256, 256), (128, 64), (256, 1024), (1024, 128))
# An update that is a good part of the step: few examples, many parameters.
UPDATE_WIDTH, UPDATE_BATCH = 1024, 32
STEPS_PER_TURN = 6
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
            lanes.flush()
            alone_s.append((time.perf_counter() - start_s) / NUM_TASKS)
            start_s = time.perf_counter()
            for task in range(NUM_TASKS):
                reads, writes = tensors[task % 64], tensors[task * 7 % 64]
                lanes.submit(_nothing, lane=LANES[task % 4], reads=[reads], writes=[writes])
            lanes.flush()
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


def split_row(hidden: int, batch: int, turns: int) -> dict[str, Any]:
    """Let the trial decide, then run turns of steps of one model, plain and as decided.

    Two models differ by more than a few percent in where their tensors lie.
    """
    torch.manual_seed(0)
    parts = [part for _ in range(NUM_LAYERS) for part in (nn.Linear(hidden, hidden), nn.GELU())]
    model = nn.Sequential(*parts)
    step = _backward(model, torch.randn(batch, hidden, requires_grad=True))
    with split_backward(model) as split:
        while split.plan is None:
            step()
    plan, explained = split.plan, split.explain()
    with Lanes({"assist": Lane()}) as lanes:

        def as_decided() -> float:
            with split_backward(model, plan=plan, lanes=lanes):
                return _turn_s(step)

        seconds = _in_turns({"plain": lambda: _turn_s(step), "split": as_decided}, turns)
    return {
        "hidden": hidden,
        "batch": batch,
        "plain_threads": torch.get_num_threads(),
        **_compared(seconds, "split"),
        "defers": plan.defers,
        "simulated_plain_s": plan.plain_s,
        "simulated_kept_s": plan.predicted_s,
        "explained": explained,
    }


def optimizer_row(num_threads: int, turns: int) -> dict[str, Any]:
    """Let the trial decide about deferred updates, then run turns of one model, always deferred.

    "kept" says what the trial would go on with.
    """
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    width = UPDATE_WIDTH
    model = nn.Sequential(*[p for _ in range(12) for p in (nn.Linear(width, width), nn.GELU())])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    backward = _backward(model, torch.randn(UPDATE_BATCH, width))

    def stepping(update: Callable[[], None]) -> Callable[[], None]:
        def step() -> None:
            backward()
            update()

        return step

    with LaneOptimizer(model, optimizer) as tried:
        while "measured" not in tried.explain():
            stepping(tried.step)()
        explained = tried.explain()
    with LaneOptimizer(model, optimizer, always=True) as update:

        def plain() -> float:
            update.flush()
            return _turn_s(stepping(optimizer.step))

        seconds = _in_turns(
            {"plain": plain, "lanes": lambda: _turn_s(stepping(update.step))}, turns
        )
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "threads": num_threads,
        **_compared(seconds, "lanes"),
        "kept": explained,
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
            checkpoint.flush()
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
    flags.add_argument("--turns", type=int, default=24)
    flags.add_argument("--megabytes", type=float, default=50.0, help="gradients, for --wire")
    options = flags.parse_args()
    if options.wire == "netlab":
        row = wire_row(options.megabytes, rounds=15, steps=8, limit_s=400)
        finish("overlap_wire", options, row, "torch")
        return
    result = {
        "lanes": lane_overhead(),
        "split_backward": [split_row(*case, options.turns) for case in CASES],
        "checkpoint": checkpoint_row(5),
        "optimizer": [optimizer_row(number, options.turns) for number in (1, 2)],
    }
    finish("overlap", options, result, "torch")


def _turn_s(step: Callable[[], None]) -> float:
    """Return seconds per step of a turn, whose first step is not timed."""
    step()
    start_s = time.perf_counter()
    for _ in range(STEPS_PER_TURN):
        step()
    return (time.perf_counter() - start_s) / STEPS_PER_TURN


def _in_turns(ways: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            seconds[name].append(ways[name]())
    return seconds


def _compared(seconds: dict[str, list[float]], ours: str) -> dict[str, Any]:
    """Return both ways' seconds per step, and the ratio within each turn."""
    ratio = np.array(seconds["plain"]) / np.array(seconds[ours])
    return {
        "plain_s": spread(seconds["plain"]),
        f"{ours}_s": spread(seconds[ours]),
        "speedup": spread(ratio),
    }


def _backward(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()

    return step


def _nothing() -> None:
    return None


if __name__ == "__main__":
    main()
