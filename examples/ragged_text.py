"""What the framework examples share: ragged text, a small model, and how a run goes on."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import torch
from examples.texts import GLOBAL_BATCH as GLOBAL_BATCH
from examples.texts import Texts
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from paceline.errors import CheckpointError
from paceline.torch import Watch

WHOLE = "whole"
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


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags that all framework examples have."""
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--examples", type=int, default=1200)
    flags.add_argument("--out", type=Path, help="folder for checkpoints, which all ranks see")
    flags.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the newest whole checkpoint, if there is one (the default); never: "
        "there must be none",
    )


def newest_whole(folder: Path, resume: str) -> Path | None:
    """Return the checkpoint to go on from; all ranks that have met call it, and get the same.

    A launcher that starts ranks again has ended the old ones before, so nobody is writing. Names
    end in the number of steps; files of Lightning are written at once or not at all.

    Raises:
        CheckpointError: If there is one and `resume` is `"never"`.
    """
    found: dict[int, Path] = {}
    marked = [mark.parent for mark in folder.glob(f"*/{WHOLE}")]
    for path in (*marked, *folder.glob("*.ckpt")):
        number = re.search(r"\d+$", path.stem)
        found |= {int(number[0]): path} if number else {}
    newest = [found[max(found)] if found else None]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(newest)
    if newest[0] is not None and resume == "never":
        raise CheckpointError(
            f"{newest[0]} is a checkpoint of an earlier run; leave --resume out to go on from it, "
            "or pass another --out"
        )
    return newest[0]


def mark_whole(checkpoint: Path) -> None:
    """Say that every rank has written its part of a checkpoint; all ranks call it."""
    is_first = True
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        is_first = torch.distributed.get_rank() == 0
    if is_first:
        os.sync()
        (checkpoint / WHOLE).touch()


def report(way: str, run: Watch, num_items: int | None, unit: str = "bytes") -> None:
    """Print on rank 0 what a run cost; all ranks call it.

    Args:
        way: What is compared.
        run: The steps that were made since this start.
        num_items: Of the examples in them; None if the run went on from a checkpoint.
        unit: What the items are.
    """
    timeline = run.gather()
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if not is_first:
        return
    if not len(timeline):
        print("all epochs were done before; another --out begins anew", flush=True)
        return
    summary = timeline.summary()
    _, _, waiting, _, _ = summary.steady_shares.mean(axis=1)
    rate = "" if num_items is None else f", {num_items / summary.makespan_s:,.0f} {unit}/s"
    print(
        f"{way}, measured: {len(summary.step_times_s)} steps, ranks wait for the slowest "
        f"{waiting:.1%} of the time{rate}",
        flush=True,
    )
