import json
from collections import UserDict
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, default_collate
from torch.utils.data import DataLoader as TorchDataLoader

from paceline.balance import BalanceConfig
from paceline.errors import StateMismatchError
from paceline.torch import BalancedBatchSampler, BatchInfo, DataLoader, Replica, carry_info

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
    with_info: bool = False,
    **options: Any,
) -> tuple[BalancedBatchSampler, DataLoader[Any]]:
    config = BalanceConfig(**{"batch_size": 8, "counts": "free", **options})
    replica = Replica(rank=rank, num_replicas=num_replicas)
    batches = BalancedBatchSampler(SIZES, config, process_group=replica)
    num_workers, persistent = workers
    loader = DataLoader(
        Numbers(),
        batch_sampler=batches,
        with_info=with_info,
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
        assert state["epoch"] == step // 4
        assert len(fresh) == 8
        if step < 8:
            assert list(deliveries(fresh)) == straight[2 * step : 8 * (step // 4 + 1)]


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
    list(deliveries(loader))
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
    with torch.no_grad():
        total = sum(loader)
    assert total == sum(range(30)) - sum(rank_1_examples())


def rank_1_examples() -> list[int]:
    _, loader = loader_of(rank=1)
    return [example for examples, _, _ in deliveries(loader) for example in examples]


class Batched(Numbers):
    """Reads the examples of a batch at once, as Hugging Face's datasets do."""

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [index for index in indices]


def ahead(batches: Any) -> Iterator[Any]:
    """Fetch all of a few batches before the first is used, as frameworks do."""
    fetched = list(batches)
    yield from fetched


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_batch_that_carries_its_info_may_be_fetched_ahead(
    workers: tuple[int, bool], num_microbatches: int
) -> None:
    _, read = loader_of(num_microbatches=num_microbatches)
    _, carrying = loader_of(workers=workers, with_info=True, num_microbatches=num_microbatches)
    expected = list(deliveries(read))
    assert len({weight for _, weight, _ in expected}) > 1
    assert [(batch.tolist(), *info) for batch, info in ahead(carrying)] == expected


def keyed(examples: list[int]) -> dict[str, Any]:
    return {"x": default_collate(examples)}


@pytest.mark.parametrize(
    ("collate_fn", "kind"),
    [(keyed, dict), (lambda examples: UserDict(keyed(examples)), UserDict)],
)
def test_a_mapping_gets_keys_and_stays_what_it_is(collate_fn: Any, kind: type) -> None:
    batches, _ = loader_of()
    loader = DataLoader(Numbers(), batch_sampler=batches, collate_fn=collate_fn, with_info=True)
    found = list(loader)
    assert {type(batch) for batch in found} == {kind}
    _, read = loader_of()
    values = [(b["x"].tolist(), b["loss_weight"], b["is_step_end"]) for b in found]
    assert values == list(deliveries(read))
    batches.set_epoch(0)
    named = DataLoader(
        Numbers(), batch_sampler=batches, collate_fn=lambda _: {"loss_weight": 0}, with_info=True
    )
    with pytest.raises(ValueError, match="the batch has a key 'loss_weight' of its own"):
        next(iter(named))


def test_any_loader_can_carry_the_info() -> None:
    batches, read = loader_of()
    expected = list(deliveries(read))
    dataset, collate_fn = carry_info(Batched(), tuple)
    batches.set_epoch(0)
    loader = TorchDataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate_fn,
        num_workers=2,
    )
    found = list(loader)
    assert [(list(batch), *info) for batch, info in found] == expected
    assert {type(info) for _, info in found} == {BatchInfo}
    with pytest.raises(ValueError, match="lost their info on the way; give the loader the dataset"):
        collate_fn([1, 2])
    plain = TorchDataLoader(dataset, batch_size=4, collate_fn=collate_fn)
    with pytest.raises(ValueError, match="needs the indices of a BalancedBatchSampler as they are"):
        next(iter(plain))


@pytest.mark.parametrize("num_ahead", [2, 3])
def test_what_is_read_off_the_loader_is_refused_behind_batches_fetched_ahead(
    num_ahead: int,
) -> None:
    _, loader = loader_of(num_microbatches=2)
    with pytest.warns(UserWarning, match="was not read"):
        fetched = [batch for batch, _ in zip(loader, range(num_ahead), strict=False)]
    assert len(fetched) == num_ahead
    for name in ("loss_weight", "is_step_end"):
        with pytest.raises(RuntimeError, match=rf"rank 0: loader.{name} is that of the batch deli"):
            getattr(loader, name)


def test_a_loop_that_is_one_batch_behind_is_refused_although_the_first_weights_are_equal() -> None:
    _, loader = loader_of()
    weights = [weight for _, weight, _ in deliveries(loader)]
    assert weights[0] == weights[1] == 1.0 != weights[2]
    loader.set_epoch(0)
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    assert loader.loss_weight == weights[0]
    next(iterator)
    with pytest.raises(RuntimeError, match="2 were delivered before one was read"):
        _ = loader.loss_weight


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "loss_weight"),
        ({"num_microbatches": 2, "counts": "equal"}, "is_step_end"),
        ({"padded": True, "num_microbatches": "auto"}, "loss_weight"),
    ],
)
def test_a_loop_that_does_not_read_what_it_needs_is_warned_once(
    options: dict[str, Any], name: str, recwarn: pytest.WarningsRecorder
) -> None:
    _, loader = loader_of(rank=1, **options)
    for _ in loader:
        if name == "is_step_end":
            _ = loader.loss_weight
    found = [str(one.message) for one in recwarn if name in str(one.message)]
    assert len(found) == 1
    assert found[0].startswith(f"rank 1: a batch had {name}")


def test_plain_batches_need_not_be_read() -> None:
    _, loader = loader_of(counts="equal", tail="drop")
    list(loader)
    _, loader = loader_of(with_info=True)
    list(loader)


LOSS_TERMS = SIZES - 0.5


@pytest.mark.parametrize("num_microbatches", [1, 2, "auto"])
def test_means_over_tokens_average_to_that_of_the_global_batch(num_microbatches: Any) -> None:
    config = BalanceConfig(
        batch_size=16, counts="free", padded=True, num_microbatches=num_microbatches
    )
    total: dict[int, float] = {}
    for rank in (0, 1):
        replica = Replica(rank=rank, num_replicas=2)
        batches = BalancedBatchSampler(SIZES, config, process_group=replica, loss_terms=LOSS_TERMS)
        plan, step = batches.plan, 0
        for batch, info in DataLoader(Numbers(), batch_sampler=batches, with_info=True):
            examples = batch.numpy()
            sums = np.square(examples) * LOSS_TERMS[examples]
            mean = sums.sum() / LOSS_TERMS[examples].sum()
            total[step] = total.get(step, 0.0) + info.loss_weight * mean / 2
            step += info.is_step_end
    for step, loss in total.items():
        mine = [plan.step_examples(step, worker) for worker in (0, 1)]
        examples = np.unique(np.concatenate(mine))
        expected = np.average(np.square(examples), weights=LOSS_TERMS[examples])
        assert loss == pytest.approx(expected)


def test_padded_models_are_cut_by_plan_where_the_batch_tells_where_its_step_ends() -> None:
    priced = {"padded": True, "microbatch_cost": 1.0}
    cut = loader_of(**priced, num_microbatches="auto")[0]
    assert len(cut) > 4
    assert list(loader_of(with_info=True, **priced)[0]) == list(cut)
    for options in ({}, {"with_info": True, "num_microbatches": 1}):
        assert len(loader_of(**priced, **options)[0]) == 4
    # Nobody knows what a micro-batch costs, and a plan that guesses may lose.
    assert len(loader_of(with_info=True, padded=True)[0]) == 4
    assert len(loader_of(with_info=True)[0]) == 4


def test_a_state_from_before_the_step_ends_were_used_goes_on_with_the_rest() -> None:
    _, loader = loader_of(padded=True, microbatch_cost=1.0)
    first = next(iter(deliveries(loader)))[0]
    fresh, _ = loader_of(padded=True, microbatch_cost=1.0)
    fresh.load_state_dict(loader.state_dict())
    other = loader_of(rank=1, padded=True, microbatch_cost=1.0)[1]
    first += next(iter(deliveries(other)))[0]
    carrying = DataLoader(Numbers(), batch_sampler=fresh, with_info=True)
    rest = [example for batch, _ in carrying for example in batch.tolist()]
    assert not set(first) & set(rest)
    assert fresh.planner.config.num_microbatches == "auto"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 4}, "the sampler decides batch_size, got batch_size=4; leave it out"),
        ({"shuffle": True}, "the sampler decides shuffle"),
        ({"sampler": range(30)}, "the sampler decides sampler"),
        ({"drop_last": True}, "the sampler decides drop_last"),
        ({"batch_sampler": None}, "must be a paceline.BalancedBatchSampler, got a NoneType"),
        (
            {"batch_sampler": BatchSampler(range(30), 4, False)},
            "must be a paceline.BalancedBatchSampler, got a BatchSampler",
        ),
    ],
)
def test_what_the_sampler_decides_is_not_asked_of_the_loader(
    arguments: dict[str, Any], message: str
) -> None:
    batches, _ = loader_of()
    with pytest.raises(ValueError, match=message):
        DataLoader(Numbers(), **{"batch_sampler": batches, **arguments})
    with pytest.raises(TypeError, match="has no argument 'in_order'"):
        DataLoader(Numbers(), batch_sampler=batches, in_order=False)


def test_an_iterator_of_workers_belongs_to_the_epoch_that_is_set_when_it_begins() -> None:
    batches, loader = loader_of(workers=(2, False))
    told_batches, told = loader_of()
    iterator = iter(loader)
    batches.set_epoch(1)
    told_batches.set_epoch(1)
    assert next(iterator).tolist() == next(deliveries(told))[0]


@pytest.mark.parametrize("workers", WORKERS)
def test_the_last_batch_ends_the_epoch(workers: tuple[int, bool]) -> None:
    _, loader = loader_of(workers=workers)
    for number, _ in enumerate(deliveries(loader), start=1):
        assert loader.state_dict()["epoch"] == (number == len(loader))


def test_statistics_of_batch_norm_are_those_of_each_micro_batch() -> None:
    """The gradient of a model with BatchNorm is therefore not that of the whole batch."""
    _, loader = loader_of(num_replicas=1, with_info=True, padded=True, microbatch_cost=18.0)
    norm = torch.nn.BatchNorm1d(1, momentum=1.0)
    means = []
    for batch, _ in loader:
        norm(batch[:, None].float())
        means.append((float(norm.running_mean), float(batch.float().mean())))
    assert len(means) > loader_of(num_replicas=1)[0].plan.num_steps
    assert all(found == pytest.approx(mean) for found, mean in means)


class EverySecond:
    """What accelerate's `prepare()` makes of a batch sampler on the first of two processes."""

    def __init__(self, batches: BalancedBatchSampler) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._batches, 0, None, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_that_are_dealt_out_again_are_refused(num_workers: int) -> None:
    own_batches, own = loader_of(with_info=True, num_microbatches=2)
    again: TorchDataLoader[Any] = TorchDataLoader(
        own.dataset,
        batch_sampler=EverySecond(own_batches),  # type: ignore[arg-type]
        collate_fn=own.collate_fn,
        num_workers=num_workers,
    )
    with pytest.raises(RuntimeError, match=r"batch \d of this rank was asked for after batch 0"):
        list(again)
