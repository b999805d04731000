"""Train with the Hugging Face Trainer under torchrun; see `contract.py`."""

from pathlib import Path
from typing import Any

import torch
from tests.integrations.data import (
    NUM_EPOCHS,
    SIZES,
    Batch,
    Record,
    Reverser,
    Sequences,
    arguments,
    config_of,
    optimizer_of,
    padded,
    runs_of,
)
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from paceline.integrations.transformers import IGNORED_LABEL, BalancedTraining


class WithLoss(nn.Module):
    """A model that returns a mean over examples, as one of `transformers` without labels would."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Reverser()

    def forward(self, x: Tensor, is_token: Tensor) -> dict[str, Tensor]:
        return {"loss": self.inner(x, is_token)}


class WithTokenLoss(WithLoss):
    """One that divides by the target tokens of the whole step if it is told them."""

    def forward(  # type: ignore[override]  # as language models of transformers do
        self, x: Tensor, is_token: Tensor, labels: Tensor, **kwargs: Any
    ) -> dict[str, Tensor]:
        is_target = labels != IGNORED_LABEL
        losses = self.inner.token_losses(x, is_target)
        return {"loss": losses.sum() / kwargs.get("num_items_in_batch", is_target.sum())}


class Recording(BalancedTraining, Trainer):
    """Notes what it trains on."""

    def __init__(self, *args: Any, record: Record, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._record = record

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Any:
        self._record.add(inputs)
        inputs = {name: value for name, value in inputs.items() if name != "index"}
        return super().training_step(model, inputs, num_items_in_batch)


def labelled(items: list[Batch]) -> Batch:
    batch = padded(items)
    return {**batch, "labels": torch.where(batch["is_token"], 1, IGNORED_LABEL)}


def train(saved: Path, num_micro: int, point: int | None, record: Record, over: str) -> None:
    is_over_tokens = over == "tokens"
    model = WithTokenLoss() if is_over_tokens else WithLoss()
    args = TrainingArguments(
        output_dir=str(saved / over),
        use_cpu=True,
        ddp_backend="gloo",
        num_train_epochs=NUM_EPOCHS,
        gradient_accumulation_steps=num_micro,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_strategy="no" if point else "steps",
        save_steps=1,
        remove_unused_columns=False,
        # Workers fetch ahead: one kind of runs has them.
        dataloader_num_workers=2 * (num_micro == 2 and not is_over_tokens),
        disable_tqdm=True,
        report_to="none",
    )
    # As one reads it off the checkpoint; per_device_train_batch_size would give other batches.
    trainer = Recording(
        model=model,
        args=args,
        train_dataset=Sequences(),
        data_collator=labelled if is_over_tokens else padded,
        optimizers=(optimizer_of(model), None),
        balance=config_of(num_micro),
        sizes=SIZES,
        record=record,
    )
    path = None if point is None else str(saved / over / f"checkpoint-{point}")
    trainer.train(resume_from_checkpoint=path)
    suffix = ", tokens" if is_over_tokens else ""
    record.end_run(f"{num_micro} from {point}{suffix}", model.inner)


def main() -> None:
    folder, num_ranks = arguments()
    record = Record()
    for num_micro, point in runs_of(num_ranks):
        for over in ("examples", "tokens"):
            train(folder / f"{num_micro}", num_micro, point, record, over)
    rank = TrainingArguments(use_cpu=True, ddp_backend="gloo").process_index
    record.write(folder, num_ranks, rank)


if __name__ == "__main__":
    main()
