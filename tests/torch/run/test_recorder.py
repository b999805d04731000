"""The recorder in one process: loops that know nothing of it, and what lies in the folder."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizers
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from paceline.run import RunFolder, Steps
from paceline.torch.run._chunks import STEPS_PER_CHUNK
from paceline.torch.run._fetches import Fetches
from paceline.torch.run._inputs import counted
from paceline.torch.run._recorder import Recorder

LENGTHS = [3, 1, 2, 5, 4, 4, 2, 6]


class Clock:
    """Goes on by what it is told, so that every second has a cause."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Slow(torch.utils.data.Dataset[torch.Tensor]):
    """Takes one second for each example."""

    def __init__(self, clock: Clock, num_examples: int) -> None:
        self.clock, self.num_examples = clock, num_examples

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> torch.Tensor:
        self.clock.now_s += 1.0
        return torch.ones(4)


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.ones(6, 4))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def recorder(folder: RunFolder) -> Iterator[Recorder]:
    before = classes()
    recorder = Recorder(folder, 0)
    recorder.install()
    yield recorder
    recorder.finish()
    assert classes() == before


def classes() -> list[object]:
    hooks = dict(optimizers._global_optimizer_post_hooks)
    return [DataLoader.__iter__, _BaseDataLoaderIter.__next__, hooks]


def train(
    model: nn.Module,
    batches: Any,
    *,
    accumulate: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    for number, batch in enumerate(batches, start=1):
        model(batch).sum().backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def ragged(lengths: list[int]) -> list[torch.Tensor]:
    return [torch.ones(length, 4) for length in lengths]


def test_micro_batches_are_summed_and_the_first_step_finds_the_model(
    recorder: Recorder, folder: RunFolder
) -> None:
    train(nn.Linear(4, 1), ragged(LENGTHS), accumulate=2)
    recorder.finish()
    steps = folder.read_steps(0)
    assert steps.num_microbatches.tolist() == [2, 2, 2]
    assert steps.num_examples.tolist() == [7, 8, 8]
    assert steps.num_elements.tolist() == [28, 32, 32]
    assert (steps.forward_s > 0).all()
    assert (steps.backward_s > 0).all()
    assert (steps.begin_s[1:] > steps.begin_s[:-1]).all()


def test_validation_is_no_training(recorder: Recorder, folder: RunFolder) -> None:
    model = nn.Sequential(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    validation = DataLoader(torch.ones(8, 4), batch_size=2)
    for _ in range(5):
        train(model, DataLoader(torch.ones(6, 4), batch_size=3), optimizer=optimizer)
        model.eval()
        for batch in validation:
            model(batch)  # With gradients: many scripts forget to turn them off.
        with torch.no_grad():
            model[0](next(iter(validation)))
        model.train()
        with torch.no_grad():
            model(torch.ones(100, 4))
    recorder.finish()
    steps = folder.read_steps(0)
    assert steps.num_microbatches.tolist() == [1] * 9
    assert steps.num_examples.tolist() == [3] * 9


def test_a_model_that_only_knows_eval_mode_trains(recorder: Recorder, folder: RunFolder) -> None:
    train(nn.Linear(4, 1).eval(), ragged(LENGTHS))
    recorder.finish()
    assert folder.read_steps(0).num_examples.tolist() == LENGTHS[1:]


def test_the_wait_belongs_to_the_loader_that_trains() -> None:
    clock = Clock()
    fetches = Fetches(clock)
    fetches.install()
    try:
        training = iter(DataLoader(Slow(clock, 8), batch_size=2))
        validation = DataLoader(Slow(clock, 5), batch_size=5)
        next(training), next(training)
        assert (fetches.take(), fetches.take()) == (4.0, 0.0)
        assert fetches.training is not None
        assert fetches.training.num_left == 2
        list(validation)
        fetches.drop()
        next(training)
        list(validation)  # Evaluated without the model being called as a whole.
        next(training)
        assert fetches.take() == 4.0
        assert fetches.training.facts["dataset"] == "Slow"
        assert fetches.training.facts["sampler"] == "SequentialSampler"
        stream = iter(DataLoader(Stream()))
        next(stream)
        fetches.take()
        assert fetches.training.num_left is None
        assert fetches.training.facts["sampler"] is None
    finally:
        fetches.remove()


def test_padding_is_told_by_the_loader_where_the_inputs_are_on_a_device() -> None:
    fetches = Fetches()
    fetches.counts_padding = True
    fetches.install()
    try:
        batches = [torch.tensor([[5, 6, 7], [1, 0, 0]]), torch.tensor([[1, 2]])]
        list(DataLoader(batches, batch_size=None))
    finally:
        fetches.remove()
    on_device = [counted((batch.to("meta"),), {}) for batch in batches]
    assert [fetches.padding_of(inputs) for inputs in on_device] == [2, 0]
    assert fetches.padding_of(on_device[0]) == -1


def test_the_facts_tell_model_and_data(recorder: Recorder, folder: RunFolder) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    loader = DataLoader(torch.ones(40, 4), batch_size=5, shuffle=True)
    train(model, loader, optimizer=torch.optim.Adam(model.parameters()))
    recorder.finish()
    facts = folder.read_facts(0)
    assert facts is not None
    assert facts.pop("host_s") > 0
    assert facts == {
        "parallel": "none",
        "sampler": "RandomSampler",
        "batch_sampler": "BatchSampler",
        "dataset": "Tensor",
        "num_workers": 0,
        "batch_size": 5,
        "num_parameters": 49,
        "gradient_bytes": 36,
        "bucket_cap_mb": None,
        "device": "cpu",
        "optimizer": "Adam",
        # Per number of the inputs: both layers forward, the second backward for its weight.
        "num_flops_per_element": (2 * 4 * 8 + 2 * 8 + 2 * 8) / 4,
    }


class NeverCalled(nn.Module):
    """Holds two models, and is not called itself."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(4, 1), nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 1))


def test_a_part_is_recorded_where_the_whole_is_not_called(
    recorder: Recorder, folder: RunFolder
) -> None:
    whole = NeverCalled()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.01)
    train(whole.large, ragged(LENGTHS), optimizer=optimizer)
    recorder.finish()
    assert folder.read_steps(0).num_examples.tolist() == LENGTHS[2:]


def test_an_optimizer_without_a_model_is_left_alone(recorder: Recorder) -> None:
    point = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([point], lr=0.1)
    for _ in range(3):
        point.sum().backward()
        optimizer.step()
    assert recorder.loop is None


def test_steps_are_kept_as_they_come_and_a_trace_of_a_few(
    recorder: Recorder, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a process that is killed loses ten seconds, or a thousand steps."""
    ticks = count()
    monkeypatch.setattr(recorder, "_clock", lambda: 1e6 + next(ticks) / 50.0)
    num_steps = STEPS_PER_CHUNK + 700
    train(nn.Linear(4, 1), (torch.ones(1, 4) for _ in range(num_steps)))
    kept = len(folder.read_steps(0).begin_s)
    assert STEPS_PER_CHUNK < kept < num_steps - 1
    recorder.finish()
    steps = folder.read_steps(0)
    assert len(steps.begin_s) == num_steps - 1
    assert (steps.begin_s[1:] > steps.begin_s[:-1]).all()
    trace = folder.read_trace(0)
    assert trace is not None
    assert sorted(set(trace.step.tolist())) == list(range(2, 13))
    assert {(one.step, one.name) for one in trace if one.lane == "layers"} == {(2, "whole model")}
    first = trace.select(trace.step == 3)
    assert sum(first.duration_s) == pytest.approx(sum_of(steps, 3), rel=1e-6)


def test_a_run_may_end_where_its_last_step_was_written(
    recorder: Recorder, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr(recorder, "_clock", lambda: 1e6 + 60.0 * next(ticks))
    train(nn.Linear(4, 1), ragged(LENGTHS))
    assert folder.read_steps(0).num_examples.tolist() == LENGTHS[1:]
    recorder.finish()
    assert folder.read_steps(0).num_examples.tolist() == LENGTHS[1:]


def sum_of(steps: Steps, row: int) -> float:
    parts = [name for name in Steps._fields[2:] if name.endswith("_s")]
    return float(sum(getattr(steps, name)[row] for name in parts))


def test_what_a_failed_loop_recorded_is_whole_steps(recorder: Recorder, folder: RunFolder) -> None:
    batches = [*ragged([2] * 6), torch.ones(2, 5)]
    with pytest.raises(RuntimeError, match="shapes"):
        train(nn.Linear(4, 1), batches)
    recorder.finish()
    assert folder.read_steps(0).num_examples.tolist() == [2] * 5


def test_counting_operations_changes_no_number(tmp_path: Path) -> None:
    losses = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))
        recorder = Recorder(RunFolder(tmp_path), 0)
        if watched:
            recorder.install()
        train(model, torch.randn(20, 3, 4))
        if watched:
            recorder.finish()
            assert recorder.loop is not None
            assert recorder.loop.ops is not None
            assert recorder.loop.ops.num_ops > 10
        losses.append([one.tolist() for one in model.parameters()])
    assert losses[0] == losses[1]
