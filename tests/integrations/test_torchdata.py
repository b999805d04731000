"""torchdata's stateful loader holds the contract, on a dataset of Hugging Face."""

from typing import Any

import pytest
from tests.integrations.contract import FrameworkContract
from tests.integrations.data import SIZES, config_of, padded
from tests.integrations.torchdata_run import dataset, loader_of

import paceline
from paceline.integrations.torchdata import BalancedLoader
from paceline.torch import Replica, example_sizes

pytestmark = pytest.mark.filterwarnings("default")


class TestTorchdata(FrameworkContract):
    program = "torchdata_run.py"


def sampler(num_micro: int = 2, rank: int = 0, num_replicas: int = 1) -> Any:
    place = Replica(rank=rank, num_replicas=num_replicas)
    return paceline.BalancedBatchSampler(SIZES, config_of(num_micro), process_group=place)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_saved_inside_a_step_goes_on_from_its_beginning(num_workers: int) -> None:
    loader = loader_of(sampler(), num_workers)
    batches = iter(loader)
    found = [next(batches)["index"].tolist() for _ in range(5)]
    state = loader.state_dict()
    other = loader_of(sampler(), num_workers)
    other.load_state_dict(state)
    again = [batch["index"].tolist() for batch in other]
    assert again[0] == found[4]
    assert len(again) == 12 - 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_saved_at_the_end_of_an_epoch_goes_on_with_the_next(num_workers: int) -> None:
    loader = loader_of(sampler(), num_workers)
    assert len(list(loader)) == 12
    state = loader.state_dict()
    loader.batch_sampler.set_epoch(1)
    expected = [batch["index"].tolist() for batch in loader]
    other = loader_of(sampler(), num_workers)
    other.load_state_dict(state)
    assert [batch["index"].tolist() for batch in other] == expected


def test_sizes_are_read_of_a_column() -> None:
    items = dataset().add_column("length", SIZES.tolist())
    assert example_sizes(items, "length").tolist() == SIZES.tolist()


def test_states_of_some_batches_only_are_refused() -> None:
    with pytest.raises(ValueError, match=r"snapshot_every_n_steps must be 1.*got 4"):
        BalancedLoader(dataset(), sampler(), padded, snapshot_every_n_steps=4)
