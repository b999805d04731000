"""What the framework examples train on: paragraphs of Python's own source, and a small model."""

from typing import Any

import torch
from examples.texts import GLOBAL_BATCH as GLOBAL_BATCH
from examples.texts import Texts
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from paceline.torch import Watch

WIDTH = 96


class Paragraphs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Paragraphs of the standard library's source, in the same order on every rank."""

    def __init__(self, num_examples: int) -> None:
        texts = Texts(num_examples)
        self._items = [torch.tensor(texts[i]["x"].tolist()) for i in range(len(texts))]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each paragraph."""
        return [len(item) for item in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._items[index]}


def collate(items: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Pad to the longest."""
    texts = [item["input_ids"] for item in items]
    lengths = torch.tensor([len(text) for text in texts])
    return {"input_ids": pad_sequence(texts, batch_first=True), "lengths": lengths}


class ByteModel(nn.Module):
    """A transformer of one layer that predicts the next byte."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(256, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return the mean over examples of each example's mean loss."""
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1] - 1)
        logits = self.head(self.layer(self.embed(input_ids[:, :-1]), mask, is_causal=True))
        losses = cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")
        counts = torch.arange(losses.shape[1]) < (lengths - 1)[:, None]
        return {"loss": ((losses * counts).sum(1) / counts.sum(1)).mean()}


def report(way: str, run: Watch, num_items: int, unit: str = "bytes") -> None:
    """Print on rank 0 what a run cost; all ranks call it."""
    summary = run.summary()
    _, _, waiting, _, _ = summary.steady_shares.mean(axis=1)
    if torch.distributed.get_rank() == 0:
        print(
            f"{way}, measured: {len(summary.step_times_s)} steps, ranks wait for the slowest "
            f"{waiting:.1%} of the time, {num_items / summary.makespan_s:,.0f} {unit}/s",
            flush=True,
        )
