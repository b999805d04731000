import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import DistributedSampler, SequentialSampler

from paceline.torch import BalancedBatchSampler, BalancedSampler, DataLoader, Replica
from paceline.torch.guard._divergence import odd_ones
from paceline.torch.guard._replicated import environment, position, replicated_tensors

FIRST, SECOND = (Replica(rank=rank, num_replicas=2) for rank in (0, 1))
SIZES = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ("aaaa", None),
        ("a", None),
        ("aaba", "rank 2 differs from the other ranks"),
        ("abbb", "rank 0 differs from the other ranks"),
        ("abcaa", "ranks 1, 2 differ from the other ranks"),
        ("ab", "rank 1 differs from rank 0 (no majority says which is right)"),
        ("aabb", "ranks 2, 3 differ from rank 0 (no majority says which is right)"),
        ("abb", "rank 0 differs from the other ranks"),
    ],
)
def test_the_ranks_outside_the_majority_are_named(values: str, text: str | None) -> None:
    odd = odd_ones(dict(enumerate(values)))
    assert (odd and str(odd)) == text


def sampler(seed: int = 0) -> BalancedBatchSampler:
    return BalancedBatchSampler(SIZES, batch_size=4, process_group=FIRST, seed=seed)


def test_the_environment_tells_seeds_configurations_and_datasets_apart() -> None:
    model = nn.Linear(2, 2)

    def differing(one: object, other: object) -> set[str]:
        first, second = (environment(model, data, ()) for data in (one, other))  # type: ignore[arg-type]
        return {name for name in {**first, **second} if first.get(name) != second.get(name)}

    assert differing(sampler(), sampler()) == set()
    assert differing(sampler(), sampler(seed=1)) == {"seed"}
    others = BalancedBatchSampler([*SIZES[:-1], 7], batch_size=4, process_group=FIRST)
    assert differing(sampler(), others) == {"sizes"}
    fewer = BalancedBatchSampler(SIZES[:-1], batch_size=4, process_group=FIRST)
    assert differing(sampler(), fewer) == {"number of examples", "sizes"}
    ranks = [
        BalancedBatchSampler(SIZES, batch_size=4, process_group=one) for one in (FIRST, SECOND)
    ]
    assert differing(*ranks) == set()
    plain = [DistributedSampler(range(8), 2, 0, seed=seed) for seed in (0, 3)]  # type: ignore[arg-type]
    assert differing(*plain) == {"seed"}
    balanced = [
        BalancedSampler(SIZES, batch_size=4, num_replicas=2, rank=0, seed=s) for s in (0, 3)
    ]
    assert differing(*balanced) == {"seed"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_stands_where_its_batches_were_delivered(num_workers: int) -> None:
    loader = DataLoader(torch.arange(8.0), batch_sampler=sampler(), num_workers=num_workers)
    batches = iter(loader)
    assert position(loader) == {"epoch": "0", "steps of the epoch": "0", "plan": "not begun"}
    next(batches)
    place = position(loader)
    assert (place["epoch"], place["steps of the epoch"]) == ("0", "1")
    assert len(place["plan"]) == 32
    assert list(batches)
    assert position(loader) == {"epoch": "1", "steps of the epoch": "0", "plan": "not begun"}


def test_a_loader_of_torch_stands_where_its_sampler_does() -> None:
    data = DistributedSampler(range(8), 2, 0)  # type: ignore[arg-type]
    data.set_epoch(3)
    loader: TorchDataLoader[float] = TorchDataLoader(torch.arange(8.0), sampler=data)  # type: ignore[arg-type]
    assert position(loader) == {"epoch": "3"}
    batches = sampler()
    other: TorchDataLoader[float] = TorchDataLoader(torch.arange(8.0), batch_sampler=batches)  # type: ignore[arg-type]
    assert position(other)["epoch"] == "0"
    assert position(None) == {}


def test_a_sampler_that_knows_no_ranks_is_refused() -> None:
    loader: TorchDataLoader[float] = TorchDataLoader(torch.arange(8.0))  # type: ignore[arg-type]
    assert isinstance(loader.sampler, SequentialSampler)
    with pytest.raises(ValueError, match="got DataLoader with SequentialSampler; leave data out"):
        position(loader)


def names(model: nn.Module, *ignore: str) -> list[str]:
    return [name for name, _ in replicated_tensors(model, ignore)]


def test_running_statistics_count_only_when_they_stand_still() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.ones(2))
    trained = ["0.weight", "0.bias", "1.weight", "1.bias", "mask"]
    assert names(model) == trained
    assert names(nn.BatchNorm1d(2)) == ["weight", "bias"]
    assert names(model.eval()) == [
        *trained,
        *(f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
    ]


def test_what_is_to_be_ignored_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model._ddp_params_and_buffers_to_ignore = ["0.weight"]  # type: ignore[assignment]
    assert names(model, "1.bias") == ["0.bias", "1.weight"]
