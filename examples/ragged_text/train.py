"""Train a small byte transformer on functions of Python's standard library, with plain PyTorch.

The script knows nothing of Paceline. Start it with `torchrun --nproc-per-node=2 train.py`, or with
`paceline run --nproc-per-node=2 train.py` to learn what slows it. It needs no GPU and no network.
"""

import argparse
import re
import sysconfig
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, DistributedSampler

PAD = 0  # No source file holds this byte.


class Functions(Dataset[torch.Tensor]):
    """Functions and classes as bytes: a few of them are a hundred times as long as most."""

    def __init__(self, num_examples: int, max_bytes: int) -> None:
        pieces: list[bytes] = []
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore")
            parts = re.split(r"\n(?=def |class |    def )", text)
            pieces += [part.encode()[:max_bytes] for part in parts if len(part) > 1]
            if len(pieces) >= num_examples:
                break
        self.pieces = pieces[:num_examples]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.frombuffer(bytearray(self.pieces[index]), dtype=torch.uint8).long()


def collate(rows: list[torch.Tensor]) -> torch.Tensor:
    """Pad to the longest."""
    return pad_sequence(rows, batch_first=True, padding_value=PAD)


class ByteTransformer(nn.Module):
    """Predicts the next byte."""

    def __init__(self, dim: int, num_layers: int, max_bytes: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, dim)
        self.positions = nn.Embedding(max_bytes, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits of shape `(num_examples, length, 256)`."""
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.bytes(ids) + self.positions(torch.arange(length))
        return self.head(self.layers(x, mask=mask, is_causal=True))


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean over the bytes that are no padding."""
    logits = model(ids[:, :-1])
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)


def train(options: argparse.Namespace) -> None:
    """Train on this rank's part of each epoch."""
    torch.manual_seed(0)
    dataset = Functions(options.examples, options.max_bytes)
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=options.batch_size, sampler=sampler, collate_fn=collate)
    model = DistributedDataParallel(ByteTransformer(options.dim, 2, options.max_bytes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        for ids in loader:
            loss = loss_of(model, ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}", flush=True)


def main() -> None:
    """Meet the other ranks and train."""
    parser = argparse.ArgumentParser(description="Train a byte transformer on ragged text.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=4, help="per rank")
    parser.add_argument("--max-bytes", type=int, default=1024, help="longer functions are cut")
    parser.add_argument("--dim", type=int, default=32)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    try:
        train(options)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
