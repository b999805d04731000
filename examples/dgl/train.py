"""Words of Python's own source as a graph with DGL, on two ranks.

    torchrun --nproc-per-node=2 -m examples.dgl.train [--plain] [--epochs 2]

Names are nodes, and names of one line are neighbours. `--plain` is the same job without Paceline.
"""

import argparse
import re
import sysconfig
from itertools import combinations
from pathlib import Path
from typing import Any

import dgl
import torch
from examples.ragged_text import report
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

import paceline
from paceline.balance import BalanceConfig
from paceline.integrations.dgl import neighbourhood_costs, seed_loader

GLOBAL_BATCH, WIDTH, FANOUTS, NUM_LETTERS = 64, 32, [10, 25], 26
NAME = re.compile(r"[A-Za-z_]{3,}")


def graph_of_names(num_files: int) -> tuple[Any, Tensor]:
    """Return the graph, and the first letter of each name as what is to be told."""
    places: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:num_files]:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            nodes = {places.setdefault(name, len(places)) for name in NAME.findall(line)}
            pairs += combinations(sorted(nodes), 2)
    source, target = torch.tensor(pairs).T
    graph = dgl.to_simple(dgl.to_bidirected(dgl.graph((source, target), num_nodes=len(places))))
    letters = [ord(name.lower()[0]) - ord("a") for name in places]
    return graph, torch.tensor(letters).clamp(min=0)


class NameModel(nn.Module):
    """Tells a name's first letter from the names around it."""

    def __init__(self, num_nodes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(num_nodes, WIDTH)
        self.layers = nn.ModuleList(dgl.nn.SAGEConv(WIDTH, WIDTH, "mean") for _ in FANOUTS)
        self.head = nn.Linear(WIDTH, NUM_LETTERS)

    def forward(self, input_nodes: Tensor, blocks: Any) -> Tensor:
        """Return logits of the seeds."""
        h = self.embed(input_nodes)
        for layer, block in zip(self.layers, blocks, strict=True):
            h = layer(block, h).relu()
        logits: Tensor = self.head(h)
        return logits


def batches_of(graph: Any, seeds: Tensor, *, is_plain: bool) -> Any:
    """Return a function that yields what a rank trains on in an epoch, and its weights."""
    sampler = dgl.dataloading.NeighborSampler(FANOUTS)
    if is_plain:
        per_rank = GLOBAL_BATCH // distributed.get_world_size()
        plain = dgl.dataloading.DataLoader(
            graph, seeds, sampler, batch_size=per_rank, shuffle=True, use_ddp=True
        )
        return lambda epoch: ((batch, 1.0) for batch in plain)
    indptr, indices, _ = graph.adj_tensors("csc")
    costs = neighbourhood_costs(indptr, indices, FANOUTS)[seeds]
    config = BalanceConfig(batch_size=GLOBAL_BATCH, counts="free", num_microbatches=1)
    loader = seed_loader(graph, seeds, sampler, paceline.BalancedBatchSampler(costs, config))

    def share(epoch: int) -> Any:
        loader.set_epoch(epoch)
        return ((batch, info.loss_weight) for batch, info in loader)

    return share


def main() -> None:
    """Train."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--plain", action="store_true", help="without Paceline")
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--seeds", type=int, default=2400)
    options = flags.parse_args()
    torch.set_num_threads(1)

    distributed.init_process_group("gloo")
    graph, letters = graph_of_names(40)
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randperm(graph.num_nodes(), generator=generator)[: options.seeds]
    bare = NameModel(graph.num_nodes())
    model = nn.parallel.DistributedDataParallel(bare)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    epoch_of = batches_of(graph, seeds, is_plain=options.plain)
    with paceline.watch(model, optimizer) as run:
        for epoch in range(options.epochs):
            for (input_nodes, output_nodes, blocks), weight in epoch_of(epoch):
                loss = cross_entropy(model(input_nodes, blocks), letters[output_nodes])
                (loss * weight).backward()
                optimizer.step()
                optimizer.zero_grad()
    way = ("balanced", "plain")[options.plain]
    report(way, run, len(seeds) * options.epochs, "seeds")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
