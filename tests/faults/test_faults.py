"""A short run of benchmarks/faults.py, and that it says so where a promise is broken."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from _fault_pure import Damage, interrupted, malformed, other_plans
from _fault_reader import Reader
from _fault_replicas import _told
from _fault_runs import Runs, train
from _fault_tally import BROKEN, Tally
from faults import RUNS, _nothing_left, broken_kinds, on_ranks, pure

from paceline import Checkpoint, DataLoader
from paceline.balance.cursor import _planner
from paceline.balance.cursor._rest import remaining_examples
from paceline.testing.faults import Fault
from paceline.torch.checkpoint import _safetensors, _whole

NUM_EACH = 100


def test_faults_of_one_process_break_no_promise(tmp_path: Path) -> None:
    tallies = pure(tmp_path, seed=1, num_rounds=1)
    assert broken_kinds(tallies) == {}
    assert sum(tally.tried for tally in tallies.values()) > 200


def test_faults_of_ranks_break_no_promise(tmp_path: Path) -> None:
    tallies = on_ranks(tmp_path / "ranks", seed=1, num_rounds=len(RUNS), num_per_run=1)
    assert broken_kinds(tallies) == {}
    assert sum(tally.tried for tally in tallies.values()) > 20


# What follows breaks a promise on purpose: the counts must not be 0.


def many(make: Any, *before: Any) -> Tally:
    tally, rng = Tally(), random.Random(0)
    for _ in range(NUM_EACH):
        make(*before, tally, rng)
    return tally


def one_step_early(plan: Any, num_steps: int) -> Any:
    return remaining_examples(plan, max(num_steps - 1, 0))


def one_step_late(plan: Any, num_steps: int) -> Any:
    return remaining_examples(plan, min(num_steps + 1, plan.num_steps))


@pytest.mark.parametrize(
    ("wrong", "column"), [(one_step_early, "repeated"), (one_step_late, "lost")]
)
def test_a_sampler_that_resumes_elsewhere_is_found(wrong: Any, column: str) -> None:
    with patch.object(_planner, "remaining_examples", wrong):
        tally = many(interrupted)
    assert getattr(tally, column) > 0
    assert tally.recovered < tally.tried


def test_a_planner_that_takes_any_state_is_found() -> None:
    with (
        patch.object(_planner, "segments_of", taken_as_it_is),
        patch.object(_planner, "check_segment", lambda *_: None),
    ):
        assert many(other_plans).silently_wrong > 0


def taken_as_it_is(state: Any, *_: Any) -> Any:
    workers = (_planner.Worker(),) * state["segments"][0]["num_workers"]
    segment = _planner.Segment(workers=workers, num_microbatches=1, num_steps=1, digest="")
    return state["epoch"], (segment,)


class NoChecksum:
    """Looks like SHA-256, and is the same for everything."""

    def __init__(self, data: bytes = b"") -> None:
        pass

    def update(self, data: bytes) -> None:
        """Take no notice."""

    def hexdigest(self) -> str:
        """Return what it always is."""
        return "0" * 64


@pytest.fixture
def no_checksums() -> Iterator[None]:
    with (
        patch.object(_safetensors, "sha256", NoChecksum),
        patch.object(_whole, "sha256", NoChecksum),
    ):
        yield


@pytest.mark.usefixtures("no_checksums")
def test_a_checkpoint_without_checksums_is_found(tmp_path: Path) -> None:
    damaged = Damage(tmp_path)
    assert many(damaged.damage).silently_wrong > 0
    assert many(damaged.refuse).silently_wrong > 0


def raises_key_error(_: bytes) -> Any:
    return {}["a"]


def says_two_lines(_: bytes) -> Any:
    raise ValueError("one\ntwo")


def takes_gigabytes(_: bytes) -> Any:
    return bytearray(1 << 33)


@pytest.mark.parametrize("read", [raises_key_error, says_two_lines, takes_gigabytes])
def test_a_reader_that_is_not_clear_is_found(read: Any) -> None:
    tally = Tally()
    malformed(tally, [Reader("x", b"{}", read)], random.Random(0), 3)
    assert tally.unclear == 3


def test_a_reader_that_takes_what_was_changed_is_found() -> None:
    tally = Tally()
    reader = Reader("x", b"abc", lambda data: data, is_checked=True)
    malformed(tally, [reader], random.Random(0), 3)
    assert tally.silently_wrong == 3


def test_what_stays_open_is_found(tmp_path: Path) -> None:
    tally = Tally()
    with _nothing_left(tally, "x"):
        file = (tmp_path / "a").open("w")
    file.close()
    assert tally.leaked == 1


def test_a_guard_that_says_nothing_is_found() -> None:
    assert _told("weight", lambda: None)[0] == "silently_wrong"


def train_and_forget(rank: int, fault: Fault | None, *arguments: Any) -> None:
    """Train, but begin the epoch anew after each crash; checkpoints are there at once."""
    save = Checkpoint.save

    def save_and_wait(checkpoint: Checkpoint, step: int) -> None:
        save(checkpoint, step)
        checkpoint.flush()

    with (
        patch.object(DataLoader, "load_state_dict", lambda *_: None),
        patch.object(Checkpoint, "save", save_and_wait),
    ):
        train(rank, fault, *arguments)


def test_a_run_that_forgets_its_place_in_the_data_is_found(tmp_path: Path) -> None:
    tally = Tally()
    # The newest checkpoint is that of step 2, inside the epoch.
    fault = Fault(action="kill", rank=0, step=3)
    Runs(tmp_path, train_and_forget).run(tally, [fault], [2], "ddp")
    assert tally.tried == 1
    assert tally.recovered == 0
    assert tally.repeated > 0
    assert tally.silently_wrong == 1


def test_every_broken_promise_counts() -> None:
    for column in BROKEN:
        tally = Tally()
        tally.add(column, 2, "why")
        assert tally.broken() == 2
        assert broken_kinds({"x": tally})["x"]["notes"] == [f"{column}: why"]
