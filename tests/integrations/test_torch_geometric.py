"""PyG holds the contract, and graphs are balanced by their nodes and edges."""

from dataclasses import replace

import numpy as np
import pytest
from tests.integrations.contract import FrameworkContract
from tests.integrations.data import SIZES, config_of
from tests.integrations.torch_geometric_run import graphs
from torch_geometric.loader import DynamicBatchSampler

import paceline
from paceline.integrations.torch_geometric import graph_costs, graph_loader
from paceline.torch import Replica

pytestmark = pytest.mark.filterwarnings("default")


class TestTorchGeometric(FrameworkContract):
    program = "torch_geometric_run.py"


def test_costs_count_nodes_and_edges() -> None:
    assert graph_costs(graphs(), per_node=2, per_edge=3).tolist() == (5 * SIZES - 3).tolist()


def test_ranks_get_the_nodes_of_each_step_more_evenly_than_dynamic_batches() -> None:
    many = graphs()
    by_rank = []
    for rank in range(2):
        place = Replica(rank=rank, num_replicas=2)
        config = replace(config_of(1), padded=False)
        batches = paceline.BalancedBatchSampler(graph_costs(many), config, process_group=place)
        found = list(graph_loader(many, batches))
        assert all(batch.num_graphs == len(batch.number) for batch, _ in found)
        by_rank.append([batch.num_nodes for batch, info in found if info.loss_weight])
    steps = np.array([nodes[:5] for nodes in by_rank])
    dynamic = iter(DynamicBatchSampler(many, max_num=int(steps.mean()), shuffle=True))
    nodes = np.array([SIZES[batch].sum() for batch in dynamic])
    pairs = nodes[: len(nodes) // 2 * 2].reshape(-1, 2)
    waits = [1 - part.mean() / part.max(axis).mean() for part, axis in ((steps, 0), (pairs, 1))]
    assert waits[0] < waits[1] / 2
