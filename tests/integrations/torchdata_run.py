"""Train with torchdata's loader on a dataset of Hugging Face; see `contract.py`."""

from typing import Any

import torch
from datasets import Dataset
from tests.integrations import ddp
from tests.integrations.data import Sequences, padded

import paceline
from paceline.integrations.torchdata import BalancedLoader


def dataset() -> Any:
    items = Sequences()
    columns = {"x": [items[i]["x"].tolist() for i in range(len(items))], "index": range(len(items))}
    return Dataset.from_dict(columns).with_format(
        "torch", columns=["x"], dtype=torch.float64, output_all_columns=True
    )


def loader_of(batches: paceline.BalancedBatchSampler, num_workers: int) -> Any:
    return BalancedLoader(dataset(), batches, padded, num_workers=num_workers)


if __name__ == "__main__":
    ddp.main(loader_of)
