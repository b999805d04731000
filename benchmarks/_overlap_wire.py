"""Scheduled training with and without a split backward pass, on the emulated-compute lab."""

import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _record import spread
from torch import Tensor, nn
from torch import distributed as dist

from paceline.overlap import defer_all
from paceline.testing import EmulatedModel, netlab
from paceline.torch import ScheduledDataParallel
from paceline.torch.overlap.split import Extras, OpArgs, SplitBackward, split_backward

NUM_LAYERS, FORWARD_S, NUM_RANKS, RATE = 24, 0.1, 2, "1gbit"
NUM_MEASURED, NUM_TRIED = 6, 2


class EmulatedOp:
    """Sleeps half of a layer's backward pass for the input gradient, half for the weights'."""

    casts = False

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Extras]:
        """Sleep through the forward pass."""
        time.sleep(self._layer.forward_s)
        return x.clone(), ()

    def input_grad(self, args: OpArgs) -> Tensor:
        """Sleep through the first half."""
        time.sleep(self._layer.backward_s / 2)
        return args.grad

    def weight_grads(
        self, args: OpArgs, wants: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Sleep through the second half; the gradient is real."""
        time.sleep(self._layer.backward_s / 2)
        return self._layer.gradient.clone(), None


def wire_row(gradient_mb: float, *, rounds: int, steps: int, limit_s: float) -> dict[str, Any]:
    """Run both ways in a lab of its own, in turns."""
    with tempfile.TemporaryDirectory() as folder, netlab(NUM_RANKS, RATE) as lab:
        out = str(Path(folder) / "found.json")
        lab.start(_measure, gradient_mb, rounds, steps, out, timeout_s=60, limit_s=limit_s)
        found: dict[str, Any] = json.loads(Path(out).read_text(encoding="utf-8"))
    seconds = {name: spread(times) for name, times in found["seconds"].items()}
    scheduled_s, split_s = seconds["scheduled"]["median"], seconds["split"]["median"]
    return {
        "compute": "emulated",
        "wire": "netlab (tbf)",
        "rate": RATE,
        "ranks": NUM_RANKS,
        "gradient_mb": gradient_mb,
        "scheduled_s": scheduled_s,
        "scheduled_and_split_s": split_s,
        "split_speedup": scheduled_s / split_s,
        "spread_s": seconds,
        "explained": found["explained"],
    }


def _measure(rank: int, gradient_mb: float, rounds: int, steps: int, out: str) -> None:
    per_layer = FORWARD_S / NUM_LAYERS
    model = EmulatedModel(
        [per_layer] * NUM_LAYERS,
        [2 * per_layer] * NUM_LAYERS,
        [int(gradient_mb * 1e6 / NUM_LAYERS)] * NUM_LAYERS,
    )
    wrapped = {name: _wrap(copy.deepcopy(model), name) for name in ("scheduled", "split")}
    methods = {name: _step(scheduled) for name, (scheduled, _) in wrapped.items()}
    for name, (scheduled, _) in wrapped.items():
        while not scheduled.explain().startswith("plan:"):
            methods[name]()
        scheduled.flush()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds):
        for name in list(methods)[:: 1 if turn % 2 else -1]:
            seconds[name].append(_seconds_per_step(methods[name], steps))
            wrapped[name][0].flush()
    found = {
        "seconds": seconds,
        "explained": {name: scheduled.explain() for name, (scheduled, _) in wrapped.items()},
    }
    if rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    for scheduled, split in wrapped.values():
        scheduled.close()
        if split is not None:
            split.close()


def _wrap(model: Any, name: str) -> tuple[ScheduledDataParallel, SplitBackward | None]:
    split = None
    if name == "split":
        split = split_backward(model, plan=defer_all(), ops={type(model.layers[0]): EmulatedOp})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduled = ScheduledDataParallel(
        model, optimizer, num_measure_steps=NUM_MEASURED, num_trial_steps=NUM_TRIED
    )
    return scheduled, split


def _step(scheduled: nn.Module) -> Callable[[], None]:
    batch = torch.ones(4)

    def step() -> None:
        scheduled(batch).square().mean().backward()
        scheduled.step()  # type: ignore[operator]  # of the wrapper

    return step


def _seconds_per_step(step: Callable[[], None], num_steps: int) -> float:
    dist.barrier()
    step()
    start_s = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - start_s) / num_steps
