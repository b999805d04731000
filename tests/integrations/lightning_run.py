"""Train with Lightning, which starts its ranks itself; see `contract.py`."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from tests.integrations.data import (
    NUM_EPOCHS,
    SIZES,
    Record,
    Reverser,
    Sequences,
    arguments,
    config_of,
    optimizer_of,
    padded,
    runs_of,
)

import paceline
from paceline.integrations.lightning import BalancedLoader


class Data(pl.LightningDataModule):
    def __init__(self, num_micro: int) -> None:
        super().__init__()
        self._num_micro = num_micro

    def train_dataloader(self) -> BalancedLoader:
        batches = paceline.BalancedBatchSampler(SIZES, config_of(self._num_micro))
        loader = paceline.DataLoader(
            Sequences(),
            batch_sampler=batches,
            collate_fn=padded,
            with_info=True,
            num_workers=2 * (self._num_micro == 2),
        )
        return BalancedLoader(self.trainer, loader)


class Model(pl.LightningModule):
    def __init__(self, record: Record) -> None:
        super().__init__()
        self.inner = Reverser()
        self._record = record

    def training_step(self, batch: dict[str, Any], _: int) -> Any:
        # What it carries makes up for Lightning's division.
        self._record.add(batch)
        return self.inner(batch["x"], batch["is_token"]) * batch["loss_weight"]

    def configure_optimizers(self) -> Any:
        return optimizer_of(self.inner)


def trainer_of(num_ranks: int, num_micro: int, **options: Any) -> pl.Trainer:
    ddp = DDPStrategy(process_group_backend="gloo")
    return pl.Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy=ddp if num_ranks > 1 else "auto",
        max_epochs=NUM_EPOCHS,
        accumulate_grad_batches=num_micro,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def checkpoints_of(folder: Path) -> list[ModelCheckpoint]:
    """Save after each step, and once more at the end of each epoch, as other states of the loop."""
    options: dict[str, Any] = {"dirpath": folder, "save_top_k": -1}
    return [
        ModelCheckpoint(filename="{step}", every_n_train_steps=1, **options),
        ModelCheckpoint(filename="end-{step}", save_on_train_epoch_end=True, **options),
    ]


def main() -> None:
    folder, num_ranks = arguments()
    record = Record()
    for num_micro, point in runs_of(num_ranks):
        saved = folder / f"{num_micro}"
        callbacks = [] if point else checkpoints_of(saved)
        paths = [None] if point is None else sorted(saved.glob(f"*step={point}.ckpt"))
        assert len(paths) == 1 + (point == 6), paths
        for path in paths:
            options = {"enable_checkpointing": point is None, "callbacks": callbacks}
            trainer, model = trainer_of(num_ranks, num_micro, **options), Model(record)
            trainer.fit(model, datamodule=Data(num_micro), ckpt_path=path)
            suffix = ", end" if path and path.name.startswith("end") else ""
            record.end_run(f"{num_micro} from {point}{suffix}", model.inner)
    record.write(folder, num_ranks, trainer.global_rank)


if __name__ == "__main__":
    main()
