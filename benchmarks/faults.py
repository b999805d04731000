"""Claim: nothing goes wrong in silence, and nothing is lost, whatever happens to a run.

Thousands of faults are made on purpose, drawn from a seed: malformed inputs for every reader,
epochs that stop anywhere and go on with other numbers of ranks, states for other data, damaged
checkpoints; and on gloo ranks SIGKILL at random moments of steps, of trials of plans and of saves,
SIGTERM, SIGSTOP, flipped bits, other seeds and data on one rank. Per kind, `_fault_tally.Tally`
says what came of them; all columns from `unclear` on must be 0.
"""

import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _fault_pure import Damage, interrupted, malformed, other_plans
from _fault_readers import readers
from _fault_replicas import replicas, stopped
from _fault_runs import Runs, kill_in_save, kill_in_step, kill_in_trial, other_sizes, terminate
from _fault_tally import BROKEN, Tally
from _fault_torchrun import kill_under_torchrun
from _record import finish, parser

# Faults per round.
NUM_MALFORMED, NUM_INTERRUPTED, NUM_PLANS, NUM_DAMAGED = 120, 30, 30, 25
# One run per round, each with as many kills, so that few launches carry many.
NUM_PER_RUN = 3
RUNS = {
    "kill in a step": kill_in_step,
    "kill in a trial": kill_in_trial,
    "kill in a save": kill_in_save,
    "kill, other sizes": other_sizes,
    "SIGTERM": terminate,
}
# Starts fresh interpreters again and again, which takes too long for a test.
LAUNCHED = {"kill under torchrun": kill_under_torchrun}


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--rounds", type=int, default=50)
    options = flags.parse_args()
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="paceline-faults-") as folder:
        tallies = inject(Path(folder), options.seed, options.rounds)
    result = as_result(tallies) | {"seconds": round(time.monotonic() - begin_s, 1)}
    finish("faults", options, result, "torch")
    sys.exit(1 if result["broken"] else 0)


def as_result(tallies: dict[str, Tally]) -> dict[str, Any]:
    """Return counts by kind, and over all."""
    return {
        "tried": sum(tally.tried for tally in tallies.values()),
        "broken": sum(tally.broken() for tally in tallies.values()),
        "faults": {kind: tally.plain() for kind, tally in tallies.items()},
    }


def inject(folder: Path, seed: int, num_rounds: int) -> dict[str, Tally]:
    """Make the faults of all rounds; return what came of them, by kind."""
    found = pure(folder / "pure", seed, num_rounds)
    return found | on_ranks(folder / "ranks", seed, num_rounds, kinds=RUNS | LAUNCHED)


def pure(folder: Path, seed: int, num_rounds: int) -> dict[str, Tally]:
    """Make the faults that need one process."""
    known, damaged = readers(folder / "readers"), Damage(folder / "damaged")
    for reader in known:
        reader.read(reader.good)  # Also compiles what it needs, before time is limited.
    rng = random.Random(f"{seed} pure")
    kinds: dict[str, tuple[int, Callable[[Tally], None]]] = {
        "malformed input": (1, lambda tally: malformed(tally, known, rng, NUM_MALFORMED)),
        "epoch stopped and resumed": (NUM_INTERRUPTED, lambda tally: interrupted(tally, rng)),
        "state of another plan": (NUM_PLANS, lambda tally: other_plans(tally, rng)),
        "damaged checkpoint": (NUM_DAMAGED, lambda tally: damaged.damage(tally, rng)),
        "damaged checkpoint, strict": (NUM_DAMAGED, lambda tally: damaged.refuse(tally, rng)),
    }
    tallies = {kind: Tally() for kind in kinds}
    for kind, (times, make) in kinds.items():
        make(Tally())  # What is made once and kept is no leak.
        with _nothing_left(tallies[kind], kind):
            for _ in range(num_rounds * times):
                make(tallies[kind])
        _say(kind, tallies[kind])
    return tallies


def on_ranks(
    folder: Path,
    seed: int,
    num_rounds: int,
    *,
    num_per_run: int = NUM_PER_RUN,
    kinds: Mapping[str, Callable[[Runs, Tally, random.Random, int], None]] = RUNS,
) -> dict[str, Tally]:
    """Make the faults that need ranks: the kinds of runs take turns, one run per round."""
    tallies = {kind: Tally() for kind in kinds}
    runs = Runs(folder / "runs")
    order = list(kinds)
    for number in range(num_rounds):
        kind = order[number % len(order)]
        rng = random.Random(f"{seed} {kind} {number}")
        kinds[kind](runs, tallies[kind], rng, num_per_run)
        _say(f"round {number}, {kind}", tallies[kind])
    for name, make in {"replica differs": replicas, "SIGSTOP": stopped}.items():
        tallies[name] = Tally()
        make(tallies[name], folder / name, f"{seed} {name}", num_rounds)
        _say(name, tallies[name])
    shutil.rmtree(folder)
    return tallies


@contextmanager
def _nothing_left(tally: Tally, kind: str) -> Iterator[None]:
    before = _held()
    yield
    left = {name: now - before[name] for name, now in _held().items() if now > before[name]}
    tally.add("leaked", sum(left.values()), f"{left} after {kind}")


def _held() -> dict[str, int]:
    planning = [one for one in threading.enumerate() if one.name.startswith("paceline-plan")]
    for thread in planning:  # The next epoch is planned ahead, and then the thread ends.
        thread.join()
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return {"threads": threading.active_count(), "descriptors": descriptors}


def _say(kind: str, tally: Tally) -> None:
    counts = {name: value for name, value in tally.plain().items() if value}
    print(f"{kind}: {counts}", file=sys.stderr, flush=True)


def broken_kinds(tallies: dict[str, Tally]) -> dict[str, dict[str, Any]]:
    """Return the kinds in which a promise was broken, for a test's message."""
    return {
        kind: {name: getattr(tally, name) for name in (*BROKEN, "notes")}
        for kind, tally in tallies.items()
        if tally.broken()
    }


if __name__ == "__main__":
    main()
