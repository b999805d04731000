"""Lightning holds the contract under its own launcher, and what cannot be exact is refused."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from tests.integrations.contract import TOLERANCE, FrameworkContract, check_goes_on
from tests.integrations.data import (
    SIZES,
    Record,
    Sequences,
    config_of,
    global_batches,
    padded,
    plain_parameters,
)
from tests.integrations.lightning_run import Data, Model, trainer_of

import paceline
from paceline.balance import BalanceConfig, Limits
from paceline.integrations.lightning import BalancedLoader
from paceline.torch import Replica

# Lightning's own, about workers of loaders and the like.
pytestmark = pytest.mark.filterwarnings("default")


class TestLightning(FrameworkContract):
    program = "lightning_run.py"
    starts_itself = True


class Interrupted(Exception):
    """What ends a run in a test."""


class EndsAt(Callback):
    """Saves a checkpoint at some batch, and ends the run there."""

    def __init__(self, hook: str, batch: int, path: Path) -> None:
        self._hook, self._batch, self._path = hook, batch, path

    def on_before_zero_grad(self, trainer: pl.Trainer, *_: Any) -> None:
        self._end(trainer, "on_before_zero_grad")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._end(trainer, "on_train_batch_end")

    def _end(self, trainer: pl.Trainer, hook: str) -> None:
        if hook == self._hook and trainer.fit_loop.total_batch_idx == self._batch:
            trainer.save_checkpoint(self._path)
            raise Interrupted


def fit(num_micro: int, **options: Any) -> tuple[Record, Model]:
    """Train in this process; return what was trained on."""
    record = Record()
    model, path = Model(record), options.pop("ckpt_path", None)
    trainer = trainer_of(1, num_micro, enable_checkpointing=False, **options)
    trainer.fit(model, datamodule=Data(num_micro), ckpt_path=path)
    return record, model


def interrupted(num_micro: int, hook: str, batch: int, folder: Path) -> Path:
    path = folder / "saved.ckpt"
    with pytest.raises(Interrupted):
        fit(num_micro, callbacks=[EndsAt(hook, batch, path)])
    return path


def test_a_batch_that_was_fetched_and_not_trained_on_comes_again(tmp_path: Path) -> None:
    # Batch 4 is delivered, and the optimizer has not made its step.
    path = interrupted(1, "on_before_zero_grad", 4, tmp_path)
    record, model = fit(1, ckpt_path=path)
    assert [sorted(set(examples)) for examples, _ in record.batches] == global_batches()[4:]
    parameters = [one.detach().flatten() for one in model.inner.parameters()]
    difference = np.subtract(np.concatenate(parameters), plain_parameters())
    assert np.abs(difference).max() < TOLERANCE


def test_a_checkpoint_inside_a_step_is_refused(tmp_path: Path) -> None:
    path = interrupted(2, "on_train_batch_end", 4, tmp_path)
    with pytest.raises(ValueError, match="saved inside a step, after 1 of its 2 micro-batches"):
        fit(2, ckpt_path=path)


def loader(rank: int = 0, num_replicas: int = 1, **options: Any) -> paceline.DataLoader[Any]:
    place = Replica(rank=rank, num_replicas=num_replicas)
    config = options.pop("config", config_of(1))
    batches = paceline.BalancedBatchSampler(SIZES, config, process_group=place)
    options = {"with_info": True, "collate_fn": padded, **options}
    return paceline.DataLoader(Sequences(), batch_sampler=batches, **options)


@pytest.mark.parametrize(
    ("num_ranks", "num_micro", "options", "message"),
    [
        (1, 1, {"with_info": False}, r"must be a paceline.DataLoader with with_info=True"),
        (1, 2, {}, r"must have accumulate_grad_batches \(2\) micro-batches on every rank, got 1"),
        # A loader that was made in the script, before Lightning started the other rank.
        (2, 1, {}, r"rank 0 of 2, and the sampler was made for rank 0 of 1; make it inside"),
        (1, 1, {"config": BalanceConfig(batch_size=4, padded=True)}, "got 'auto'; set num_mic"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(
    num_ranks: int, num_micro: int, options: Any, message: str
) -> None:
    trainer = trainer_of(num_ranks, num_micro, enable_checkpointing=False)
    with pytest.raises(ValueError, match=message):
        BalancedLoader(trainer, loader(**options))


def test_limits_that_cut_steps_further_are_refused_before_the_first_batch() -> None:
    config = BalanceConfig(batch_size=40, num_microbatches=1, limits=Limits(max_examples=20))
    trainer = trainer_of(1, 1, enable_checkpointing=False)
    cut = BalancedLoader(trainer, loader(config=config))
    with pytest.raises(ValueError, match=r"must have accumulate_grad_batches \(1\).*got 2"):
        next(iter(cut))


def test_the_example_goes_on_after_a_rank_was_killed(tmp_path: Path) -> None:
    check_goes_on("examples.lightning.train", tmp_path, num_steps=9)
