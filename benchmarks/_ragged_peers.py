"""Batches of other systems for one rank of a ragged run, as installed packages make them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from _balance_peers import examples_of_cuts, length_cuts
from torch.utils.data import DistributedSampler, TensorDataset

PER_RANK = 16
# Step by step, the examples of each micro-batch of one rank and what their mean loss counts.
Steps = list[list[tuple[list[int], float]]]
StepsOfEpoch = Callable[[int], Steps]
PEERS = (
    "default",
    "group_by_length",
    "group_by_length_distributed",
    "batch_rebalance",
    "token_buckets",
)


def peer_steps(name: str, sizes: list[int], rank: int, num_ranks: int) -> StepsOfEpoch:
    """Return what a peer gives `rank` in an epoch, one micro-batch a step.

    - `default`: torch's DistributedSampler.
    - `group_by_length`: transformers' LengthGroupedSampler, its batches dealt to the ranks in
      turn, as Trainer does.
    - `group_by_length_distributed`: transformers' DistributedLengthGroupedSampler.
    - `batch_rebalance`: transformers' BatchRebalanceSampler.
    - `token_buckets`: lhotse's DynamicBucketingSampler; a batch holds as many tokens as the
      default's do on average.
    """
    if name == "token_buckets":
        return _token_buckets(sizes, rank, num_ranks)
    if name == "batch_rebalance":
        return _batch_rebalance(sizes, rank, num_ranks)
    if name == "group_by_length":
        return _group_by_length(sizes, rank, num_ranks)
    if name == "default":
        dataset = TensorDataset(torch.tensor(sizes))
        sampler: Any = DistributedSampler(dataset, num_ranks, rank, drop_last=True)
    else:
        sampler = _transformers().DistributedLengthGroupedSampler(
            PER_RANK, num_replicas=num_ranks, rank=rank, lengths=sizes
        )

    def steps(epoch: int) -> Steps:
        sampler.set_epoch(epoch)
        return [[(ids, 1.0)] for ids in _whole_batches(list(sampler))]

    return steps


def _group_by_length(sizes: list[int], rank: int, num_ranks: int) -> StepsOfEpoch:
    def steps(epoch: int) -> Steps:
        generator = torch.Generator().manual_seed(epoch)
        sampler = _transformers().LengthGroupedSampler(PER_RANK, lengths=sizes, generator=generator)
        batches = _whole_batches(list(sampler))
        whole = len(batches) - len(batches) % num_ranks
        return [[(ids, 1.0)] for ids in batches[rank:whole:num_ranks]]

    return steps


def _batch_rebalance(sizes: list[int], rank: int, num_ranks: int) -> StepsOfEpoch:
    sampler = _transformers().BatchRebalanceSampler(
        sizes, PER_RANK * num_ranks, dp_size=num_ranks, grad_accum=1, rank=rank
    )

    def steps(epoch: int) -> Steps:
        sampler.set_epoch(epoch)
        return [[(list(ids), len(ids) / PER_RANK)] for ids in sampler]

    return steps


def _token_buckets(sizes: list[int], rank: int, num_ranks: int) -> StepsOfEpoch:
    sampling, cuts = import_module("lhotse.dataset.sampling"), length_cuts(sizes)
    most = PER_RANK * sum(sizes) / len(sizes)

    def steps(epoch: int) -> Steps:
        sampler = sampling.DynamicBucketingSampler(
            cuts,
            max_duration=most,
            num_buckets=8,
            shuffle=True,
            seed=0,
            world_size=num_ranks,
            rank=rank,
        )
        sampler.set_epoch(epoch)
        return [[(ids, 1.0)] for ids in examples_of_cuts(sampler)]

    return steps


def _whole_batches(ids: list[int]) -> list[list[int]]:
    whole = len(ids) - len(ids) % PER_RANK
    return [ids[i : i + PER_RANK] for i in range(0, whole, PER_RANK)]


def _transformers() -> Any:
    return import_module("transformers.trainer_pt_utils")
