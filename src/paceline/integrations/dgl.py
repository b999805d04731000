"""Balanced batches of seeds in DGL, by what sampling and computing their neighbourhoods costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from paceline.errors import MissingExtraError
from paceline.torch.balance import BalancedBatchSampler, DataLoader

try:
    from dgl.dataloading import Sampler
except ModuleNotFoundError as error:
    if error.name != "dgl":
        raise
    raise MissingExtraError(
        "paceline.integrations.dgl needs DGL; install it with: pip install 'paceline[dgl]'"
    ) from None


def neighbourhood_costs(
    indptr: ArrayLike, indices: ArrayLike, fanouts: Sequence[int]
) -> NDArray[np.float64]:
    """Predict how many edges a sampler draws for each node as a seed.

    A node of degree `d` draws `min(d, fanout)` neighbours, and what these draw is on average the
    mean over all of its neighbours. Exact in expectation for seeds one by one; seeds of one batch
    that share neighbours draw them once, so a batch costs at most the sum. Takes time linear in
    edges times layers.

    Args:
        indptr: Where the neighbours of each node begin, and the end: the first of
            `graph.adj_tensors("csc")`.
        indices: The neighbours, node after node.
        fanouts: As `NeighborSampler` takes them, the layer next to the seeds last; -1 for all
            neighbours.

    Returns:
        Edges per seed, shape `(num_nodes,)`. Index it with the seeds.

    Raises:
        ValueError: If a fan-out is below -1.

    Examples:
        Node 0 has neighbours 1 and 2, node 1 has 2, and node 2 has none:

        >>> neighbourhood_costs([0, 2, 3, 3], [1, 2, 2], fanouts=[-1, -1]).tolist()
        [3.0, 1.0, 0.0]
        >>> neighbourhood_costs([0, 2, 3, 3], [1, 2, 2], fanouts=[1, 1]).tolist()
        [1.5, 1.0, 0.0]
    """
    if min(fanouts) < -1:
        raise ValueError(f"fanouts must be at least -1, which takes all, got {list(fanouts)}")
    begins, neighbours = np.asarray(indptr, dtype=np.int64), np.asarray(indices, dtype=np.int64)
    degrees = np.diff(begins)
    costs = np.zeros(len(degrees))
    for fanout in fanouts:
        drawn = degrees if fanout < 0 else np.minimum(degrees, fanout)
        sums = np.concatenate([[0.0], np.cumsum(1 + costs[neighbours])])
        costs = drawn / np.maximum(degrees, 1) * np.diff(sums[begins])
    return costs


class Seeds(Dataset[int]):
    """Seed nodes as a dataset: example `i` is the node of seed `i`."""

    def __init__(self, nodes: Tensor) -> None:
        self._nodes = nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, index: int) -> int:
        return int(self._nodes[index])


def seed_loader(
    graph: Any, seeds: Tensor, sampler: Sampler, batches: BalancedBatchSampler, **options: Any
) -> DataLoader[Any]:
    """Return a loader of pairs: what `sampler` samples for a batch of seeds, and its info.

    It takes the place of `dgl.dataloading.DataLoader` with `use_ddp=True`, which cuts seeds into
    parts of equal number.

    Args:
        graph: What the sampler samples of.
        seeds: Nodes, shape `(num_seeds,)`; as many as the costs that `batches` was made of.
        sampler: Such as `NeighborSampler([10, 25])`.
        batches: Of this rank.
        **options: Of `paceline.DataLoader`.
    """

    def sample(nodes: list[int]) -> Any:
        return sampler.sample(graph, torch.tensor(nodes))

    return DataLoader(
        Seeds(seeds), batch_sampler=batches, collate_fn=sample, with_info=True, **options
    )
