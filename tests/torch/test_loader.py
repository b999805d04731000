import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset

from paceline.balance import BalanceConfig
from paceline.errors import StateMismatchError
from paceline.torch import BalancedBatchSampler, DataLoader, Replica

SIZES = np.random.default_rng(1).integers(1, 40, 30)
WORKERS = [(0, False), (2, False), (2, True)]


class Numbers(Dataset[int]):
    """Example `i` is the number `i`."""

    def __init__(self, num_examples: int = 30) -> None:
        self._num_examples = num_examples

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> int:
        return index


def loader_of(
    rank: int = 0,
    num_replicas: int = 2,
    workers: tuple[int, bool] = (0, False),
    **options: Any,
) -> tuple[BalancedBatchSampler, DataLoader[Any]]:
    config = BalanceConfig(**{"batch_size": 8, "counts": "free", **options})
    replica = Replica(rank=rank, num_replicas=num_replicas)
    batches = BalancedBatchSampler(SIZES, config, process_group=replica)
    num_workers, persistent = workers
    loader = DataLoader(
        Numbers(),
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=persistent,
        prefetch_factor=4 if num_workers else None,
    )
    return batches, loader


Delivery = tuple[list[int], float, bool]


def deliveries(loader: DataLoader[Any]) -> Iterator[Delivery]:
    for batch in loader:
        yield batch.tolist(), loader.loss_weight, loader.is_step_end


@pytest.mark.parametrize("workers", WORKERS)
def test_restoring_at_every_step_gives_the_rest_whatever_was_prefetched(
    workers: tuple[int, bool],
) -> None:
    batches, loader = loader_of(workers=workers, num_microbatches=2)
    straight: list[Delivery] = []
    states = [loader.state_dict()]
    for epoch in range(2):
        batches.set_epoch(epoch)
        for delivery in deliveries(loader):
            straight.append(delivery)
            if loader.is_step_end:
                states.append(loader.state_dict())
    assert len(straight) == 16
    fresh_batches, fresh = loader_of(workers=workers, num_microbatches=2)
    for step, state in enumerate(states):
        fresh.load_state_dict(json.loads(json.dumps(state)))
        assert fresh.state_dict() == state
        fresh_batches.set_epoch(state["epoch"])
        rest = list(deliveries(fresh))
        end = 8 if state["epoch"] == 0 else 16
        assert rest == straight[2 * step : end]


@pytest.mark.parametrize("workers", WORKERS)
def test_other_numbers_of_ranks_take_over_what_was_not_delivered(
    workers: tuple[int, bool],
) -> None:
    received: list[int] = []
    state = None
    for num_replicas, num_steps in ((2, 1), (3, 1), (1, 9)):
        states = []
        for rank in range(num_replicas):
            _, loader = loader_of(rank, num_replicas, workers)
            if state is not None:
                loader.load_state_dict(state)
            for _, (examples, _, _) in zip(range(num_steps), deliveries(loader), strict=False):
                received += examples
            states.append(loader.state_dict())
        assert all(one == states[0] for one in states)
        state = states[0]
    assert sorted(received) == list(range(30))


@pytest.mark.parametrize("tail", ["drop", "pad", "wrap", "zero-weight"])
@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("counts", ["equal", "free"])
def test_weighted_losses_average_to_that_of_the_global_batch(
    counts: Any, num_microbatches: int, tail: Any
) -> None:
    options: dict[str, Any] = {"counts": counts, "num_microbatches": num_microbatches, "tail": tail}
    pairs = [loader_of(rank, batch_size=16, **options) for rank in (0, 1)]
    plan = pairs[0][0].plan
    weighted = np.zeros(plan.num_steps)
    for _, loader in pairs:
        step = 0
        for examples, weight, is_step_end in deliveries(loader):
            weighted[step] += weight * np.mean(np.square(examples)) / 2
            step += is_step_end
        assert step == plan.num_steps
    for step, loss in enumerate(weighted):
        examples = [e for worker in (0, 1) for e in plan.step_examples(step, worker)]
        if tail == "zero-weight":
            examples = sorted(set(examples))
        assert loss == pytest.approx(np.mean(np.square(examples)))


def test_repeats_without_weight_are_delivered_only_to_a_rank_that_has_nothing_else() -> None:
    sizes = [4, 3, 2, 1, 9]
    ends = []
    for rank in (0, 1):
        batches = BalancedBatchSampler(
            sizes,
            batch_size=4,
            shuffle=False,
            process_group=Replica(rank=rank, num_replicas=2),
        )
        loader = DataLoader(Numbers(5), batch_sampler=batches)
        ends.append(list(deliveries(loader))[-1])
    assert sorted(ends) == [([4], 0.0, True), ([4], 2.0, True)]


def test_a_running_epoch_does_not_count_what_the_workers_fetched_ahead() -> None:
    batches, loader = loader_of(workers=(2, False))
    iterator = iter(loader)
    assert loader.state_dict()["segments"][0]["num_steps"] == 0
    next(iterator)
    assert batches.state_dict() != loader.state_dict()
    assert loader.state_dict()["segments"][0]["num_steps"] == 1


def test_a_broken_off_epoch_can_be_saved_until_another_is_set() -> None:
    batches, loader = loader_of()
    for _ in loader:
        break
    assert loader.state_dict()["segments"][0]["num_steps"] == 1
    batches.set_epoch(3)
    state = loader.state_dict()
    assert (state["epoch"], state["segments"][0]["num_steps"]) == (3, 0)


def test_a_forgotten_epoch_advances_once_with_workers_too() -> None:
    _, loader = loader_of(workers=(2, True))
    told_batches, told = loader_of()
    list(loader)
    with pytest.warns(UserWarning, match="before epoch 1"):
        second = list(deliveries(loader))
    told_batches.set_epoch(1)
    assert second == list(deliveries(told))
    assert loader.state_dict() == told.state_dict()
    assert loader.state_dict()["epoch"] == 2


def test_the_epoch_can_be_set_on_the_loader() -> None:
    batches, loader = loader_of()
    loader.set_epoch(2)
    assert batches.epoch == 2


def test_it_is_a_torch_loader_with_a_length() -> None:
    _, loader = loader_of()
    assert isinstance(loader, TorchDataLoader)
    assert len(loader) == 4


def test_nothing_is_known_before_the_first_batch() -> None:
    _, loader = loader_of()
    for read in (lambda: loader.loss_weight, lambda: loader.is_step_end):
        with pytest.raises(RuntimeError, match="no batch was delivered yet"):
            read()


def test_a_dataset_of_another_length_is_refused() -> None:
    batches, _ = loader_of()
    with pytest.raises(ValueError, match=r"as long as the sampler's sizes \(30\), got 29 examples"):
        DataLoader(Numbers(29), batch_sampler=batches)


def test_a_state_of_another_run_is_refused_before_the_first_batch() -> None:
    _, loader = loader_of()
    _, other = loader_of(seed=3)
    with pytest.raises(StateMismatchError, match="seed was 0 and is 3"):
        other.load_state_dict(loader.state_dict())


def test_torchs_options_are_passed_on() -> None:
    batches, _ = loader_of()
    generator = torch.Generator()
    loader = DataLoader(Numbers(), batch_sampler=batches, collate_fn=sum, generator=generator)
    assert loader.generator is generator
    assert sum(loader) == sum(SIZES * 0 + np.arange(30)) - sum(rank_1_examples())


def rank_1_examples() -> list[int]:
    _, loader = loader_of(rank=1)
    return [example for examples, _, _ in deliveries(loader) for example in examples]
