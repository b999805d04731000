"""Train on seeds of one graph with DGL; see `contract.py`."""

from typing import Any

import dgl
import torch
from tests.integrations import ddp
from tests.integrations.data import SIZES, Sequences

import paceline
from paceline.integrations.dgl import seed_loader


def graph() -> Any:
    """Return a graph in which the neighbours of seed `i` are the vectors of sequence `i`."""
    sizes = torch.from_numpy(SIZES)
    num_seeds, num_vectors = len(sizes), int(sizes.sum())
    seeds = torch.arange(num_seeds).repeat_interleave(sizes)
    edges = torch.arange(num_seeds, num_seeds + num_vectors), seeds
    made = dgl.graph(edges, num_nodes=num_seeds + num_vectors)
    items = Sequences()
    vectors = torch.cat([items[i]["x"] for i in range(num_seeds)])
    made.ndata["x"] = torch.cat([torch.zeros(num_seeds, 3, dtype=vectors.dtype), vectors])
    return made


def loss_of(model: Any, batch: Any) -> Any:
    block = batch["block"]
    source, seed = block.edges()
    losses = model(block.srcdata["x"][source])
    sums = losses.new_zeros(block.num_dst_nodes()).index_add(0, seed, losses)
    return (sums / block.in_degrees()).mean()


class Loader:
    """Names what the loader yields, as the loop of the tests wants it."""

    def __init__(self, loader: Any) -> None:
        self._loader, self.batch_sampler = loader, loader.batch_sampler
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def __iter__(self) -> Any:
        for (_, seeds, blocks), info in self._loader:
            yield {"number": seeds, "block": blocks[-1]}, info


def loader_of(batches: paceline.BalancedBatchSampler, num_workers: int) -> Any:
    sampler = dgl.dataloading.NeighborSampler([-1])
    seeds = torch.arange(len(SIZES))
    return Loader(seed_loader(graph(), seeds, sampler, batches, num_workers=num_workers))


if __name__ == "__main__":
    ddp.main(loader_of, loss_of)
