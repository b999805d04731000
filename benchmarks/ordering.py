"""Claim: ordering by sketched gradients helps small, noisy training, and only there.

Every method gets each learning rate and is reported at its best; plain reshuffling also
gets iterate averaging and a constant rate. Excess loss is the loss over all training
examples less the lowest that is known. Seconds are measured, sketching and ordering included.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import finish, parser
from _sketch_models import FASHION_MNIST, Loss, images, lenet, mlp, text_blocks, token_loss
from torch import Tensor, nn
from torch.nn import functional

from paceline.order import (
    OrderPolicy,
    halve_and_herd,
    pair_balance,
    random_reshuffling,
    stratified,
)
from paceline.torch.order import GradientSketch

BATCH = 16
ALL = 1 << 20  # room for every parameter: rows are the exact gradients


class CharLstm(nn.Module):
    """A small language model over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(256, 32), nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the next bytes."""
        logits: Tensor = self.head(self.lstm(self.embed(tokens))[0])
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained, at which learning rates, and for how long."""

    make: Callable[[], nn.Module]
    loss: Loss
    rates: tuple[float, ...]
    epochs: int
    methods: tuple[str, ...]
    decay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How examples are ordered, and what the order sees of their gradients."""

    policy: Callable[[Tensor, int], OrderPolicy]
    dim: int = 0
    every: int = 1
    averages: bool = False
    is_constant: bool = False


def _reshuffled(label: Tensor, seed: int) -> OrderPolicy:
    return random_reshuffling(len(label), seed=seed)


def _paired(label: Tensor, seed: int) -> OrderPolicy:
    return pair_balance(len(label), seed=seed)


def _herded(label: Tensor, seed: int) -> OrderPolicy:
    return halve_and_herd(len(label), seed=seed)


METHODS = {
    "reshuffled": Method(policy=_reshuffled),
    "stratified": Method(policy=lambda label, seed: stratified(label.numpy(), seed=seed)),
    "averaged": Method(policy=_reshuffled, averages=True),
    "averaged constant": Method(policy=_reshuffled, averages=True, is_constant=True),
    "pair exact": Method(policy=_paired, dim=ALL),
    "pair sketch": Method(policy=_paired, dim=1024),
    "pair sketch, every 4": Method(policy=_paired, dim=1024, every=4),
    # What `order="pair-balance"` does.
    "herded sketch": Method(policy=_herded, dim=1024),
}
LABELLED = tuple(key for key in METHODS if key != "averaged constant")
UNLABELLED = ("reshuffled", "averaged", "pair sketch", "pair sketch, every 4", "herded sketch")

TASKS = {
    "logistic regression": Task(
        make=lambda: mlp(196, 10),
        loss=functional.cross_entropy,
        rates=(0.15, 0.3, 0.6),
        epochs=60,
        methods=LABELLED,
        decay=1e-4,
    ),
    "mlp": Task(
        make=lambda: mlp(196, 64, 10),
        loss=functional.cross_entropy,
        rates=(0.1, 0.2, 0.4),
        epochs=15,
        methods=LABELLED,
    ),
    "lenet": Task(
        make=lenet,
        loss=functional.cross_entropy,
        rates=(0.05, 0.1, 0.2, 0.4),
        epochs=5,
        methods=(
            "reshuffled",
            "stratified",
            "averaged",
            "averaged constant",
            "pair sketch",
            "herded sketch",
        ),
    ),
    "lstm": Task(
        make=CharLstm,
        loss=token_loss,
        rates=(1.0, 2.0, 4.0, 8.0),
        epochs=5,
        methods=UNLABELLED,
    ),
}


def data_of(name: str, folder: Path) -> tuple[Tensor, Tensor]:
    if name == "lstm":
        return text_blocks(2048, 32)
    x, label = images(folder, 4096 if name == "lenet" else 8192)
    return (x, label) if name == "lenet" else (functional.avg_pool2d(x, 2), label)


@dataclass(slots=True)
class Run:
    """Loss over all examples after each epoch, and the seconds of training until then."""

    losses: list[float]
    seconds: list[float]


def train(task: Task, method: Method, x: Tensor, y: Tensor, rate: float, seed: int) -> Run:
    torch.manual_seed(seed)
    model = task.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=task.decay)
    policy = method.policy(y, seed)
    sketch = GradientSketch(model, dim=method.dim, every=method.every) if method.dim else None
    average = Average(model) if method.averages else None
    run, took = Run([], []), 0.0
    num_steps = len(x) // BATCH
    for epoch in range(task.epochs):
        start = time.perf_counter()
        order = policy.order(epoch)
        if sketch is not None:
            sketch.set_epoch(epoch)
        for step in range(num_steps):
            left = 1 - (epoch * num_steps + step) / (task.epochs * num_steps)
            optimizer.param_groups[0]["lr"] = rate * (1.0 if method.is_constant else left)
            ids = order[step * BATCH : (step + 1) * BATCH]
            optimizer.zero_grad()
            loss = task.loss(model(x[ids]), y[ids])
            if not torch.isfinite(loss):
                return Run([math.inf] * task.epochs, [math.nan] * task.epochs)
            loss.backward()
            if sketch is not None and sketch.is_on:
                policy.observe(ids, sketch.take().numpy())
            optimizer.step()
            if average is not None and 2 * epoch >= task.epochs:
                average.update()
        policy.end_epoch()
        took += time.perf_counter() - start
        run.seconds.append(took)
        with average.applied() if average is not None else Nothing():
            run.losses.append(objective(task, model, x, y))
    if sketch is not None:
        sketch.remove_hooks()
    return run


class Nothing:
    """A context in which nothing is swapped."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


class Average:
    """The mean of the iterates of the second half of training."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._sums = [torch.zeros_like(p) for p in self._parameters]
        self._num = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the present iterate."""
        self._num += 1
        for total, parameter in zip(self._sums, self._parameters, strict=True):
            total += parameter

    def applied(self) -> "Average | Nothing":
        """Swap the mean in for the length of a `with` block."""
        return self if self._num else Nothing()

    @torch.no_grad()
    def __enter__(self) -> None:
        self._kept = [p.clone() for p in self._parameters]
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.copy_(total / self._num)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            parameter.copy_(kept)


@torch.no_grad()
def objective(task: Task, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the loss over all examples, with the penalty that weight decay stands for."""
    parts = zip(x.split(1024), y.split(1024), strict=True)
    mean = sum(float(task.loss(model(a), b)) * len(a) for a, b in parts) / len(x)
    return mean + task.decay / 2 * sum(float(p.square().sum()) for p in model.parameters())


def optimum(task: Task, x: Tensor, y: Tensor) -> float:
    """Return the least loss of a convex task, found with the whole gradient."""
    torch.manual_seed(0)
    model = task.make()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(model(x), y)
        loss = loss + task.decay / 2 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return objective(task, model, x, y)


def compare(name: str, folder: Path, num_seeds: int) -> dict[str, Any]:
    task, (x, y) = TASKS[name], data_of(name, folder)
    floor = optimum(task, x, y) if name == "logistic regression" else 0.0
    runs = {
        (key, rate): [train(task, METHODS[key], x, y, rate, seed) for seed in range(num_seeds)]
        for key in task.methods
        for rate in task.rates
    }
    final = {key: np.array([run.losses[-1] for run in found]) for key, found in runs.items()}
    best = {key: min(task.rates, key=lambda r: final[key, r].mean()) for key in task.methods}
    goal = float(final["reshuffled", best["reshuffled"]].mean())
    methods = {
        key: {
            "best_rate": best[key],
            "excess_loss": excess(final[key, best[key]], floor),
            "to_reshuffled": until(runs[key, best[key]], goal),
            "epoch_s": float(np.mean([r.seconds[-1] for r in runs[key, best[key]]]) / task.epochs),
            "by_rate": {str(rate): excess(final[key, rate], floor) for rate in task.rates},
        }
        for key in task.methods
    }
    return {"num_examples": len(x), "epochs": task.epochs, "floor": floor, "methods": methods}


def excess(losses: Any, floor: float) -> dict[str, float | None]:
    """Return mean and deviation; none if a run diverged."""
    if not np.isfinite(losses).all():
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(losses) - floor), "std": float(np.std(losses, ddof=1))}


def until(runs: list[Run], goal: float) -> dict[str, float | None]:
    """Return the mean epochs and seconds until the loss is at `goal`; None if a run never is."""
    first = [next((i for i, v in enumerate(run.losses) if v <= goal), None) for run in runs]
    reached = [(i, run.seconds[i]) for i, run in zip(first, runs, strict=True) if i is not None]
    if len(reached) < len(runs):
        return {"epochs": None, "seconds": None, "num_reached": len(reached)}
    epochs, seconds = np.mean(reached, axis=0).tolist()
    return {"epochs": epochs + 1, "seconds": seconds, "num_reached": len(reached)}


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--data", type=Path, default=FASHION_MNIST, help="folder of Fashion-MNIST")
    flags.add_argument("--only", nargs="*", default=list(TASKS), choices=list(TASKS))
    flags.add_argument("--seeds", type=int, default=3)
    options = flags.parse_args()
    torch.set_num_threads(1)
    result = {}
    for name in options.only:
        result[name] = compare(name, options.data, options.seeds)
        print(name, json.dumps(result[name]), file=sys.stderr, flush=True)
    part = "" if len(result) == len(TASKS) else "_" + "_".join(result).replace(" ", "_")
    finish(f"ordering{part}", options, result, "torch")


if __name__ == "__main__":
    main()
