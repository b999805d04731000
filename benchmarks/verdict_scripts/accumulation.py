"""Gradient accumulation with `no_sync`, clipping and a schedule; convolutions over text."""

from contextlib import nullcontext
from itertools import islice

import torch
from planting import NUM_CLASSES, VOCABULARY, Batches, flags, slow_down, slow_wire
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

WIDTH, LENGTH, BATCH_SIZE, ACCUMULATE = 128, 64, 8, 3


class Tagger(nn.Module):
    """Embeds, convolves, averages over the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        convolutions = [nn.Conv1d(WIDTH, WIDTH, 5, padding=2) for _ in range(5)]
        self.body = nn.Sequential(*[part for one in convolutions for part in (one, nn.GELU())])
        self.head = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of each text."""
        found: torch.Tensor = self.head(self.body(self.embed(ids).transpose(1, 2)).mean(2))
        return found


def main() -> None:
    options = flags()
    dist.init_process_group("gloo")
    torch.manual_seed(options.seed)
    dataset = Batches(options.plant, options.seed, LENGTH, BATCH_SIZE)
    sampler = DistributedSampler[dict[str, torch.Tensor]](dataset, seed=options.seed)
    batches = iter(
        DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=lambda one: one[0])
    )
    model = Tagger()
    slow_down(model, options.plant)
    ddp = DistributedDataParallel(model)
    slow_wire(ddp, options.plant)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    criterion = nn.CrossEntropyLoss()
    for _ in range(options.steps):
        for part, batch in enumerate(islice(batches, ACCUMULATE)):
            with nullcontext() if part + 1 == ACCUMULATE else ddp.no_sync():
                loss = criterion(ddp(batch["input_ids"]), batch["labels"]) / ACCUMULATE
                loss.backward()
        nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
