"""DGL holds the contract, and the cost of a neighbourhood is what its sampler draws."""

import dgl
import numpy as np
import pytest
import torch
from tests.integrations.contract import FrameworkContract
from tests.integrations.data import SIZES
from tests.integrations.dgl_run import graph

from paceline.integrations.dgl import neighbourhood_costs

pytestmark = pytest.mark.filterwarnings("default")


class TestDgl(FrameworkContract):
    program = "dgl_run.py"


def test_all_neighbours_are_counted() -> None:
    indptr, indices, _ = graph().adj_tensors("csc")
    assert neighbourhood_costs(indptr, indices, [-1])[: len(SIZES)].tolist() == SIZES.tolist()


@pytest.mark.parametrize("fanouts", [[2], [3, 2], [-1, 4], [2, 2, 2]])
def test_costs_are_the_edges_that_are_drawn_on_average(fanouts: list[int]) -> None:
    rng = np.random.default_rng(0)
    # Some nodes are far more popular than others, as in graphs of people.
    ends = rng.integers(0, 60, 400), (60 * rng.random(400) ** 3).astype(np.int64)
    made = dgl.graph((torch.tensor(ends[0]), torch.tensor(ends[1])), num_nodes=60)
    indptr, indices, _ = made.adj_tensors("csc")
    expected = neighbourhood_costs(indptr, indices, fanouts)
    dgl.seed(0)
    for seed in (0, 1, 7, 20):
        found = np.mean([drawn_by_hand(made, seed, fanouts) for _ in range(300)])
        assert found == pytest.approx(expected[seed], rel=0.15, abs=0.3)


def drawn_by_hand(made: dgl.DGLGraph, seed: int, fanouts: list[int]) -> int:
    """Return the edges drawn from one seed, each neighbour's neighbours apart."""
    nodes, num_drawn = torch.tensor([seed]), 0
    for fanout in reversed(fanouts):
        drawn = [dgl.sampling.sample_neighbors(made, [int(node)], fanout) for node in nodes]
        nodes = torch.cat([part.edges()[0] for part in drawn]) if drawn else nodes
        num_drawn += len(nodes)
    return num_drawn
