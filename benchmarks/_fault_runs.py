"""Faults that need ranks: a small run with everything, killed, stopped and resumed."""

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _fault_tally import Tally
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import paceline
from paceline.testing.faults import Fault, Launch, Ledger, at_call, run_through

SIZES = [1 + number % 7 for number in range(48)]
BATCH_SIZE, NUM_EPOCHS = 12, 6  # Which 1, 2, 3 and 4 ranks divide.
STEPS_PER_EPOCH = len(SIZES) // BATCH_SIZE
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH
SAVE_EVERY = 2
LIMIT_S = 60.0
# Ranks of other numbers add up in another order; training of a few steps amplifies that little.
TOLERANCE = 1e-4
Wrap = Callable[[nn.Module, torch.optim.Optimizer], nn.Module]
# Few steps, so that trials of plans take up most of the run.
scheduled = partial(paceline.ScheduledDataParallel, num_measure_steps=2, num_trial_steps=1)
WRAPS: dict[str, Wrap] = {
    "ddp": lambda model, _: DistributedDataParallel(model),
    "scheduled": scheduled,
    "sharded": partial(scheduled, sharded=True),
}
SAVING = ((os, "fsync"), (os, "replace"), (os, "mkdir"))


class Counted(nn.Module):
    """A small network, and the ledger of what it was trained on."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1)
        )
        self.ledger = Ledger(NUM_EPOCHS, len(SIZES))

    def forward(self, epoch: int, examples: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a micro-batch."""
        x = torch.sin(examples[:, None] * torch.arange(1.0, 5.0))
        loss: torch.Tensor = self.layers(x).square().mean() + self.ledger(epoch, examples)
        return loss


def train(
    rank: int,
    fault: Fault | None,
    folder: str,
    wrap: str,
    dropout: float,
    call: int = 0,
    step_s: float = 0.0,
) -> None:
    """Resume, train to the end and write down what came out; the fault may come in between.

    A step takes `step_s` longer than it would, as with a larger model: emulated.
    """
    torch.manual_seed(1)
    bare = Counted(dropout)
    groups = [
        {"params": list(bare.layers.parameters()), "lr": 0.05, "momentum": 0.9},
        {"params": list(bare.ledger.parameters()), "lr": float(BATCH_SIZE)},
    ]
    optimizer = torch.optim.SGD(groups)
    model = WRAPS[wrap](bare, optimizer)
    sampler = paceline.BalancedBatchSampler(SIZES, batch_size=BATCH_SIZE, seed=3)
    examples: Any = range(len(SIZES))
    loader = paceline.DataLoader(examples, batch_sampler=sampler)
    checkpoint = paceline.Checkpoint(
        Path(folder), model=model, optimizer=optimizer, data=loader, keep=2
    )
    with ExitStack() as stack:
        if fault is not None and fault.point == "save" and rank == fault.rank:
            owner, name = SAVING[call % len(SAVING)]
            stack.enter_context(at_call(owner, name, 1 + call // len(SAVING), fault.strike))
        stack.enter_context(checkpoint)
        stack.enter_context(checkpoint.on_signal(signal.SIGTERM))
        is_done = _steps(rank, fault, model, optimizer, loader, checkpoint, step_s)
    if isinstance(model, paceline.ScheduledDataParallel):
        model.flush()
        model.close()
    if is_done:
        _write_down(rank, Path(folder), bare)


def _steps(
    rank: int,
    fault: Fault | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: "paceline.DataLoader[Any]",
    checkpoint: paceline.Checkpoint,
    step_s: float,
) -> bool:
    """Make the steps that are left; return whether all were made."""
    first = step = checkpoint.resume()
    while step < NUM_STEPS:
        epoch = step // STEPS_PER_EPOCH
        loader.set_epoch(epoch)
        for examples in loader:
            if fault is not None:
                fault.at(rank, step - first)
            time.sleep(step_s)
            (model(epoch, examples) * loader.loss_weight).backward()
            _update(model, optimizer)
            step += 1
            if is_stopping := checkpoint.should_stop():
                checkpoint.save(step)
                return False
            if step % SAVE_EVERY == 0 and not is_stopping:
                checkpoint.save(step)
    return True


def _update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if isinstance(model, paceline.ScheduledDataParallel):
        model.step()
    else:
        optimizer.step()
        optimizer.zero_grad()


def _write_down(rank: int, folder: Path, model: Counted) -> None:
    flat = torch.cat([one.detach().flatten() for one in model.layers.parameters()])
    counts = model.ledger.counts.detach()
    digest = hashlib.sha256(flat.numpy().tobytes() + counts.numpy().tobytes()).hexdigest()
    balance = model.ledger.balance()
    found = {
        "digest": digest, "weights": flat.tolist(), "lost": balance.lost,
        "repeated": balance.repeated,
    }  # fmt: skip
    (folder / f"end_{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def ends_of(folder: Path) -> list[dict[str, Any]]:
    """Return what the ranks of the last launch wrote down."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("end_*.json"))]


class Runs:
    """Runs in folders of their own, compared with undisturbed ones of the same kind.

    Args:
        folder: Gets them.
        disturbed: What the ranks do that the faults happen to.
    """

    def __init__(self, folder: Path, disturbed: Callable[..., None] = train) -> None:
        self._folder, self._disturbed = folder, disturbed
        self._num_runs = 0
        self._undisturbed: dict[tuple[str, float], dict[str, Any]] = {}

    def run(
        self,
        tally: Tally,
        faults: Sequence[Fault],
        num_ranks: Sequence[int],
        wrap: str,
        *,
        dropout: float = 0.3,
        call: int = 0,
    ) -> None:
        """Let faults happen to one run, launch after launch, and count what came of them."""
        folder = self.new_folder()
        arguments = str(folder), wrap, dropout, call
        launches = run_through(self._disturbed, num_ranks, faults, *arguments, limit_s=LIMIT_S)
        num_struck = sum(_has_struck(launch) for launch in launches)
        tally.add("tried", num_struck)
        story = f"{wrap}, {num_ranks} ranks, {faults}, call {call}"
        is_whole = _count_ends(tally, launches, story)
        if is_whole and self.is_as_undisturbed(tally, folder, wrap, dropout, num_ranks, story):
            tally.add("recovered", num_struck)
        left = [path.name for path in folder.glob(".*")]
        tally.add("leaked", len(left), f"{left} after {story}")

    def is_as_undisturbed(
        self,
        tally: Tally,
        folder: Path,
        wrap: str,
        dropout: float,
        num_ranks: Sequence[int],
        story: str,
    ) -> bool:
        """Compare what a run wrote down at its end with the undisturbed one; count differences."""
        expected = self._expected(wrap, dropout)
        return self._count_state(tally, ends_of(folder), expected, num_ranks, story)

    def _expected(self, wrap: str, dropout: float) -> dict[str, Any]:
        if (wrap, dropout) not in self._undisturbed:
            folder = self.new_folder()
            (launch,) = run_through(train, [2], [], str(folder), wrap, dropout, limit_s=LIMIT_S)
            if launch.end != "completed":
                raise RuntimeError(f"the undisturbed run of {wrap} {launch.end}: {launch.error}")
            self._undisturbed[wrap, dropout] = ends_of(folder)[0]
        return self._undisturbed[wrap, dropout]

    def new_folder(self) -> Path:
        """Return a new folder for one run."""
        self._num_runs += 1
        folder = self._folder / f"run_{self._num_runs}"
        folder.mkdir(parents=True)
        return folder

    @staticmethod
    def _count_state(
        tally: Tally,
        ends: list[dict[str, Any]],
        expected: dict[str, Any],
        num_ranks: Sequence[int],
        story: str,
    ) -> bool:
        before = tally.broken()
        tally.add("lost", max(end["lost"] for end in ends), story)
        tally.add("repeated", max(end["repeated"] for end in ends), story)
        if len({end["digest"] for end in ends}) > 1:
            tally.add("diverged", 1, story)
        difference = _largest_difference(ends[0]["weights"], expected["weights"])
        is_alike = difference < TOLERANCE if len(num_ranks) > 1 else difference == 0.0
        if not is_alike or (len(num_ranks) == 1 and ends[0]["digest"] != expected["digest"]):
            tally.add("silently_wrong", 1, f"weights differ by {difference} after {story}")
        return tally.broken() == before


def _largest_difference(one: list[float], other: list[float]) -> float:
    difference = torch.tensor(one).sub(torch.tensor(other)).abs().max()
    return float(difference.nan_to_num(nan=torch.inf))


def _has_struck(launch: Launch) -> bool:
    """Whether the fault came: one that is late may find the run at its end."""
    is_kill = launch.fault is not None and launch.fault.action == "kill"
    return launch.fault is not None and (not is_kill or launch.end == "failed")


def _count_ends(tally: Tally, launches: Sequence[Launch], story: str) -> bool:
    """Count launches that ended otherwise than they should; return whether the last completed."""
    last = launches[-1]
    if last.end == "hangs":
        tally.add("hangs", 1, story)
        return False
    for one in launches:
        is_killed = one.fault is not None and one.fault.action == "kill"
        if one.end == "failed" and not is_killed:
            tally.add("unclear", 1, f"{story}: {one.error[-200:]}")
    return last.end == "completed"


def kill_in_step(runs: Runs, tally: Tally, rng: random.Random, num: int) -> None:
    """SIGKILL at a random moment of the steps of plain or sharded training; all start again."""
    faults = [_kill(rng) for _ in range(num)]
    runs.run(tally, faults, [2], rng.choice(("ddp", "sharded")))


def kill_in_trial(runs: Runs, tally: Tally, rng: random.Random, num: int) -> None:
    """SIGKILL while plans are measured and tried, or one is taken up."""
    runs.run(tally, [_kill(rng, first=2) for _ in range(num)], [2], "scheduled")


def kill_in_save(runs: Runs, tally: Tally, rng: random.Random, num: int) -> None:
    """SIGKILL of the rank that writes, before a call to the file system."""
    faults = [Fault(action="kill", rank=0, step=0, point="save") for _ in range(num)]
    wrap = rng.choice(("ddp", "scheduled"))
    runs.run(tally, faults, [2], wrap, call=rng.randrange(3 * len(SAVING)))


def other_sizes(runs: Runs, tally: Tally, rng: random.Random, num: int) -> None:
    """SIGKILL, and each launch has 1 to 4 ranks."""
    sizes = [rng.randint(1, 4) for _ in range(num + 1)]
    faults = [_kill(rng, num_ranks=size) for size in sizes[:-1]]
    runs.run(tally, faults, sizes, rng.choice(("ddp", "sharded")), dropout=0.0)


def terminate(runs: Runs, tally: Tally, rng: random.Random, num: int) -> None:
    """SIGTERM to one rank: all save, and end with status 0."""
    faults = [
        Fault(action="terminate", rank=rng.randrange(2), step=rng.randrange(4), delay_s=_delay(rng))
        for _ in range(num)
    ]
    runs.run(tally, faults, [2], rng.choice(tuple(WRAPS)))


def _kill(rng: random.Random, *, first: int = 0, num_ranks: int = 2) -> Fault:
    step = first + rng.randrange(4)
    return Fault(action="kill", rank=rng.randrange(num_ranks), step=step, delay_s=_delay(rng))


def _delay(rng: random.Random) -> float:
    """Half of the faults come at once, the others within a few steps."""
    return rng.choice((0.0, rng.random() * 0.01))
