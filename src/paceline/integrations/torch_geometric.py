"""Balanced batches of graphs in PyG, by their nodes and edges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from paceline.errors import MissingExtraError
from paceline.torch.balance import BalancedBatchSampler, DataLoader

try:
    from torch_geometric.loader.dataloader import Collater
except ModuleNotFoundError as error:
    if error.name != "torch_geometric":
        raise
    raise MissingExtraError(
        "paceline.integrations.torch_geometric needs PyG; install it with: "
        "pip install 'paceline[torch_geometric]'"
    ) from None


def graph_costs(
    graphs: Dataset[Any] | Sequence[Any], *, per_node: float = 1.0, per_edge: float = 1.0
) -> NDArray[np.float64]:
    """Return what each graph costs: layers work on nodes, and messages on edges.

    Reads every graph once; keep the result with the dataset.

    Args:
        graphs: With `num_nodes` and `num_edges`, as PyG's `Data` and `HeteroData` have.
        per_node: Cost of a node, in any unit that adds up.
        per_edge: Cost of an edge, in the same unit.

    Examples:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> path = Data(num_nodes=3, edge_index=torch.tensor([[0, 1], [1, 2]]))
        >>> graph_costs([path], per_node=2.0, per_edge=0.5).tolist()
        [7.0]
    """
    many: Any = graphs
    counts = [(many[i].num_nodes, many[i].num_edges) for i in range(len(many))]
    costs: NDArray[np.float64] = np.array(counts, dtype=np.float64) @ [per_node, per_edge]
    return costs


def graph_loader(
    graphs: Dataset[Any] | Sequence[Any],
    sampler: BalancedBatchSampler,
    *,
    follow_batch: list[str] | None = None,
    exclude_keys: list[str] | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """Return a loader of pairs `(batch, info)`: PyG's `Batch`, and what it counts in the loss.

    It takes the place of `torch_geometric.loader.DataLoader`.

    Args:
        graphs: As long as the sampler's costs.
        sampler: Of this rank, made of `graph_costs(graphs)`.
        follow_batch: As in PyG's loader.
        exclude_keys: As in PyG's loader.
        **options: Of `paceline.DataLoader`, such as `num_workers`.
    """
    collate = Collater(graphs, follow_batch, exclude_keys)
    dataset: Any = graphs
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, with_info=True, **options)
