"""Faults that need one process: malformed inputs, interrupted epochs, damaged checkpoints."""

import json
import random
import traceback
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _fault_reader import Reader
from _fault_readers import readers
from _fault_tally import Tally

import paceline
from paceline.balance import BalanceConfig, Cursor, EpochPlanner
from paceline.cost import Worker
from paceline.errors import StateMismatchError
from paceline.testing.faults import answer_of, damage
from paceline.torch import BalancedBatchSampler, DataLoader, Replica

COLUMNS = {
    "refused": "refused_clearly", "unclear": "unclear", "hangs": "hangs", "accepted": "still_valid",
}  # fmt: skip
MAX_RANKS = 4


def malformed(tally: Tally, known: list[Reader], rng: random.Random, num: int) -> None:
    """Give each reader its turn at what was made of a good input."""
    for _ in range(num):
        reader = rng.choice(known)
        bad = reader.mutate(reader.good, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer, found = answer_of(partial(reader.read, bad))
        column = COLUMNS[answer]
        if answer == "accepted" and reader.is_checked:
            column = "recovered" if found == reader.read(reader.good) else "silently_wrong"
        tally.add("tried")
        tally.add(column, 1, f"{reader.name}: {type(found).__name__}: {found}")


def hunt(folder: Path, seed: str = "0", num: str = "100", name: str = "") -> None:
    """Print what is not refused clearly, once per place; for long runs."""
    for reader in readers(folder):
        places: Counter[Any] = Counter()
        for number in range(int(num)) if name in reader.name else ():
            bad = reader.mutate(reader.good, random.Random(f"{seed} {reader.name} {number}"))
            answer, found = answer_of(partial(reader.read, bad))
            if answer in ("unclear", "hangs"):
                frames = traceback.extract_tb(found.__traceback__)[-2:]
                where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
                place = (answer, type(found).__name__, *where)
                if not places[place]:
                    print(reader.name, number, *place, f"{found!s:.100}", flush=True)
                places[place] += 1


def interrupted(tally: Tally, rng: random.Random) -> None:
    """Stop an epoch at random steps, go on with 1 to 4 ranks each time, and count examples."""
    sizes = [rng.randint(1, 50) for _ in range(rng.randint(8, 120))]
    settings: dict[str, Any] = {
        "batch_size": 12 * rng.randint(1, 2),  # Which 1, 2, 3 and 4 ranks divide.
        "counts": rng.choice(("equal", "free")),
        "window": rng.choice((1, 1, 2, 5)),
        "seed": rng.randrange(100),
    }
    order = "pair-balance" if settings["window"] == 1 and rng.random() < 0.3 else "shuffle"
    came: Counter[int] = Counter()
    state, num_stops = None, 0
    while True:
        state, has_ended, same = _part(sizes, settings, order, state, came, rng)
        if not same:
            tally.add("diverged", 1, f"ranks save other states: {settings}, {len(sizes)} examples")
        if has_ended:
            break
        num_stops += 1
    lost = sum(came[number] == 0 for number in range(len(sizes)))
    more = sum(count > 1 for count in came.values())
    story = f"{settings}, {order}, {len(sizes)} examples, {num_stops} stops"
    tally.add("tried", max(num_stops, 1))
    tally.add("lost", lost, story)
    tally.add("repeated", more, story)
    if not lost and not more:
        tally.add("recovered", max(num_stops, 1))


def _part(
    sizes: list[int],
    settings: dict[str, Any],
    order: Any,
    state: Any,
    came: Counter[int],
    rng: random.Random,
) -> tuple[Any, bool, bool]:
    """Deliver some steps on some ranks; return the state, if the epoch ended, if ranks agree."""
    num_ranks = rng.randint(1, min(MAX_RANKS, len(sizes)))
    num_steps = rng.choice((rng.randint(0, 3), 10**6))
    states = []
    for rank in range(num_ranks):
        place = Replica(rank=rank, num_replicas=num_ranks)
        config = BalanceConfig(**settings, num_workers=num_ranks)
        batches = BalancedBatchSampler(sizes, config, process_group=place, order=order)
        loader: DataLoader[int] = DataLoader(range(len(sizes)), batch_sampler=batches)  # type: ignore[arg-type]
        if state is not None:
            loader.load_state_dict(json.loads(state))
        _deliver(loader, num_steps, came)
        states.append(json.dumps(loader.state_dict(), sort_keys=True))
    # Whose last batch was delivered is at the start of the next epoch.
    has_ended = json.loads(states[0])["epoch"] > 0
    return states[0], has_ended, len(set(states)) == 1


def _deliver(loader: "DataLoader[int]", num_steps: int, came: Counter[int]) -> None:
    """Count what `num_steps` steps deliver, or as many as are left of the epoch."""
    if not num_steps:
        return
    for batch in loader:
        if loader.loss_weight > 0:
            came.update(batch.tolist())
        num_steps -= loader.is_step_end
        if not num_steps:
            return


def other_plans(tally: Tally, rng: random.Random) -> None:
    """Load a state into a planner of which one thing is another: refused, or the same plan."""
    sizes = [float(rng.randint(1, 50)) for _ in range(rng.randint(8, 60))]
    config = BalanceConfig(batch_size=4, num_workers=2, seed=rng.randrange(9))
    saving = EpochPlanner(sizes, config)
    at = Cursor(workers=(Worker(), Worker(speed=rng.choice((0.5, 1.0)))), epoch=1, num_steps=1)
    state, plan = saving.state_dict(at), saving.plan(at)
    change = rng.choice(("nothing", "size", "example", "seed", "window", "counts", "batch", "plan"))
    other, other_config = list(sizes), config
    if change == "size":
        other[rng.randrange(len(sizes))] += rng.choice((1.0, 1e-9))
    elif change == "example":
        other.append(3.0)
    elif change == "plan":
        state["segments"][0]["plan"] = state["segments"][0]["plan"][::-1] + "0"
    elif change != "nothing":
        values: dict[str, Any] = {"seed": 10, "window": 2, "counts": "free", "batch": 6}
        name = "batch_size" if change == "batch" else change
        other_config = replace(config, **{name: values[change]})
    tally.add("tried")
    loading = EpochPlanner(other, other_config)
    try:
        found = loading.plan(loading.load_state_dict(state))
    except StateMismatchError:
        wrong = change == "nothing"
        tally.add("unclear" if wrong else "refused_clearly", 1, "refused what is the same")
        return
    is_same = found.examples.tolist() == plan.examples.tolist() and change == "nothing"
    tally.add("recovered" if is_same else "silently_wrong", 1, f"another {change} was taken")


class Damage:
    """A run of two checkpoints, of which the newest is damaged again and again."""

    def __init__(self, folder: Path) -> None:
        self._model = torch.nn.Linear(3, 2)
        self._checkpoint = paceline.Checkpoint(folder, model=self._model)
        with self._checkpoint as saving:
            for step in (1, 2):
                torch.nn.init.constant_(self._model.weight, float(step))
                saving.save(step)
            saving.flush()
        self._newest = folder / "step_00000002"
        self._good = {path: path.read_bytes() for path in self._newest.iterdir()}

    def damage(self, tally: Tally, rng: random.Random) -> None:
        """Damage a file of the newest: the one before is used, with one warning."""
        path = rng.choice(sorted(self._good))
        if rng.random() < 0.02:
            path.unlink()
        else:
            damage(path, rng)
        tally.add("tried")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answer, step = answer_of(self._checkpoint.resume)
        path.write_bytes(self._good[path])
        weight = self._model.weight.detach()
        is_right = step == 1 and bool((weight == 1.0).all()) and len(caught) == 1
        column = "recovered" if is_right else "silently_wrong"
        story = f"{path.name}: {step}, {[str(one.message) for one in caught]}"
        tally.add(column if answer == "accepted" else "unclear", 1, story)

    def refuse(self, tally: Tally, rng: random.Random) -> None:
        """Ask for the newest and nothing else: an error that names the file."""
        path = rng.choice(sorted(self._good))
        damage(path, rng)
        tally.add("tried")
        answer, found = answer_of(lambda: self._checkpoint.resume(strict=True))
        path.write_bytes(self._good[path])
        is_clear = answer == "refused" and path.name in str(found)
        wrong = "silently_wrong" if answer == "accepted" else "unclear"
        tally.add("refused_clearly" if is_clear else wrong, 1, f"{path.name}: {found}")
