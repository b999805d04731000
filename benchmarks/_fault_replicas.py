"""Faults that the guard is to find: flipped bits, other seeds, other data, stopped ranks."""

import json
import logging
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _fault_tally import Tally
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from paceline.balance import BalanceConfig
from paceline.errors import DivergenceError
from paceline.testing.faults import flip_bit, launch
from paceline.torch import BalancedBatchSampler, guard

SIZES = [3, 1, 4, 1, 5, 9, 2, 6] * 4
# A flip among these stays one: it is neither rounded away, nor does it make an infinity.
LASTING_BITS = range(10, 23)
PATIENCE_S = 0.5


def replicas(tally: Tally, folder: Path, seed: str, num: int) -> None:
    """Flip bits, and begin with other seeds and data on one rank; `num` times each."""
    _launch(_replicas, tally, folder, seed, num)


def stopped(tally: Tally, folder: Path, seed: str, num: int) -> None:
    """SIGSTOP a rank until the guard has named it."""
    _launch(_stopped, tally, folder, seed, num)


def _launch(function: Callable[..., None], tally: Tally, folder: Path, seed: str, num: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ended = launch(function, 2, None, str(folder), seed, num, limit_s=60.0 + 10.0 * num)
    if ended.end != "completed":
        tally.add("tried")
        tally.add("hangs" if ended.end == "hangs" else "unclear", 1, ended.error[-300:])
        return
    ranks = [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    for answers in zip(*ranks, strict=True):
        tally.add("tried")
        columns = {column for column, _ in answers}
        worst = next((c for c in ("silently_wrong", "unclear") if c in columns), "refused_clearly")
        tally.add(worst, 1, str(answers))


def _write(folder: str, rank: int, found: list[Any]) -> None:
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def _replicas(rank: int, _: None, folder: str, seed: str, num: int) -> None:
    found = []
    for number in range(num):
        rng = random.Random(f"{seed} {number}")
        for fault in (_flip_between, _flip_in_training, _other_start):
            found.append(fault(rank, rng))
    _write(folder, rank, found)


def _new() -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
    model = DistributedDataParallel(bare)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def _train(model: nn.Module, optimizer: Any, rank: int, at_step: Callable[[int], None]) -> None:
    generator = torch.Generator().manual_seed(rank)
    for step in range(4):
        at_step(step)
        model(torch.randn(4, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _told(name: str, run: Callable[[], None]) -> tuple[str, str]:
    """Return how the fault was answered; the error must name `name`."""
    try:
        run()
    except DivergenceError as error:
        is_clear = name in str(error) and "\n" not in str(error) and "rank 1" in str(error)
        return ("refused_clearly" if is_clear else "unclear"), str(error)[:300]
    return "silently_wrong", f"no word of {name}"


def _flip_between(rank: int, rng: random.Random) -> tuple[str, str]:
    """Any bit, compared at once."""
    model, optimizer = _new()
    whose, (name, parameter) = rng.randrange(2), rng.choice([*model.module.named_parameters()])
    seed = rng.random()

    def run() -> None:
        with guard(model, optimizer) as guarded:
            if rank == whose:
                flip_bit(parameter, random.Random(seed))
            guarded.check()

    return _told(name, run)


def _flip_in_training(rank: int, rng: random.Random) -> tuple[str, str]:
    model, optimizer = _new()
    whose, at = rng.randrange(2), rng.randrange(4)
    name, parameter = rng.choice([*model.module.named_parameters()])
    seed = rng.random()

    def flip(step: int) -> None:
        if (rank, step) == (whose, at):
            flip_bit(parameter, random.Random(seed), LASTING_BITS)

    def run() -> None:
        with guard(model, optimizer, every=1):
            _train(model, optimizer, rank, flip)

    return _told(name, run)


def _other_start(rank: int, rng: random.Random) -> tuple[str, str]:
    """Another seed, window, batch size or example on rank 1."""
    what = rng.choice(("seed", "window", "batch_size", "sizes"))
    change: dict[str, Any] = {"seed": rng.randrange(1, 1000), "window": 2, "batch_size": 4}
    sizes, at = list(SIZES), rng.randrange(len(SIZES))
    settings: dict[str, Any] = {"batch_size": 8, "seed": 0}
    if rank == 1 and what == "sizes":
        sizes[at] += 1
    elif rank == 1:
        settings[what] = change[what]
    model, optimizer = _new()

    def run() -> None:
        data = BalancedBatchSampler(sizes, BalanceConfig(**settings))
        with guard(model, optimizer, data=data):
            pass

    return _told(what, run)


class _Names(logging.Handler):
    """Keeps warnings, and calls `then` at each."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._then = then

    def emit(self, record: logging.LogRecord) -> None:
        """Take a warning."""
        self.texts.append(record.getMessage())
        self._then()


def _stopped(rank: int, _: None, folder: str, seed: str, num: int) -> None:
    pids: list[Any] = [None, None]
    dist.all_gather_object(pids, os.getpid())
    found = []
    for number in range(num):
        rng = random.Random(f"{seed} {number}")
        found.append(_stop_once(rank, rng.randrange(4), pids[1]))
    _write(folder, rank, found)


def _stop_once(rank: int, at: int, pid: int) -> tuple[str, str]:
    """Rank 1 stops itself; rank 0 lets it go on once the guard has said something."""
    model, optimizer = _new()
    names = _Names(lambda: os.kill(pid, signal.SIGCONT))
    if rank == 0:
        logging.getLogger("paceline.guard").addHandler(names)

    def stop(step: int) -> None:
        if (rank, step) == (1, at):
            os.kill(os.getpid(), signal.SIGSTOP)

    try:
        with guard(model, optimizer, patience_s=PATIENCE_S):
            _train(model, optimizer, rank, stop)
            dist.barrier()
    finally:
        logging.getLogger("paceline.guard").removeHandler(names)
    # Rank 0 alone can tell; rank 1 was stopped, and its own clock may have told on it since.
    is_named = rank == 1 or any("not arrived: rank 1" in text for text in names.texts)
    return ("refused_clearly" if is_named else "unclear"), " | ".join(names.texts)[:300]
