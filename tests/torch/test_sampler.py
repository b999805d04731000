import copy
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.data import BatchSampler, DistributedSampler, Sampler, TensorDataset
from torch.utils.data import DataLoader as TorchDataLoader

from paceline.balance import BalanceConfig, Limits, Shards, plan_epoch
from paceline.cost import QuadraticCost, Worker
from paceline.errors import StateMismatchError
from paceline.timeline import Kind, Source, Timeline
from paceline.torch import (
    BalancedBatchSampler,
    BalancedSampler,
    Replica,
    example_sizes,
    gather_timeline,
    measure_job,
    measure_link,
    watch,
)
from paceline.torch.ranks import Group, process_group_of, replica_of

SIZES = np.random.default_rng(0).integers(1, 40, 30)
TEXTS = ["a" * length for length in SIZES]
SHORT = {"batch_size", "counts", "shuffle", "seed", "drop_last"}
WORLD = {"RANK": "2", "WORLD_SIZE": "4"}


def with_config(options: dict[str, Any]) -> dict[str, Any]:
    """Put what only a `BalanceConfig` takes, and all else of it, into one."""
    names = {field.name for field in fields(BalanceConfig)}
    policy = {name: value for name, value in options.items() if name in names}
    if policy.keys() <= SHORT or "config" in options:
        return options
    rest = {name: value for name, value in options.items() if name not in names}
    return {**rest, "config": BalanceConfig(**policy)}


def samplers(num_replicas: int = 2, **options: Any) -> list[BalancedBatchSampler]:
    options = with_config({"sizes": SIZES, "batch_size": 8, **options})
    replicas = [Replica(rank=rank, num_replicas=num_replicas) for rank in range(num_replicas)]
    return [BalancedBatchSampler(process_group=one, **options) for one in replicas]


def sampler(**options: Any) -> BalancedBatchSampler:
    return samplers(1, **options)[0]


def flat(batches: list[list[int]]) -> list[int]:
    return [example for batch in batches for example in batch]


@pytest.fixture
def single_group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("tail", ["drop", "wrap", "pad", "zero-weight"])
@pytest.mark.parametrize("counts", ["equal", "free"])
def test_ranks_share_each_epoch(tail: Any, counts: Any) -> None:
    parts = [list(s) for s in samplers(tail=tail, counts=counts)]
    assert len({len(part) for part in parts}) == 1
    times = Counter(flat(parts[0]) + flat(parts[1]))
    if tail in ("drop", "zero-weight"):
        assert set(times.values()) == {1}
    assert len(times) == (24 if tail == "drop" else 30)
    assert sum(times.values()) == {"drop": 24, "zero-weight": 30}.get(tail, 32)


def test_length_is_the_number_of_micro_batches() -> None:
    one = sampler(num_microbatches=2, limits=Limits(max_examples=3))
    assert len(one) == len(list(one)) == 12


def test_it_is_a_sampler_of_lists_of_plain_integers() -> None:
    one = sampler()
    assert isinstance(one, Sampler)
    assert {type(example) for example in flat(list(one))} == {int}


def test_settings_reach_the_plan() -> None:
    one = sampler(
        cost=QuadraticCost(1.0, 2.0),
        counts="free",
        padded=True,
        window=3,
        longest_first=True,
        seed=5,
        workers=(Worker(speed=2.0),),
        example_bytes=SIZES * 2.0,
        limits=Limits(max_bytes=1e4),
    )
    config = one.planner.config
    assert (config.counts, config.padded, config.window, config.seed) == ("free", True, 3, 5)
    assert config.longest_first
    assert one.planner.costs.tolist() == (SIZES + 2.0 * SIZES**2).tolist()
    assert one.plan.workers == one.workers == (Worker(speed=2.0),)


def test_a_limit_on_tokens_holds() -> None:
    one = sampler(limits=Limits(max_tokens=50))
    assert max(SIZES[batch].sum() for batch in one) <= 50
    with pytest.raises(ValueError, match="max_tokens is 30, but the size of example"):
        next(iter(sampler(limits=Limits(max_tokens=30))))


def test_partitioned_data_stay_where_they_can_be_read() -> None:
    shards = Shards(np.arange(30) % 2, readers=((0,), (1,)))
    ranks = samplers(counts="free", tail="drop", shards=shards)
    for rank, one in enumerate(ranks):
        assert {example % 2 for example in flat(list(one))} == {rank}
        one.set_epoch(0)
    other = samplers(counts="free", tail="drop")[0]
    with pytest.raises(StateMismatchError, match="other sizes, shards or cost model"):
        other.load_state_dict(ranks[0].state_dict())


def test_drop_last_is_short_for_a_tail() -> None:
    assert sampler(drop_last=True).planner.config.tail == "drop"
    assert sampler().planner.config.tail == "zero-weight"
    assert sampler(tail="pad").planner.config.tail == "pad"


def test_keywords_and_a_config_say_the_same() -> None:
    config = BalanceConfig(batch_size=8, counts="free", tail="drop", shuffle=False, seed=3)
    place = Replica(rank=1, num_replicas=2)
    whole = BalancedBatchSampler(SIZES, config, process_group=place)
    short = samplers(counts="free", drop_last=True, shuffle=False, seed=3)[1]
    assert whole.planner.config == short.planner.config
    assert (whole.num_replicas, whole.rank) == (2, 1)
    assert list(whole) == list(short)


@pytest.mark.parametrize("kind", [BalancedBatchSampler, BalancedSampler])
@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (None, {}, "needs the examples per step over all ranks, got none; pass batch_size="),
        (BalanceConfig(batch_size=8), {"seed": 0}, "got one and seed=0; set it in the config"),
        (BalanceConfig(batch_size=8), {"drop_last": False}, "got one and drop_last=False"),
        (BalanceConfig(batch_size=8, num_workers=2), {}, "is for 2 workers, and there are 1"),
        (32, {}, "config must be a BalanceConfig, got 32; pass batch_size=32"),
    ],
)
def test_a_config_and_keywords_are_not_mixed(
    kind: Any, config: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(SIZES, config, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9}, "num_workers"),
        ({"workers": (Worker(),)}, "workers must hold 2 entries, got 1"),
        ({"sizes": [1.0, -1.0]}, r"sizes\[1\] is -1"),
        ({"sizes": [1.0, float("nan")]}, r"sizes\[1\] is nan"),
        ({"sizes": [1e200], "cost": QuadraticCost(1.0, 1.0)}, "costs must be finite"),
        ({"sizes": [[1.0, 2.0]]}, "sizes must be one-dimensional"),
        ({"example_bytes": [1.0]}, "example_bytes must have 30 entries like costs, got 1"),
        ({"batch_size": 8.0}, "batch_size must be a whole number, got 8.0; pass 8"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"num_microbatches": 2.0}, "num_microbatches must be a whole number, got 2.0; pass 2"),
        ({"window": "epoch"}, "window must be a whole number, got 'epoch'; for the whole epoch"),
        ({"cost": "quadratic"}, "cost must turn sizes into costs, such as .*, got 'quadratic'"),
        ({"sizes": TEXTS}, "sizes must be one number per example, got a list; measure a dataset"),
        ({"sizes": TensorDataset(torch.zeros(3))}, "got a TensorDataset; measure a dataset with"),
        ({"sizes": BalanceConfig(batch_size=8)}, "sizes come first and the config or batch_size="),
        ({"loss_terms": [1.0]}, "loss_terms must have 30 entries like sizes, got 1"),
        ({"loss_terms": SIZES * 0}, r"loss_terms must be positive, but loss_terms\[0\] is 0"),
        (
            {"loss_terms": SIZES, "order": "pair-balance"},
            "order='pair-balance' learns from losses that are means over examples",
        ),
    ],
)
def test_bad_values_are_refused_at_once(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        samplers(2, **options)


@pytest.mark.parametrize(
    ("sizes", "message"), [([], "no example"), ([1.0], "fewer than 2 workers")]
)
def test_too_few_examples_are_refused_before_the_first_batch(sizes: Any, message: str) -> None:
    for one in samplers(2, sizes=sizes):
        with pytest.raises(ValueError, match=message):
            next(iter(one))
        with pytest.raises(ValueError, match=message):
            len(one)


def test_epochs_differ_and_can_be_chosen() -> None:
    one, other = sampler(), sampler()
    first = list(one)
    one.set_epoch(1)
    second = list(one)
    other.set_epoch(1)
    assert list(other) == second != first
    one.set_epoch(0)
    assert list(one) == first
    with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
        one.set_epoch(-1)


def test_a_forgotten_epoch_advances_and_warns_once() -> None:
    one, told = sampler(), sampler()
    list(one)
    with pytest.warns(UserWarning, match="set_epoch was not called before epoch 1"):
        second = list(one)
    third = list(one)
    for epoch, batches in ((1, second), (2, third)):
        told.set_epoch(epoch)
        assert list(told) == batches


def test_a_broken_off_epoch_is_followed_by_the_next() -> None:
    one = sampler(shuffle=False)
    next(iter(one))
    next(iter(one))
    assert one.epoch == 1
    one.set_epoch(1)
    assert len(list(one)) == 4


@pytest.mark.parametrize("num_epochs", [0, 1])
def test_an_iterator_belongs_to_the_epoch_that_is_set_when_it_begins(num_epochs: int) -> None:
    one, told = sampler(), sampler()
    for _ in range(num_epochs):
        list(one)
    batches = iter(one)
    one.set_epoch(2)
    told.set_epoch(2)
    assert list(batches) == list(told)
    assert one.epoch == 3
    chunks, other = balanced()[0], balanced()[0]
    examples = iter(chunks)
    chunks.set_epoch(2)
    other.set_epoch(2)
    assert list(examples) == list(other)


def test_an_iterator_that_was_never_used_does_not_advance_the_epoch() -> None:
    one = sampler()
    assert list(iter(one)) == list(iter(sampler()))
    one.set_epoch(1)
    iter(one)
    iter(one)
    assert one.epoch == 1


def test_setting_the_running_epoch_starts_it_over() -> None:
    one = sampler()
    first = next(iter(one))
    one.set_epoch(0)
    assert next(iter(one)) == first


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_restoring_at_every_step_gives_the_rest(num_microbatches: int) -> None:
    one = sampler(num_microbatches=num_microbatches)
    straight, states = [], [one.state_dict()]
    for number, batch in enumerate(one):
        straight.append(batch)
        if number % num_microbatches == num_microbatches - 1:
            states.append(one.state_dict())
    for step, state in enumerate(states):
        fresh = sampler(num_microbatches=num_microbatches)
        fresh.load_state_dict(json.loads(json.dumps(state)))
        assert fresh.state_dict() == state
        is_last = step == len(states) - 1
        assert fresh.epoch == is_last
        fresh.set_epoch(fresh.epoch)
        assert len(fresh) == len(straight)
        assert is_last or list(fresh) == straight[step * num_microbatches :]


def test_a_state_inside_a_step_is_that_of_its_start() -> None:
    one = sampler(num_microbatches=2)
    batches = iter(one)
    first = next(batches)
    assert one.state_dict() == batches.state_dict() == sampler(num_microbatches=2).state_dict()
    fresh = sampler(num_microbatches=2)
    fresh.load_state_dict(one.state_dict())
    assert next(iter(fresh)) == first


def test_the_state_after_an_epoch_is_the_start_of_the_next() -> None:
    one, fresh = sampler(), sampler()
    batches = iter(one)
    list(batches)
    assert one.state_dict() == batches.state_dict()
    assert one.state_dict()["epoch"] == 1
    fresh.load_state_dict(one.state_dict())
    one.set_epoch(1)
    assert list(fresh) == list(one)


def test_another_epoch_drops_a_restored_position() -> None:
    one, fresh = sampler(), sampler()
    first = next(iter(one))
    fresh.load_state_dict(one.state_dict())
    assert first not in list(fresh)
    fresh.set_epoch(1)
    assert len(list(fresh)) == 4


def test_all_steps_delivered_is_the_end_of_the_epoch() -> None:
    one = samplers(counts="free")[0]
    load, iterator = one.plan.load, iter(one)
    batches = [next(iterator) for _ in range(len(one))]
    assert one.state_dict()["epoch"] == one.epoch == 1
    one.refit(timeline(load * [1.0, 3.0]))
    assert one.workers[0].speed > one.workers[1].speed
    assert batches == list(samplers(counts="free")[0])


def test_the_length_is_that_of_the_whole_epoch_whoever_delivered_it() -> None:
    state, num_delivered = None, 0
    for num_replicas, num_steps in ((2, 1), (4, 1), (1, 2)):
        one = samplers(num_replicas, num_microbatches=2, batch_size=8)[0]
        if state is not None:
            one.load_state_dict(state)
        assert len(one) == 8
        num_delivered += len([batch for _, batch in zip(range(2 * num_steps), one, strict=False)])
        state = one.state_dict()
    assert num_delivered == 8


def test_other_numbers_of_ranks_take_over_without_loss() -> None:
    received: list[int] = []
    state = None
    for num_replicas, num_steps in ((2, 1), (4, 1), (1, 9)):
        ranks = samplers(num_replicas)
        for one in ranks:
            if state is not None:
                one.load_state_dict(state)
            batches = list(zip(range(num_steps), one, strict=False))
            received += flat([batch for _, batch in batches])
        states = [one.state_dict() for one in ranks]
        assert all(one == states[0] for one in states)
        state = states[0]
    assert sorted(received) == list(range(30))


def test_a_state_of_another_run_is_refused() -> None:
    state = sampler().state_dict()
    with pytest.raises(StateMismatchError, match="batch_size was 8 and is 16"):
        sampler(batch_size=16).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="other sizes, shards or cost model"):
        sampler(sizes=SIZES + 1).load_state_dict(state)


def test_an_iterator_keeps_a_state_of_its_own() -> None:
    one = sampler()
    batches = iter(one)
    next(batches)
    state = batches.state_dict()
    second = next(batches)
    fresh = sampler()
    iterator = iter(fresh)
    iterator.load_state_dict(state)
    assert next(iterator) == second
    assert fresh.state_dict() == batches.state_dict()


def test_an_old_iterator_does_not_move_the_position() -> None:
    one = sampler()
    old = iter(one)
    new = iter(one)
    assert next(old) == next(new)
    state = one.state_dict()
    next(old)
    assert one.state_dict() == state
    assert one.newest_pass is new


def test_it_can_be_pickled_and_copied_while_it_runs() -> None:
    one = sampler()
    batches = iter(one)
    next(batches)
    for twin in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert twin.state_dict() == one.state_dict()
        assert list(twin) == list(sampler())[1:]


def test_the_next_epoch_is_planned_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    one = sampler()
    planned: list[int] = []
    monkeypatch.setattr(one.planner, "plan_ahead", lambda cursor: planned.append(cursor.epoch))
    batches = iter(one)
    assert planned == []
    next(batches)
    next(batches)
    assert planned == [1]


def timeline(
    seconds: np.ndarray[Any, Any], source: Source = "measured", first_rank: int = 0
) -> Timeline:
    """Return spans that last `seconds[step, rank]`, each followed by a wait."""
    steps, ranks = np.indices(seconds.shape)
    busy = Timeline.from_columns(
        source,
        rank=ranks.ravel() + first_rank,
        step=steps.ravel(),
        start_s=np.zeros(seconds.size),
        duration_s=seconds.ravel(),
        kind=Kind.FORWARD,
    )
    waits = Timeline.from_columns(
        source, start_s=[0.0, 0.0], duration_s=[99.0, 99.0], kind=[Kind.COLLECTIVE, Kind.DATA]
    )
    return Timeline.merge([busy, waits])


def refitted(one: BalancedBatchSampler, num_extra: int = 0) -> BalancedBatchSampler:
    """Run an epoch in which rank 1 takes three times as long, and refit."""
    plan = one.plan
    list(one)
    seconds = np.concatenate([np.full((num_extra, 2), 9.0), plan.load * [1.0, 3.0]])
    one.refit(timeline(seconds))
    return one


@pytest.mark.parametrize("num_extra", [0, 2])
def test_a_refit_shifts_work_from_a_slow_rank(num_extra: int) -> None:
    one, other = (refitted(s, num_extra) for s in samplers(counts="free"))
    assert one.workers == other.workers
    assert one.workers[0].speed / one.workers[1].speed == pytest.approx(3.0)
    share = one.plan.load.sum(axis=0) / SIZES.sum()
    assert share == pytest.approx([0.75, 0.25], abs=0.05)
    assert one.epoch == 1
    one.set_epoch(2)
    assert one.plan.workers == other.workers
    assert sorted(flat(list(one)) + flat(list(set_to(other, 2)))) == list(range(30))


def set_to(one: BalancedBatchSampler, epoch: int) -> BalancedBatchSampler:
    one.set_epoch(epoch)
    return one


def test_refitted_speeds_are_saved() -> None:
    one = refitted(samplers(counts="free")[0])
    fresh = samplers(counts="free")[1]
    fresh.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert fresh.plan.load.tolist() == one.plan.load.tolist()


def test_a_refit_needs_an_ended_epoch_and_its_whole_timeline() -> None:
    one = samplers()[0]
    seconds = np.ones((4, 2))
    with pytest.raises(ValueError, match="epoch 0 has nothing before it"):
        one.refit(timeline(seconds))
    list(one)
    for bad, message in (
        (timeline(seconds, "simulated"), "needs a measured timeline, got a simulated one"),
        (timeline(seconds, first_rank=1), r"ranks 0 to 1, got those of \[0, 1, 2\]"),
        (timeline(seconds[:3]), "holds 3 of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            one.refit(bad)
    one.set_epoch(1)
    next(iter(one))
    with pytest.raises(ValueError, match="epoch 1 is under way"):
        one.refit(timeline(seconds))


def test_an_epoch_that_is_too_short_to_judge_leaves_the_speeds() -> None:
    one, fresh = samplers()
    next(iter(one))
    fresh.load_state_dict(one.state_dict())
    list(fresh)
    fresh.refit(timeline(np.ones((3, 2))))
    assert fresh.workers == (Worker(), Worker())


@pytest.mark.parametrize(
    ("environment", "num_replicas", "rank", "expected"),
    [
        ({}, None, None, (1, 0)),
        (WORLD, None, None, (4, 2)),
        (WORLD, 3, None, (3, 2)),
        (WORLD, None, 1, (4, 1)),
        (WORLD, 8, 7, (8, 7)),
        ({"RANK": "2"}, None, None, (1, 0)),
        ({"WORLD_SIZE": "1"}, None, None, (1, 0)),
        ({"WORLD_SIZE": "4"}, 1, None, (1, 0)),
    ],
)
def test_arguments_come_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    num_replicas: int | None,
    rank: int | None,
    expected: tuple[int, int],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert astuple(replica_of(num_replicas=num_replicas, rank=rank)) == expected[::-1]


def test_the_environment_comes_before_the_process_group(
    monkeypatch: pytest.MonkeyPatch, single_group: dist.ProcessGroup
) -> None:
    assert replica_of() == Replica(rank=0, num_replicas=1)
    assert process_group_of(None, 1) is single_group
    assert process_group_of(None, 2) is None
    for name, value in WORLD.items():
        monkeypatch.setenv(name, value)
    assert replica_of() == Replica(rank=2, num_replicas=4)
    assert replica_of(single_group) == Replica(rank=0, num_replicas=1)
    assert process_group_of(single_group, 1) is single_group


def test_a_device_mesh_of_one_axis_is_a_group(single_group: dist.ProcessGroup) -> None:
    mesh: DeviceMesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    assert replica_of(mesh["dp"]) == Replica(rank=0, num_replicas=1)
    group = process_group_of(mesh["dp"], 1)
    assert group is not None
    assert dist.get_world_size(group) == 1
    with pytest.raises(ValueError, match=r"got 2 axes \('dp', 'tp'\); pass the data-parallel one"):
        replica_of(mesh)


def test_one_axis_of_a_mesh_will_do_wherever_a_process_group_does(
    single_group: dist.ProcessGroup,
) -> None:
    mesh: DeviceMesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    batches = BalancedBatchSampler(SIZES, batch_size=8, process_group=mesh["dp"])
    assert (batches.num_replicas, batches.rank) == (1, 0)
    assert batches.process_group is not None
    assert measure_link(mesh["dp"]).alpha_s >= 0
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with watch(model, optimizer, process_group=mesh["dp"]) as run:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    gathered = gather_timeline(run.timeline(), mesh["dp"])
    assert gathered.rank.tolist() == run.timeline().rank.tolist()
    job = measure_job(model, torch.ones(1, 2), num_steps=4, process_group=mesh["dp"])
    assert len(job.workers) == 1
    with pytest.raises(ValueError, match="process_group must be one axis"):
        measure_link(mesh)


@pytest.mark.parametrize(
    ("num_replicas", "rank", "message"),
    [
        (4, None, "num_replicas=4 and rank=None do not say which"),
        (None, 1, "num_replicas=None and rank=1 do not say which"),
        (2, 2, r"got rank 2 of 2"),
        (0, 0, r"got rank 0 of 0"),
    ],
)
def test_a_rank_that_is_not_known_is_refused(
    num_replicas: int | None, rank: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replica_of(num_replicas=num_replicas, rank=rank)


def test_a_world_of_several_ranks_needs_to_know_which_this_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    message = "WORLD_SIZE is 2, but neither RANK nor a process group says which rank this is"
    with pytest.raises(ValueError, match=message):
        BalancedBatchSampler(SIZES, batch_size=8)
    with pytest.raises(ValueError, match=message):
        BalancedSampler(SIZES, batch_size=8)


def test_a_group_and_numbers_together_are_refused(single_group: Group) -> None:
    with pytest.raises(ValueError, match="either process_group, or num_replicas and rank"):
        replica_of(single_group, num_replicas=2, rank=0)


def balanced(num_replicas: int = 2, **options: Any) -> list[BalancedSampler]:
    options = {"sizes": SIZES, "batch_size": 8, **options}
    return [
        BalancedSampler(num_replicas=num_replicas, rank=rank, **options)
        for rank in range(num_replicas)
    ]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_examples", [4, 7, 24, 30, 31])
def test_a_balanced_sampler_gives_as_many_examples_as_torchs(
    num_examples: int, drop_last: bool
) -> None:
    ranks = balanced(4, sizes=SIZES[:num_examples].repeat(2)[:num_examples], drop_last=drop_last)
    theirs = DistributedSampler(range(num_examples), 4, 0, drop_last=drop_last)
    examples = [list(one) for one in ranks]
    assert {len(part) for part in examples} == {len(theirs)} == {len(one) for one in ranks}
    times = Counter(flat(examples))
    assert sum(times.values()) - len(times) < 4
    assert len(times) == (num_examples // 4 * 4 if drop_last else num_examples)


def test_chunks_of_a_balanced_sampler_are_even_global_batches() -> None:
    parts = [list(BatchSampler(one, 4, drop_last=False)) for one in balanced()]
    loads = np.array([[SIZES[chunk].sum() for chunk in part] for part in parts])
    assert loads.shape == (2, 4)
    assert (loads.max(axis=0) / loads.mean(axis=0)).max() < 1.05
    assert [len(set(a + b)) for a, b in zip(*parts, strict=True)] == [8, 8, 8, 6]


def test_a_balanced_sampler_keeps_the_habits_of_torchs() -> None:
    one, other = balanced()[0], balanced()[0]
    first = list(one)
    with pytest.warns(UserWarning, match="set_epoch was not called before epoch 1"):
        second = list(one)
    other.set_epoch(1)
    assert list(other) == second != first
    third = list(one)
    other.set_epoch(2)
    assert list(other) == third
    assert isinstance(one, DistributedSampler)


def test_an_order_without_shuffling_needs_no_epoch() -> None:
    one = balanced(shuffle=False)[0]
    assert list(one) == list(one)


def test_a_balanced_sampler_refuses_too_few_examples() -> None:
    with pytest.raises(ValueError, match="3 examples are fewer than 4 replicas"):
        balanced(4, sizes=[1, 2, 3])


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("counts", "free", "counts='equal', got 'free'"),
        ("num_microbatches", 2, "num_microbatches=1, got 2"),
        ("limits", Limits(max_cost=9.0), "limits=Limits"),
        ("longest_first", True, "longest_first=False, got True"),
        ("tail", "zero-weight", "tail='pad', got 'zero-weight'"),
    ],
)
def test_a_balanced_sampler_refuses_what_needs_weights(name: str, value: Any, needed: str) -> None:
    config = BalanceConfig(batch_size=8, **{"tail": "pad", name: value})
    with pytest.raises(ValueError, match=f"BalancedSampler needs {needed}"):
        BalancedSampler(SIZES, config)


def test_a_balanced_sampler_takes_a_config() -> None:
    config = BalanceConfig(batch_size=8, padded=True, window=2, tail="drop", seed=4)
    ranks = [BalancedSampler(SIZES, config, num_replicas=2, rank=rank) for rank in (0, 1)]
    assert [one.config.num_workers for one in ranks] == [2, 2]
    assert all(one.drop_last for one in ranks)
    assert len({example for one in ranks for example in one}) == 30


def padded_makespan(parts: list[list[int]]) -> tuple[float, float]:
    """Return the time of all steps of padded batches, and the share in which a rank is idle."""
    chunks = [list(BatchSampler(part, 4, drop_last=True)) for part in parts]
    loads = np.array([[len(one) * SIZES[one].max() for one in part] for part in chunks])
    slowest = loads.max(axis=0)
    return float(slowest.sum()), float(1 - loads.mean(axis=0).sum() / slowest.sum())


def test_a_balanced_sampler_says_where_padding_makes_it_lose() -> None:
    config = BalanceConfig(batch_size=8, padded=True, tail="drop")
    with pytest.warns(UserWarning, match=r"Equal counts cannot balance a padded.*counts='free'"):
        ranks = balanced(batch_size=None, config=config)
    told = [list(one) for one in ranks]
    sums = balanced(batch_size=None, config=replace(config, padded=False))
    assert told == [list(one) for one in sums]
    # By sorted halves, as equal counts of a padded model are split, half of the ranks wait.
    plan = plan_epoch(SIZES, replace(config, num_workers=2), epoch=0)
    halves = [plan.step_examples(step, rank).tolist() for rank in (0, 1) for step in range(3)]
    by_halves = [flat(halves[:3]), flat(halves[3:])]
    (time, idle), (time_of_halves, idle_of_halves) = map(padded_makespan, (told, by_halves))
    assert time <= time_of_halves
    assert idle < idle_of_halves


def test_torchs_loader_takes_both_samplers() -> None:
    dataset = torch.arange(30)
    batches = TorchDataLoader(dataset, batch_sampler=sampler())  # type: ignore[arg-type]
    chunks = TorchDataLoader(dataset, batch_size=4, sampler=balanced()[0])  # type: ignore[arg-type]
    assert sorted(flat([batch.tolist() for batch in batches])) == list(range(30))
    assert [len(batch) for batch in chunks] == [4, 4, 4, 3]


class Columns:
    """A dataset that reads columns by name, like those of Hugging Face."""

    def __init__(self, **columns: Any) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def __len__(self) -> int:
        return 30


@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_examples_are_measured(num_workers: int | None) -> None:
    assert example_sizes(TEXTS, num_workers=num_workers).tolist() == SIZES.tolist()


def test_a_function_or_a_column_says_the_size() -> None:
    pairs = [(text, 2 * len(text)) for text in TEXTS]
    assert example_sizes(pairs, lambda pair: pair[1]).tolist() == (2 * SIZES).tolist()
    for values in (SIZES, SIZES.tolist(), torch.from_numpy(SIZES)):
        assert example_sizes(Columns(n=values), "n").tolist() == SIZES.tolist()


def test_an_empty_dataset_has_no_sizes() -> None:
    assert example_sizes([]).tolist() == []


@pytest.mark.parametrize(
    ("dataset", "size", "message"),
    [
        (Columns(n=TEXTS), "n", r"dataset\['n'\] must be a column of one number per example"),
        (Columns(n=[[1, 2], [3]]), "n", r"pass size=lambda example: len\(example\['n'\]\)"),
        (Columns(n=[[1, 2], [3, 4]]), "n", "must be one-dimensional"),
        (Columns(n=[1.0, -1.0]), "n", r"\[1\] is -1"),
        (TEXTS, "n", "TypeError"),
        (Columns(), "n", "KeyError"),
        (TEXTS, lambda _: float("nan"), r"sizes\[0\] is nan"),
        (iter(TEXTS), len, "the dataset must have a length"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(dataset: Any, size: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example_sizes(dataset, size)


def never(_: Any) -> float:
    raise AssertionError("measured again")


def test_sizes_are_read_from_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "sizes.npy"
    example_sizes(TEXTS, cache=cache)
    assert [path.name for path in cache.parent.iterdir()] == ["sizes.npy"]
    assert example_sizes(TEXTS, never, cache=cache).tolist() == SIZES.tolist()
    assert example_sizes(Columns(n=SIZES), "n", cache=str(cache)).tolist() == SIZES.tolist()
    assert np.load(cache, allow_pickle=False).dtype == np.float64


def test_a_cache_of_another_dataset_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "sizes.npy"
    example_sizes(TEXTS, cache=cache)
    with pytest.raises(ValueError, match="the sizes of 30 examples, but the dataset has 29"):
        example_sizes(TEXTS[1:], cache=cache)


def test_a_progress_bar_is_drawn_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    example_sizes(TEXTS)
    assert "measuring examples" in capsys.readouterr().err
    example_sizes(TEXTS, progress=False)
    monkeypatch.setenv("RANK", "1")
    example_sizes(TEXTS)
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.delenv("RANK")
    example_sizes(TEXTS)
    assert capsys.readouterr().err == ""
