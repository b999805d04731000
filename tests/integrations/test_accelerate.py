"""Accelerate holds the contract, and its modes that cannot be exact are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import prepare_data_loader
from accelerate.state import AcceleratorState
from tests.integrations.contract import FrameworkContract, check_goes_on
from tests.integrations.data import SIZES, Sequences, config_of, global_batches, padded
from torch.utils.data import DataLoader as TorchDataLoader

import paceline
from paceline.integrations.accelerate import BalancedLoader, GlobalBatchSampler
from paceline.torch import Replica

pytestmark = pytest.mark.filterwarnings("default")


class TestAccelerate(FrameworkContract):
    program = "accelerate_run.py"


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def loader(num_micro: int = 1, rank: int = 0, num_replicas: int = 1) -> paceline.DataLoader[Any]:
    place = Replica(rank=rank, num_replicas=num_replicas)
    batches = paceline.BalancedBatchSampler(SIZES, config_of(num_micro), process_group=place)
    return paceline.DataLoader(
        Sequences(), batch_sampler=batches, collate_fn=padded, with_info=True
    )


class Process:
    """What `GlobalBatchSampler` asks of an accelerator, for one of several processes."""

    split_batches, dispatch_batches, gradient_accumulation_steps = False, None, 1

    def __init__(self, process_index: int, num_processes: int) -> None:
        self.process_index, self.num_processes = process_index, num_processes


@pytest.mark.parametrize("even_batches", [True, False])
@pytest.mark.parametrize("num_processes", [2, 3])
def test_prepare_gives_each_process_its_own_batches(num_processes: int, even_batches: bool) -> None:
    Accelerator(cpu=True)
    steps: list[list[int]] = [[] for _ in range(6)]
    for index in range(num_processes):
        own = loader(rank=index, num_replicas=num_processes)
        everyones = GlobalBatchSampler(own.balanced, Process(index, num_processes))  # type: ignore[arg-type]
        plain: Any = TorchDataLoader(
            own.dataset, batch_sampler=everyones, collate_fn=own.collate_fn
        )
        prepared = prepare_data_loader(
            plain,
            num_processes=num_processes,
            process_index=index,
            even_batches=even_batches,
        )
        for step, batch in zip(steps, prepared, strict=True):
            step += batch["index"].tolist() if batch["loss_weight"] else []
    assert [sorted(step) for step in steps] == global_batches()[:6]


def test_a_loader_that_prepare_takes_apart_again_is_refused() -> None:
    Accelerator(cpu=True)
    own = loader(rank=0, num_replicas=2)
    prepared = prepare_data_loader(own, num_processes=2, process_index=0, even_batches=False)
    with pytest.raises(RuntimeError, match=r"batch 2 of this rank was asked for after batch 0"):
        list(prepared)


@pytest.mark.parametrize("mode", ["split_batches", "dispatch_batches"])
def test_modes_that_cut_batches_evenly_are_refused(mode: str) -> None:
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**{mode: True}))
    with pytest.raises(ValueError, match=f"{mode}=True cuts batches into equal parts"):
        BalancedLoader(accelerator, loader())


def test_another_process_or_another_accumulation_is_refused() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="rank 0 of 1, and the sampler was made for rank 1 of 2"):
        BalancedLoader(accelerator, loader(2, rank=1, num_replicas=2))
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps \(2\) micro-batches.*got 1"):
        BalancedLoader(accelerator, loader(1))


def test_a_checkpoint_inside_a_step_is_refused() -> None:
    balanced = BalancedLoader(Accelerator(cpu=True, gradient_accumulation_steps=2), loader(2))
    batches = iter(balanced)
    next(batches)
    with pytest.raises(RuntimeError, match="a checkpoint inside a step would lose the gradients"):
        balanced.state_dict()
    next(batches)
    assert balanced.state_dict()["segments"][-1]["num_steps"] == 1


def test_the_example_goes_on_after_a_rank_was_killed(tmp_path: Path) -> None:
    check_goes_on("examples.accelerate.train", tmp_path, num_steps=8)
