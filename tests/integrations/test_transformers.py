"""The Hugging Face Trainer holds the contract, and what cannot be exact is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.integrations.contract import FrameworkContract, check_goes_on
from tests.integrations.data import SIZES, Sequences, config_of, padded
from tests.integrations.transformers_run import WithLoss, WithTokenLoss, labelled
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import TrainerState

from paceline.balance import BalanceConfig
from paceline.errors import StateMismatchError
from paceline.integrations.transformers import BalancedTraining, SamePlan
from paceline.torch import BalancedBatchSampler, DataLoader, Replica

pytestmark = pytest.mark.filterwarnings("default")


class TestTransformers(FrameworkContract):
    program = "transformers_run.py"


class BalancedTrainer(BalancedTraining, Trainer):
    """The whole difference to a plain one."""


class Tokens(torch.utils.data.Dataset[dict[str, Any]]):
    """Example `i` is `SIZES[i]` tokens; a column says so if it is asked for."""

    def __init__(self, *, has_column: bool = False) -> None:
        self.column_names = ["input_ids", *["length"] * has_column]

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, index: int | str) -> Any:
        if isinstance(index, str):
            assert index in self.column_names
            return (SIZES * 2).tolist()
        return {"input_ids": [1] * int(SIZES[index])}


def without_index(items: list[Any]) -> Any:
    return {name: value for name, value in padded(items).items() if name != "index"}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    options = {"max_grad_norm": 0.0, "save_strategy": "steps", "save_steps": 2, **options}
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        num_train_epochs=1,
        **options,
    )


def trainer(folder: Path, **options: Any) -> BalancedTrainer:
    names = {"dataset", "balance", "sizes", "model", "collate"}
    given = {name: options.pop(name) for name in names & options.keys()}
    return BalancedTrainer(
        model=given.get("model", WithLoss()),
        args=arguments(folder, **options),
        train_dataset=given.get("dataset", Sequences()),
        data_collator=given.get("collate", without_index),
        balance=given.get("balance"),
        sizes=given.get("sizes"),
    )


@pytest.mark.parametrize(("has_column", "factor"), [(False, 1), (True, 2)])
def test_sizes_and_steps_are_those_of_the_arguments(
    tmp_path: Path, has_column: bool, factor: int
) -> None:
    made = trainer(
        tmp_path,
        dataset=Tokens(has_column=has_column),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        seed=5,
    )
    planner = made.get_train_dataloader().balanced.planner
    assert planner.costs.tolist() == (SIZES * factor).tolist()
    config = planner.config
    assert (config.batch_size, config.num_microbatches, config.seed) == (16, 2, 5)
    assert (config.counts, config.padded, config.tail) == ("free", True, "zero-weight")


@pytest.mark.parametrize("model", [WithLoss, WithTokenLoss])
def test_evaluation_is_left_as_it_was(tmp_path: Path, model: Any) -> None:
    collate = labelled if model is WithTokenLoss else padded
    made = trainer(tmp_path, sizes=SIZES, model=model(), collate=collate)
    batch = {name: value for name, value in collate([Sequences()[0]]).items() if name != "index"}
    loss = made.compute_loss(made.model, dict(batch))
    assert loss.item() == made.model(**batch)["loss"].item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "decides who gets which example"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size changes the global batch"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(
    tmp_path: Path, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, sizes=SIZES, **options)


def test_another_accumulation_than_planned_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, sizes=SIZES, balance=config_of(2))
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps \(1\).*got 2"):
        made.get_train_dataloader()


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, sizes=SIZES, balance=config_of(1)).train()
    saved = str(tmp_path / "checkpoint-2")
    other = replace(config_of(1), seed=4)
    with pytest.raises(StateMismatchError, match="seed"):
        trainer(tmp_path, sizes=SIZES, balance=other).train(resume_from_checkpoint=saved)
    with pytest.raises(StateMismatchError):
        trainer(tmp_path, sizes=SIZES[::-1].copy(), balance=config_of(1)).train(
            resume_from_checkpoint=saved
        )


def test_a_checkpoint_of_the_plain_trainer_is_good_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    plain = Trainer(
        model=WithLoss(),
        args=arguments(tmp_path, per_device_train_batch_size=40),
        train_dataset=Sequences(),
        data_collator=without_index,
    )
    plain.train()
    made = trainer(tmp_path, sizes=SIZES, per_device_train_batch_size=40)
    with pytest.raises(ValueError, match="inside an epoch of other batches, without Balanced"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    made.args.num_train_epochs = 2
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert made.state.global_step == 12


@pytest.mark.parametrize("window", [1, 4])
def test_another_number_of_ranks_needs_a_window_of_1_inside_an_epoch(window: int) -> None:
    config = BalanceConfig(batch_size=40, counts="free", num_microbatches=1, window=window)
    state = TrainerState(stateful_callbacks={}, global_step=2)  # type: ignore[arg-type]
    callback = SamePlan()
    callback.on_train_begin(Args, TrainerState(), None, loader_of(config, 2))
    callback._trainer_state.global_step = 2
    state.stateful_callbacks["SamePlan"] = callback.state()  # type: ignore[index]
    alone = loader_of(config, 1)
    if window == 1:
        SamePlan().on_train_begin(Args, state, None, alone)
        return
    with pytest.raises(ValueError, match="1 ranks can only go on from 2 with window=1"):
        SamePlan().on_train_begin(Args, state, None, alone)


class Args:
    """What the callback reads of the arguments."""

    gradient_accumulation_steps = 1


def loader_of(config: BalanceConfig, num_replicas: int) -> DataLoader[Any]:
    place = Replica(rank=0, num_replicas=num_replicas)
    batches = BalancedBatchSampler(np.asarray(SIZES), config, process_group=place)
    return DataLoader(Sequences(), batch_sampler=batches, with_info=True)


def test_the_example_goes_on_after_a_rank_was_killed(tmp_path: Path) -> None:
    check_goes_on("examples.transformers.train", tmp_path, num_steps=8)
