from itertools import chain

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from paceline.cost import LinearCost, QuadraticCost
from paceline.demo._config import EXAMPLES_PER_RANK
from paceline.demo._data import (
    Batch,
    TextDataset,
    global_batches,
    paced_loader,
    paced_plan,
    padded_batch,
    plain_loader,
    plain_sampler,
    whole_loader,
)
from paceline.demo._model import CONTEXT_BYTES, ByteTransformer, example_losses
from paceline.demo._price import train_step

COST = QuadraticCost(6.0, 0.1)


def small_model() -> ByteTransformer:
    torch.manual_seed(0)
    return ByteTransformer(dim=16, num_layers=1, num_heads=2).double()


def naive_loss(model: ByteTransformer, example: torch.Tensor) -> torch.Tensor:
    """Return the mean next-byte loss of one example, alone and without padding."""
    logits = model(example[None])[0]
    return F.cross_entropy(logits[:-1], example[1:])


def gradient_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_examples_are_cut_to_the_context(dataset: TextDataset) -> None:
    assert len(dataset) == 131
    assert dataset.sizes.max() == CONTEXT_BYTES
    assert [len(dataset[i]) for i in range(131)] == dataset.sizes.tolist()


def test_a_batch_is_padded_to_its_longest_example() -> None:
    batch = padded_batch([torch.tensor([1, 2, 3]), torch.tensor([4])])
    assert batch.text.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.num_padded == 2


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_global_batches_are_what_the_samplers_of_all_ranks_give(
    dataset: TextDataset, num_ranks: int
) -> None:
    batches = global_batches(dataset, num_ranks=num_ranks, seed=3)
    num_steps = 131 // num_ranks // EXAMPLES_PER_RANK
    assert batches.shape == (num_steps, num_ranks, EXAMPLES_PER_RANK)
    for rank in range(num_ranks):
        sampler = plain_sampler(dataset, rank=rank, num_ranks=num_ranks, seed=3)
        assert batches[:, rank].ravel().tolist() == list(sampler)[: num_steps * EXAMPLES_PER_RANK]
    assert len(np.unique(batches)) == batches.size


def test_the_seed_decides_the_order(dataset: TextDataset) -> None:
    one, same, other = (global_batches(dataset, num_ranks=2, seed=s) for s in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("cost", [COST, LinearCost(fixed=100.0)])
def test_each_example_of_a_global_batch_has_one_rank(
    dataset: TextDataset, num_ranks: int, cost: QuadraticCost | LinearCost
) -> None:
    batches = global_batches(dataset, num_ranks=num_ranks, seed=0)
    plan = paced_plan(dataset, batches, cost, 0.5)
    assert plan.num_steps == len(batches)
    for step, batch in enumerate(batches):
        shares = [plan.step_examples(step, rank).tolist() for rank in range(num_ranks)]
        assert all(shares)
        assert sorted(chain(*shares)) == sorted(batch.ravel().tolist())


def test_the_paced_way_never_costs_its_slowest_rank_more(dataset: TextDataset) -> None:
    batches = global_batches(dataset, num_ranks=2, seed=0)
    plain = COST(dataset.sizes[batches].astype(float)).max(axis=2) * EXAMPLES_PER_RANK + 0.5
    paced = paced_plan(dataset, batches, COST, 0.5).load
    assert (paced.max(axis=1) <= plain.max(axis=1) * (1 + 1e-12)).all()


def texts_of(batch: Batch) -> list[list[int]]:
    return [text[:n].tolist() for text, n in zip(batch.text, batch.lengths, strict=True)]


def test_both_ways_see_the_same_examples_in_every_step(dataset: TextDataset) -> None:
    batches = global_batches(dataset, num_ranks=2, seed=5)
    plan = paced_plan(dataset, batches, COST, 0.5)
    plain = [plain_loader(dataset, rank=rank, num_ranks=2, seed=5) for rank in (0, 1)]
    paced = [paced_loader(dataset, plan, rank=rank) for rank in (0, 1)]
    for step in batches:
        expected = sorted(dataset[i].tolist() for i in step.ravel())
        for loaders in (plain, paced):
            shares = [share for loader in loaders for share in next(loader)]
            assert sorted(chain(*(texts_of(share.batch) for share in shares))) == expected
            counts = [len(share.batch.lengths) for share in shares]
            assert sum(counts) == step.size
            assert [share.loss_weight * EXAMPLES_PER_RANK for share in shares] == counts
    assert [next(loader, None) for loader in paced] == [None, None]


def test_each_rank_is_fed_what_the_plan_priced(dataset: TextDataset) -> None:
    batches = global_batches(dataset, num_ranks=2, seed=0)
    plan = paced_plan(dataset, batches, LinearCost(), 3.0)
    for rank in (0, 1):
        costs = [
            sum(share.batch.text.numel() + 3.0 for share in step)
            for step in paced_loader(dataset, plan, rank=rank)
        ]
        assert costs == plan.load[:, rank].tolist()


def test_losses_of_a_padded_batch_equal_those_of_each_example_alone(dataset: TextDataset) -> None:
    model = small_model()
    examples = [dataset[index] for index in range(9)]
    batch = padded_batch(examples)
    losses = example_losses(model(batch.text), batch.text, batch.lengths)
    assert losses.tolist() == pytest.approx([naive_loss(model, one).item() for one in examples])


def test_weighted_gradients_of_a_paced_step_equal_the_plain_one(dataset: TextDataset) -> None:
    model = small_model()
    step = global_batches(dataset, num_ranks=2, seed=0)[0]
    sum(naive_loss(model, dataset[i]) for i in step.ravel()).div(step.size).backward()
    plain = gradient_of(model)

    total = torch.zeros_like(plain)
    num_parts = []
    plan = paced_plan(dataset, step[None], COST, 0.0)
    for rank in (0, 1):
        (shares,) = paced_loader(dataset, plan, rank=rank)
        train_step(model, torch.optim.SGD(model.parameters(), lr=0.0), shares)
        total += gradient_of(model)
        num_parts.append(len(shares))
    assert min(num_parts) > 1
    torch.testing.assert_close(total / 2, plain, rtol=1e-9, atol=1e-12)


def test_each_rank_is_fed_its_part_of_whole_batches(dataset: TextDataset) -> None:
    batches = global_batches(dataset, num_ranks=2, seed=1)
    for rank in (0, 1):
        fed = [share for (share,) in whole_loader(dataset, batches, rank=rank)]
        for share, ids in zip(fed, batches[:, rank], strict=True):
            assert texts_of(share.batch) == [dataset[i].tolist() for i in ids]
            assert share.loss_weight == 1.0


def test_a_window_keeps_the_examples_of_its_steps(dataset: TextDataset) -> None:
    batches = global_batches(dataset, num_ranks=2, seed=1)
    plan = paced_plan(dataset, batches, COST, 0.5, window=2)
    moved = []
    for first in range(0, len(batches) - 1, 2):
        steps = [
            sorted(chain(*(plan.step_examples(step, rank).tolist() for rank in (0, 1))))
            for step in (first, first + 1)
        ]
        assert sorted(chain(*steps)) == sorted(batches[first : first + 2].ravel().tolist())
        moved.append(steps[0] != sorted(batches[first].ravel().tolist()))
    assert any(moved)
