"""Train with Accelerate under torchrun; see `contract.py`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tests.integrations.data import (
    NUM_EPOCHS,
    SIZES,
    STEPS_PER_EPOCH,
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
from paceline.integrations.accelerate import BalancedLoader


def train(saved: Path, num_micro: int, point: int | None, record: Record) -> Any:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=num_micro)
    batches = paceline.BalancedBatchSampler(SIZES, config_of(num_micro))
    # Workers fetch ahead, and what they fetched does not count as delivered: half of the runs have
    # them, and the prepared loader itself fetches one batch ahead.
    loader = paceline.DataLoader(
        Sequences(),
        batch_sampler=batches,
        collate_fn=padded,
        with_info=True,
        num_workers=2 * (num_micro == 2),
    )
    inner = Reverser()
    model, optimizer = accelerator.prepare(inner, optimizer_of(inner))
    balanced = BalancedLoader(accelerator, loader)
    accelerator.register_for_checkpointing(balanced)
    if point is not None:
        accelerator.load_state(str(saved / f"{point}"))
    num_steps = point or 0
    for epoch in range(num_steps // STEPS_PER_EPOCH, NUM_EPOCHS):
        balanced.set_epoch(epoch)
        for batch in balanced:
            with accelerator.accumulate(model) if num_micro > 1 else nullcontext():
                loss = model(batch["x"], batch["is_token"]) * batch["loss_weight"]
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            # What it carries makes up for Accelerate's division.
            record.add(batch)
            num_steps += accelerator.sync_gradients
            if accelerator.sync_gradients and point is None:
                accelerator.save_state(str(saved / f"{num_steps}"))
    record.end_run(f"{num_micro} from {point}", inner)
    return accelerator


def main() -> None:
    folder, num_ranks = arguments()
    record = Record()
    for num_micro, point in runs_of(num_ranks):
        accelerator = train(folder / f"{num_micro}", num_micro, point, record)
    record.write(folder, num_ranks, accelerator.process_index)
    accelerator.end_training()


if __name__ == "__main__":
    main()
