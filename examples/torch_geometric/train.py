"""Syntax trees of Python's own source with PyG, on two ranks.

    torchrun --nproc-per-node=2 -m examples.torch_geometric.train [--plain | --dynamic]

`--plain` deals graphs out evenly, `--dynamic` fills batches with PyG's DynamicBatchSampler.
"""

import argparse
import ast
import sysconfig
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from examples.ragged_text import report
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader, DynamicBatchSampler
from torch_geometric.nn import GCNConv
from torch_geometric.utils import scatter

import paceline
from paceline.balance import BalanceConfig
from paceline.integrations.torch_geometric import graph_costs, graph_loader

GLOBAL_BATCH, WIDTH, MAX_DEGREE, MAX_NODES = 48, 64, 8, 3000
KINDS = {kind: i for i, kind in enumerate(sorted(dir(ast)))}


def tree_of(function: ast.AST) -> Data:
    """Return the syntax tree of a function: the kind of each node, and how many children it has."""
    nodes = list(islice(ast.walk(function), MAX_NODES))
    places = {id(node): i for i, node in enumerate(nodes)}
    edges = [
        (places[id(node)], places[id(child)])
        for node in nodes
        for child in ast.iter_child_nodes(node)
        if id(child) in places
    ]
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    degree = torch.bincount(edge_index[0], minlength=len(nodes)).clamp(max=MAX_DEGREE)
    kind = torch.tensor([KINDS[type(node).__name__] for node in nodes])
    return Data(kind=kind, edge_index=edge_index, degree=degree, num_nodes=len(nodes))


def trees(num_examples: int) -> list[Data]:
    """Return the functions of the standard library, in the same order on every rank."""
    found: list[Data] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        found += [tree_of(node) for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
        if len(found) >= num_examples:
            break
    return found[:num_examples]


class TreeModel(nn.Module):
    """Predicts from the kinds of nodes around it how many children a node has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(len(KINDS), WIDTH)
        self.layers = nn.ModuleList(GCNConv(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, MAX_DEGREE + 1)

    def forward(self, batch: Any) -> Tensor:
        """Return the mean over graphs of each graph's mean loss."""
        h = self.embed(batch.kind)
        for layer in self.layers:
            h = h + layer(h, batch.edge_index).relu()
        losses = cross_entropy(self.head(h), batch.degree, reduction="none")
        return scatter(losses, batch.batch, dim_size=batch.num_graphs, reduce="mean").mean()


def batches_of(graphs: list[Data], way: str, epoch: int, loader: Any) -> Any:
    """Return what a rank trains on in one epoch: pairs of a batch and its weight."""
    if way == "balanced":
        loader.set_epoch(epoch)
        return ((batch, info.loss_weight) for batch, info in loader)
    world_size, rank = distributed.get_world_size(), distributed.get_rank()
    torch.manual_seed(epoch)
    own = [graphs[i] for i in torch.randperm(len(graphs)).tolist()[rank::world_size]]
    if way == "plain":
        return ((batch, 1.0) for batch in DataLoader(own, GLOBAL_BATCH // world_size))
    mean = sum(graph.num_nodes for graph in graphs) / len(graphs)
    # It has no length, which list() would ask for.
    filled = [*iter(DynamicBatchSampler(own, max_num=int(mean * GLOBAL_BATCH / world_size)))]
    # Ranks fill different numbers of batches; those that others do not have are left out.
    least = torch.tensor(len(filled))
    distributed.all_reduce(least, distributed.ReduceOp.MIN)
    dynamic = DataLoader(own, batch_sampler=filled[: int(least)])
    return ((batch, 1.0) for batch in dynamic)


def main() -> None:
    """Train."""
    flags = argparse.ArgumentParser()
    ways = flags.add_mutually_exclusive_group()
    for way in ("plain", "dynamic"):
        ways.add_argument(f"--{way}", dest="way", action="store_const", const=way)
    flags.set_defaults(way="balanced")
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--examples", type=int, default=1200)
    options = flags.parse_args()
    torch.set_num_threads(1)

    distributed.init_process_group("gloo")
    graphs, bare = trees(options.examples), TreeModel()
    config = BalanceConfig(batch_size=GLOBAL_BATCH, counts="free", num_microbatches=1)
    loader = graph_loader(graphs, paceline.BalancedBatchSampler(graph_costs(graphs), config))
    model = nn.parallel.DistributedDataParallel(bare)
    optimizer, num_nodes = torch.optim.AdamW(bare.parameters(), lr=1e-3), torch.tensor(0)
    with paceline.watch(model, optimizer) as run:
        for epoch in range(options.epochs):
            for batch, weight in batches_of(graphs, options.way, epoch, loader):
                (model(batch) * weight).backward()
                optimizer.step()
                optimizer.zero_grad()
                num_nodes += batch.num_nodes * (weight > 0)
    distributed.all_reduce(num_nodes)
    report(options.way, run, int(num_nodes), "nodes")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
