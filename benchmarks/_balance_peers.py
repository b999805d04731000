"""Other systems that choose which worker gets which example, as installed packages.

Each entry of `PEERS` imports its package and returns a `Prepare`: given what a user has at
hand (sizes, costs, number of workers), it returns a function that plans one epoch for one
rank, which is what every rank pays in each epoch. A package that is not there raises
`ImportError`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.balance import EpochPlan
from paceline.cost import Worker

BATCH_SIZE = 256
LINEAR, QUADRATIC = 6144, 1

Batches = Sequence[Sequence[int] | NDArray[np.int64]] | NDArray[np.int64]
# (epoch, rank) -> the batches of that rank, step after step.
PlanRank = Callable[[int, int], Batches]
Prepare = Callable[[NDArray[np.int64], NDArray[np.float64], int], PlanRank]


@dataclass(frozen=True)
class Peer:
    """One way of another system.

    Attributes:
        package: What to install.
        load: Imports it and returns the way.
        counts: `"equal"` or `"free"` examples per worker and step.
        most_workers: For more, only its time is taken, not its quality, which needs the
            plans of all ranks.
        note: What to know when its numbers are read.
    """

    package: str
    load: Callable[[], Prepare]
    counts: str = "equal"
    most_workers: int = 64
    note: str = ""


def _torch_random() -> Prepare:
    sampler_type = import_module("torch.utils.data").DistributedSampler

    def prepare(sizes: NDArray[np.int64], costs: NDArray[np.float64], workers: int) -> PlanRank:
        dataset = range(len(sizes))

        def plan(epoch: int, rank: int) -> Batches:
            sampler = sampler_type(dataset, num_replicas=workers, rank=rank)
            sampler.set_epoch(epoch)
            return _in_batches(list(sampler), workers)

        return plan

    return prepare


def _group_by_length() -> Prepare:
    module, torch = import_module("transformers.trainer_pt_utils"), import_module("torch")

    def prepare(sizes: NDArray[np.int64], costs: NDArray[np.float64], workers: int) -> PlanRank:
        lengths, per_worker = sizes.tolist(), BATCH_SIZE // workers

        def plan(epoch: int, rank: int) -> Batches:
            generator = torch.Generator().manual_seed(epoch)
            sampler = module.LengthGroupedSampler(per_worker, lengths=lengths, generator=generator)
            # Accelerate deals whole batches to the ranks in turn.
            return np.array(list(sampler)).reshape(-1, workers, per_worker)[:, rank]

        return plan

    return prepare


def _group_by_length_distributed() -> Prepare:
    module = import_module("transformers.trainer_pt_utils")

    def prepare(sizes: NDArray[np.int64], costs: NDArray[np.float64], workers: int) -> PlanRank:
        lengths, per_worker = sizes.tolist(), BATCH_SIZE // workers

        def plan(epoch: int, rank: int) -> Batches:
            sampler = module.DistributedLengthGroupedSampler(
                per_worker, num_replicas=workers, rank=rank, lengths=lengths
            )
            sampler.set_epoch(epoch)
            return _in_batches(list(sampler), workers)

        return plan

    return prepare


def _batch_rebalance(quadratic_share: float | None = None) -> Prepare:
    module = import_module("transformers.trainer_pt_utils")

    def prepare(sizes: NDArray[np.int64], costs: NDArray[np.float64], workers: int) -> PlanRank:
        lengths = sizes.tolist()

        def plan(epoch: int, rank: int) -> Batches:
            sampler = module.BatchRebalanceSampler(
                lengths, BATCH_SIZE, dp_size=workers, grad_accum=1, rank=rank
            )
            if quadratic_share is not None:
                sampler.QUADRATIC_COST_COEF = quadratic_share
            sampler.set_epoch(epoch)
            return list(sampler)

        return plan

    return prepare


def _verl_karmarkar_karp() -> Prepare:
    split = import_module("verl.utils.seqlen_balancing").get_seqlen_balanced_partitions

    def prepare(sizes: NDArray[np.int64], costs: NDArray[np.float64], workers: int) -> PlanRank:
        def plan(epoch: int, rank: int) -> Batches:
            steps = _shuffled(len(sizes), epoch).reshape(-1, BATCH_SIZE)
            return [
                step[split(costs[step].astype(np.int64).tolist(), workers, equal_size=True)[rank]]
                for step in steps
            ]

        return plan

    return prepare


def _flatflow(scheduler: str, policy: str) -> Prepare:
    schedule = getattr(import_module("flatflow.ffi"), scheduler)
    graph = _flatflow_graph()

    def prepare(sizes: NDArray[np.int64], costs: NDArray[np.float64], workers: int) -> PlanRank:
        per_worker = BATCH_SIZE // workers

        def plan(epoch: int, rank: int) -> Batches:
            order = _shuffled(len(sizes), epoch)
            index = np.arange(len(sizes), dtype=np.uintp)
            shape = (1, 1, workers, rank, BATCH_SIZE, per_worker, policy)
            places = schedule(index, sizes[order], graph, *shape)
            return order[np.asarray(places, dtype=np.int64)].reshape(-1, per_worker)

        return plan

    return prepare


@cache
def _flatflow_graph() -> bytes:
    """Return flatflow's picture of a model that costs 6144 n + n² multiples of 4096 FLOPs."""
    torch, dim = import_module("torch"), LINEAR // 6

    class Block(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(dim, 12 * dim, device="meta"))

        def forward(self, tokens: Any) -> Any:
            query = tokens.unsqueeze(0)
            scores = torch.bmm(query, query.transpose(1, 2))
            return torch.mm(tokens, self.weight), torch.bmm(scores, query)

    length = torch.export.Dim("length", min=2, max=1_000_000)
    tokens = torch.empty(128, dim, device="meta")
    program = torch.export.export(Block(), (tokens,), dynamic_shapes=({0: length},))
    return bytes(import_module("flatflow.ops").serialize(program.graph))


def _stripes() -> Prepare:
    module = import_module("onnxruntime.training.utils.data")

    def cost(size: int) -> int:
        return LINEAR * size + QUADRATIC * size * size

    def prepare(sizes: NDArray[np.int64], costs: NDArray[np.float64], workers: int) -> PlanRank:
        dataset = sizes.tolist()

        def plan(epoch: int, rank: int) -> Batches:
            # One sampler serves one epoch: iterating it again raises in release 1.19.2.
            sampler = module.LoadBalancingDistributedSampler(
                dataset, complexity_fn=cost, world_size=workers, rank=rank
            )
            sampler.set_epoch(epoch)
            return _in_batches(list(sampler), workers)

        return plan

    return prepare


def _dynamic_buckets() -> Prepare:
    sampling = import_module("lhotse.dataset.sampling")

    def prepare(sizes: NDArray[np.int64], costs: NDArray[np.float64], workers: int) -> PlanRank:
        cuts = length_cuts(sizes)
        # Its batches are limited by max duration instead of a number of examples, with the same
        # cost model; this limit makes a step of all workers cost what 256 examples cost.
        most = float(costs.mean()) * BATCH_SIZE / workers / LINEAR

        def plan(epoch: int, rank: int) -> Batches:
            sampler = sampling.DynamicBucketingSampler(
                cuts,
                max_duration=most,
                quadratic_duration=LINEAR / QUADRATIC,
                num_buckets=30,
                shuffle=True,
                seed=0,
                world_size=workers,
                rank=rank,
            )
            sampler.set_epoch(epoch)
            return examples_of_cuts(sampler)

        return plan

    return prepare


def as_plan(ranks: list[Batches], costs: NDArray[np.float64], *, padded: bool) -> EpochPlan:
    """Turn the batches of all ranks into a plan, so that one ruler measures all."""
    num_steps = min(map(len, ranks))
    batches = [
        np.asarray(ranks[rank][step]) for step in range(num_steps) for rank in range(len(ranks))
    ]
    examples, counts = np.concatenate(batches), np.array([len(batch) for batch in batches])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    is_repeat = np.ones(len(examples), dtype=bool)
    is_repeat[np.unique(examples, return_index=True)[1]] = False
    slot_costs = costs[examples]
    if padded:
        load = np.maximum.reduceat(slot_costs, offsets[:-1]) * counts
    else:
        load = np.add.reduceat(slot_costs, offsets[:-1])
    return EpochPlan(
        num_workers=len(ranks),
        examples=examples,
        is_repeat=is_repeat,
        weighs_repeats=True,
        micro_offsets=offsets,
        worker_offsets=np.arange(num_steps * len(ranks) + 1),
        load=load.reshape(num_steps, len(ranks)),
        workers=(Worker(),) * len(ranks),
    )


def length_cuts(sizes: Iterable[float]) -> Any:
    """Return lhotse's picture of examples: cuts that last as long as an example is."""
    lhotse = import_module("lhotse")
    return lhotse.CutSet.from_cuts(
        lhotse.MonoCut(id=str(index), start=0, duration=float(size), channel=0)
        for index, size in enumerate(sizes)
    ).to_eager()


def examples_of_cuts(batches: Iterable[Any]) -> list[list[int]]:
    """Return the examples of lhotse's batches.

    It repeats cuts under another name until all ranks have equally many batches.
    """
    return [[int(cut.id.partition("_dup")[0]) for cut in batch] for batch in batches]


def _shuffled(num_examples: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([0, epoch]).permutation(num_examples)


def _in_batches(indices: list[int], workers: int) -> NDArray[np.int64]:
    return np.array(indices, dtype=np.int64).reshape(-1, BATCH_SIZE // workers)


PEERS = {
    "torch DistributedSampler (random)": Peer("torch", _torch_random),
    "transformers group_by_length": Peer(
        "transformers",
        _group_by_length,
        note="LengthGroupedSampler, batches dealt to the ranks in turn, as Trainer does",
    ),
    "transformers DistributedLengthGroupedSampler": Peer(
        "transformers", _group_by_length_distributed
    ),
    "transformers batch_rebalance": Peer("transformers", _batch_rebalance, counts="free"),
    "transformers batch_rebalance, matched cost": Peer(
        "transformers",
        lambda: _batch_rebalance(QUADRATIC / LINEAR),
        counts="free",
        note="its fixed QUADRATIC_COST_COEF replaced by 1/6144, which users cannot configure",
    ),
    "verl Karmarkar-Karp": Peer("verl", _verl_karmarkar_karp),
    "flatflow stable": Peer("flatflow", lambda: _flatflow("sched", "joint")),
    "flatflow stable, fast": Peer("flatflow", lambda: _flatflow("sched", "fast")),
    "flatflow unstable": Peer("flatflow", lambda: _flatflow("sched_unstable", "joint")),
    "onnxruntime LoadBalancingDistributedSampler": Peer("onnxruntime-training", _stripes),
    "lhotse DynamicBucketingSampler": Peer(
        "lhotse",
        _dynamic_buckets,
        counts="free",
        most_workers=8,
        note="no fixed global batch: batches are cut by padded cost, so steps hold fewer or "
        "more than 256 examples; the limit is what 256 examples cost on average; "
        "each rank plans for all, so the quality is taken for 8 workers only",
    ),
}
