"""A plain loop: a small transformer that classifies text, under DistributedDataParallel."""

import torch
from planting import NUM_CLASSES, VOCABULARY, Batches, flags, slow_down, slow_wire
from torch import distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

WIDTH, LENGTH, BATCH_SIZE = 128, 96, 16


class Classifier(nn.Module):
    """Embeds, attends, averages over the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of each text."""
        found: torch.Tensor = self.head(self.layers(self.embed(ids)).mean(1))
        return found


def main() -> None:
    options = flags()
    dist.init_process_group("gloo")
    torch.manual_seed(options.seed)
    dataset = Batches(options.plant, options.seed, LENGTH, BATCH_SIZE)
    sampler = DistributedSampler[dict[str, torch.Tensor]](dataset, seed=options.seed)
    loader = DataLoader(dataset, batch_size=None, sampler=sampler)
    model = Classifier()
    slow_down(model, options.plant)
    ddp = DistributedDataParallel(model)
    slow_wire(ddp, options.plant)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-4)
    for step, batch in enumerate(loader):
        loss = cross_entropy(ddp(batch["input_ids"]), batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == options.steps:
            break
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
