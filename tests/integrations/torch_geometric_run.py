"""Train on graphs with PyG; see `contract.py`."""

from typing import Any

import torch
from tests.integrations import ddp
from tests.integrations.data import Sequences
from torch_geometric.data import Data
from torch_geometric.utils import scatter

import paceline
from paceline.integrations.torch_geometric import graph_loader


def graphs() -> list[Data]:
    """Return each sequence as a path of its vectors."""
    items = Sequences()
    found = []
    for i in range(len(items)):
        x = items[i]["x"]
        ends = torch.arange(len(x) - 1)
        # Not `index`: PyG takes attributes of that name for places of nodes, and shifts them.
        found.append(Data(x=x, edge_index=torch.stack([ends, ends + 1]), number=i))
    return found


def loss_of(model: Any, batch: Any) -> Any:
    # To the model a batch of graphs is one sequence, of all nodes.
    losses = model(batch.x)
    return scatter(losses, batch.batch, dim_size=batch.num_graphs, reduce="mean").mean()


def loader_of(batches: paceline.BalancedBatchSampler, num_workers: int) -> Any:
    return graph_loader(graphs(), batches, num_workers=num_workers)


if __name__ == "__main__":
    ddp.main(loader_of, loss_of)
