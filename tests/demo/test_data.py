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
    paced_split,
    padded_batch,
    plain_loader,
    plain_sampler,
)
from paceline.demo._model import CONTEXT_BYTES, ByteTransformer, example_losses
from paceline.demo._train import Way

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
    for step in global_batches(dataset, num_ranks=num_ranks, seed=0):
        split = paced_split(dataset, step, cost)
        parts = [split.examples_of(rank).tolist() for rank in range(num_ranks)]
        assert all(parts)
        assert sorted(chain(*parts)) == list(range(step.size))
        padded_s = np.asarray(cost(dataset.sizes[step.ravel()].astype(float)))
        loads = [len(part) * padded_s[part].max() for part in parts]
        assert split.load == pytest.approx(loads)


def test_the_paced_way_is_never_dearer_for_its_slowest_rank(dataset: TextDataset) -> None:
    for step in global_batches(dataset, num_ranks=2, seed=0):
        plain = COST(dataset.sizes[step].astype(float)).max(axis=1) * EXAMPLES_PER_RANK
        assert paced_split(dataset, step, COST).load.max() <= plain.max() * (1 + 1e-12)


def texts_of(batch: Batch) -> list[list[int]]:
    return [text[:n].tolist() for text, n in zip(batch.text, batch.lengths, strict=True)]


def test_both_ways_see_the_same_examples_in_every_step(dataset: TextDataset) -> None:
    batches = global_batches(dataset, num_ranks=2, seed=5)
    plain = [plain_loader(dataset, rank=rank, num_ranks=2, seed=5) for rank in (0, 1)]
    paced = [paced_loader(dataset, batches, rank=rank, cost=COST) for rank in (0, 1)]
    for step in batches:
        expected = sorted(dataset[i].tolist() for i in step.ravel())
        assert sorted(texts_of(next(plain[0])) + texts_of(next(plain[1]))) == expected
        assert sorted(texts_of(next(paced[0])) + texts_of(next(paced[1]))) == expected
    assert [next(loader, None) for loader in paced] == [None, None]


def test_each_rank_is_fed_what_the_split_priced(dataset: TextDataset) -> None:
    cost = LinearCost()
    batches = global_batches(dataset, num_ranks=2, seed=0)
    for rank in (0, 1):
        positions = [
            batch.text.numel() for batch in paced_loader(dataset, batches, rank=rank, cost=cost)
        ]
        assert positions == [paced_split(dataset, step, cost).load[rank] for step in batches]


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
    counts = []
    for rank in (0, 1):
        (batch,) = paced_loader(dataset, step[None], rank=rank, cost=COST)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        Way("paced", model, optimizer, iter(()), [])._step(batch)
        total += gradient_of(model)
        counts.append(len(batch.lengths))
    assert counts[0] != counts[1]
    torch.testing.assert_close(total / 2, plain, rtol=1e-9, atol=1e-12)
