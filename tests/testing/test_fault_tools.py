"""Faults that `paceline.testing.faults` makes, and how it tells what came of them."""

import json
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paceline.testing.faults import (
    Balance,
    Fault,
    Ledger,
    answer_of,
    at_call,
    damage,
    flip_bit,
    launch,
    limits,
    mutated_bytes,
    mutated_state,
    run_through,
)


def test_inputs_are_named_by_their_seed_and_differ() -> None:
    good = json.dumps({"a": [1, 2.5, "x"], "b": {"c": None}}).encode()

    def made() -> list[bytes]:
        return [mutated_bytes(good, random.Random(seed)) for seed in range(300)]

    assert made() == made()
    assert len(set(made())) > 150
    parsed = [one for one in map(json_or_none, made()) if one is not None]
    assert len(parsed) > 50  # Not all damage is of the kind that every parser sees.


def json_or_none(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def test_a_state_is_copied_before_it_is_mutated() -> None:
    state: dict[str, Any] = {"a": [1, {"b": 2}], "c": "x"}
    before = json.dumps(state)
    kinds = {type(mutated_state(state, random.Random(seed))) for seed in range(200)}
    assert json.dumps(state) == before
    assert len(kinds) > 1  # Sometimes it is no dictionary any more.


def test_a_wait_ends_with_the_processor_time_and_limits_are_lifted() -> None:
    def forever() -> None:
        while True:
            pass

    assert answer_of(forever, cpu_s=0.05)[0] == "hangs"
    assert answer_of(lambda: np.ones(1 << 33), extra_bytes=1 << 28)[0] == "unclear"
    with limits(cpu_s=30.0, extra_bytes=1 << 30):
        pass
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert np.ones(1 << 10).sum() == 1 << 10


def raise_own(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize(
    ("read", "answer"),
    [
        (lambda: 3, "accepted"),
        (lambda: raise_own("a must be 1, got 2; use 1"), "refused"),
        (lambda: raise_own("two\nlines"), "unclear"),
        (lambda: raise_own("x" * 2_000), "unclear"),
        (lambda: raise_own(""), "unclear"),
        (lambda: json.loads("{"), "unclear"),  # JSON's own words: which file?
        (lambda: [][0], "unclear"),
    ],
)
def test_a_refusal_is_one_line_of_ours(read: Any, answer: str) -> None:
    assert answer_of(read)[0] == answer


def test_one_bit_is_flipped_and_a_file_is_never_left_as_it_was(tmp_path: Path) -> None:
    for seed in range(40):
        tensor = torch.zeros(3, 5)
        flip_bit(tensor, random.Random(seed))
        bits = np.unpackbits(tensor.numpy().view(np.uint8))
        assert bits.sum() == 1
        path = tmp_path / "a"
        path.write_bytes(b"abc")
        damage(path, random.Random(seed))
        assert path.read_bytes() != b"abc"
    flip_bit(tensor := torch.zeros(7), random.Random(0), range(31, 32))
    assert (torch.signbit(tensor).sum(), tensor.abs().sum()) == (1, 0)


def test_a_fault_comes_at_the_call_that_was_asked_for() -> None:
    came: list[str] = []
    before = os.getcwd
    with at_call(os, "getcwd", 2, lambda: came.append("fault")):
        for _ in range(3):
            came.append(os.getcwd())
    assert came == [os.getcwd(), "fault", os.getcwd(), os.getcwd()]
    assert os.getcwd is before


def test_a_fault_strikes_one_rank_at_one_place_of_one_step() -> None:
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        fault = Fault(action="terminate", rank=1, step=2, point="save")
        for place in ((0, 2, "save"), (1, 1, "save"), (1, 2, "step")):
            fault.at(*place)
        assert not came.is_set()
        fault.at(1, 2, "save")
        assert came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_ledger_counts_through_weights_and_micro_batches() -> None:
    ledger = Ledger(num_epochs=2, num_examples=6)
    optimizer = torch.optim.SGD(ledger.parameters(), lr=6)
    # One global batch of six as two micro-batches, weighed as a loader does.
    for examples in ([0, 1, 2, 3], [4, 5]):
        (ledger(0, torch.tensor(examples)) * len(examples) / 6).backward()
    optimizer.step()
    assert ledger.balance(1) == Balance(lost=0, repeated=0)
    assert ledger.balance() == Balance(lost=6, repeated=0)


def strike_or_wait(rank: int, fault: Fault | None, folder: str) -> None:
    with Path(folder, f"{rank}").open("a", encoding="utf-8") as file:
        file.write("x")
    if fault is None:
        return
    if fault.action == "stop":
        threading.Event().wait()
    fault.at(rank, 0)
    threading.Event().wait()


def test_ranks_start_again_after_each_fault_until_one_hangs(tmp_path: Path) -> None:
    killed = [Fault(action="kill", rank=1, step=0)]
    done = run_through(strike_or_wait, [2, 1], killed, str(tmp_path))
    assert [(one.num_ranks, one.end) for one in done] == [(2, "failed"), (1, "completed")]
    assert done[0].error.startswith("rank 1 died")
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["xx", "x"]
    waits = Fault(action="stop", rank=0, step=9)
    hung = launch(strike_or_wait, 1, waits, str(tmp_path), limit_s=1.0)
    assert (hung.end, hung.error) == ("hangs", "ranks were still running after 1 s")
    with pytest.raises(ValueError, match=r"one per fault and one more \(2\), got 3"):
        run_through(strike_or_wait, [1, 1, 1], killed)
