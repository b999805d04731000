import tracemalloc
from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.balance import BalanceConfig, Counts, EpochPlan, Limits, Tail, plan_epoch
from paceline.cost import Worker

TAILS: tuple[Tail, ...] = ("drop", "pad", "wrap", "zero-weight")
SPEEDS = st.sampled_from([0.25, 1.0, 2.0])


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[np.float64], BalanceConfig, dict[str, Any]]:
    """Return costs, a config and the other arguments of `plan_epoch`, all of them fitting."""
    num_workers = draw(st.integers(1, 4))
    num_microbatches = draw(st.sampled_from([1, 2, 3, "auto"]))
    least = num_workers * (1 if num_microbatches == "auto" else num_microbatches)
    counts: Counts = draw(st.sampled_from(["equal", "free"]))
    batch_size = least * draw(st.integers(1, 4)) + (counts == "free" and draw(st.integers(0, 3)))
    tail = draw(st.sampled_from(TAILS))
    fewest = batch_size if tail == "drop" else num_workers
    num_examples = draw(st.integers(fewest, max(fewest, 60)))
    top = draw(st.sampled_from([0, 1, 9, 10**6]))
    size = st.lists(st.integers(0, top), min_size=num_examples, max_size=num_examples)
    config = BalanceConfig(
        batch_size=batch_size,
        num_workers=num_workers,
        counts=counts,
        padded=draw(st.booleans()),
        window=draw(st.sampled_from([1, 2, 3, 100])),
        num_microbatches=num_microbatches,
        microbatch_cost=draw(st.sampled_from([None, 0.0, 3.0])),
        limits=Limits(max_examples=draw(st.sampled_from([inf, batch_size // num_workers]))),
        tail=tail,
        longest_first=draw(st.booleans()),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )
    workers = st.builds(Worker, speed=SPEEDS, overhead_s=st.sampled_from([0.0, 5.0, 1e6]))
    others = {
        "epoch": draw(st.integers(0, 3)),
        "workers": draw(st.none() | st.tuples(*[workers] * num_workers)),
    }
    costs = np.array(draw(size), dtype=np.float64) ** draw(st.sampled_from([1, 2]))
    # Free counts may need more micro-batches of few examples than a step can fill.
    if counts == "free":
        config = replace(config, limits=Limits())
    return costs, config, others


def same(one: EpochPlan, other: EpochPlan) -> bool:
    names = ("examples", "is_repeat", "micro_offsets", "worker_offsets", "load")
    return all(getattr(one, name).tolist() == getattr(other, name).tolist() for name in names)


def micro_cost(costs: NDArray[np.float64], is_padded: bool) -> float:
    return float(len(costs) * costs.max() if is_padded else costs.sum())


@given(problems())
def test_every_example_is_planned_exactly_once_whatever_the_tail(
    problem: tuple[NDArray[np.float64], BalanceConfig, dict[str, Any]],
) -> None:
    costs, config, others = problem
    plan = plan_epoch(costs, config, **others)
    once = sorted(plan.examples[~plan.is_repeat].tolist())
    num_full = len(costs) // config.batch_size
    if config.tail == "drop":
        assert plan.num_steps == num_full
        assert len(once) == len(set(once)) == num_full * config.batch_size
        assert not plan.is_repeat.any()
    else:
        assert plan.num_steps == -(-len(costs) // config.batch_size)
        assert once == list(range(len(costs)))
    assert len(plan.examples) == plan.num_steps * config.batch_size
    assert plan.weighs_repeats == (config.tail != "zero-weight")


@given(problems())
def test_steps_workers_and_micro_batches_fit_together(
    problem: tuple[NDArray[np.float64], BalanceConfig, dict[str, Any]],
) -> None:
    costs, config, others = problem
    plan = plan_epoch(costs, config, **others)
    assert plan.micro_offsets[0] == plan.step_offsets[0] == 0
    assert plan.micro_offsets[-1] == len(plan.examples)
    assert plan.step_offsets[-1] == len(plan.micro_offsets) - 1
    seen: list[int] = []
    given_cost = config.microbatch_cost
    overhead = float(costs.mean()) if given_cost is None else given_cost
    overhead *= config.cuts_to_cost
    for step in range(plan.num_steps):
        assert plan.num_microbatches[step].min() >= config.least_microbatches
        for worker in range(config.num_workers):
            parts = plan.micro_batches(step, worker)
            assert len(parts) == plan.num_microbatches[step, worker]
            assert all(0 < len(part) <= config.limits.max_examples for part in parts)
            micro_costs = [micro_cost(costs[plan.examples[part]], config.padded) for part in parts]
            assert micro_costs == sorted(micro_costs)
            own = overhead * len(parts)
            assert plan.load[step, worker] == pytest.approx(sum(micro_costs) + own)
            mine = plan.step_examples(step, worker)
            assert mine.tolist() == plan.examples[np.concatenate(parts)].tolist()
            if config.counts == "equal":
                assert len(mine) == config.batch_size // config.num_workers
            seen.extend(np.concatenate(parts).tolist())
    assert seen == list(range(len(plan.examples)))


@given(problems())
def test_weighted_means_average_to_the_mean_of_what_counts_in_the_step(
    problem: tuple[NDArray[np.float64], BalanceConfig, dict[str, Any]],
) -> None:
    costs, config, others = problem
    plan = plan_epoch(costs, config, **others)
    counts = np.ones(len(plan.examples), bool) if plan.weighs_repeats else ~plan.is_repeat
    loss = np.random.default_rng(0).normal(size=len(costs))[plan.examples]
    for step in range(plan.num_steps):
        weights, means, everyone = [], [], []
        for worker in range(config.num_workers):
            slots = np.concatenate(plan.micro_batches(step, worker))
            slots = slots[counts[slots]]
            everyone.extend(loss[slots].tolist())
            weights.append(plan.loss_weight(step, worker))
            means.append(loss[slots].mean() if len(slots) else 0.0)
        assert np.mean(weights) == pytest.approx(1.0)
        assert np.dot(weights, means) / config.num_workers == pytest.approx(np.mean(everyone))


@given(problems())
def test_the_same_arguments_give_the_same_plan(
    problem: tuple[NDArray[np.float64], BalanceConfig, dict[str, Any]],
) -> None:
    costs, config, others = problem
    before = costs.copy()
    assert same(plan_epoch(costs, config, **others), plan_epoch(costs.tolist(), config, **others))
    assert costs.tolist() == before.tolist()


@given(problems(), st.data())
def test_a_rest_is_planned_exactly(
    problem: tuple[NDArray[np.float64], BalanceConfig, dict[str, Any]], data: st.DataObject
) -> None:
    costs, config, others = problem
    fewest = config.batch_size if config.tail == "drop" else config.num_workers
    num_left = data.draw(st.integers(fewest, len(costs)))
    rest = np.random.default_rng(data.draw(st.integers(0, 3))).permutation(len(costs))[:num_left]
    plan = plan_epoch(costs, config, remaining=rest, **others)
    planned = sorted(plan.examples[~plan.is_repeat].tolist())
    kept = rest[: num_left // config.batch_size * config.batch_size]
    assert planned == sorted((kept if config.tail == "drop" else rest).tolist())


@given(problems())
def test_the_step_that_takes_longest_comes_first_if_asked_and_the_others_stay(
    problem: tuple[NDArray[np.float64], BalanceConfig, dict[str, Any]],
) -> None:
    costs, config, others = problem
    plain = plan_epoch(costs, replace(config, longest_first=False), **others)
    plan = plan_epoch(costs, replace(config, longest_first=True), **others)
    ends = plain.finish_times().max(axis=1)
    longest = int(ends.argmax())
    assert plan.finish_times().max(axis=1)[0] == ends[longest]
    order = [longest, *(step for step in range(plain.num_steps) if step != longest)]
    assert plan.load.tolist() == plain.load[order].tolist()
    for step, plain_step in enumerate(order):
        for worker in range(config.num_workers):
            one, other = plan.micro_batches(step, worker), plain.micro_batches(plain_step, worker)
            pairs = list(zip(one, other, strict=True))
            assert all(plan.examples[a].tolist() == plain.examples[b].tolist() for a, b in pairs)
            assert all(plan.is_repeat[a].tolist() == plain.is_repeat[b].tolist() for a, b in pairs)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=12, max_size=50),
    num_workers=st.integers(1, 3),
    counts=st.sampled_from(["equal", "free"]),
    is_padded=st.booleans(),
    max_cost=st.sampled_from([inf, 900.0, 1500.0]),
    max_tokens=st.sampled_from([inf, 30.0, 60.0]),
    max_bytes=st.sampled_from([inf, 120.0, 200.0]),
    max_examples=st.sampled_from([inf, 1.0, 2.0, 3.5]),
)
def test_no_micro_batch_is_over_a_limit(
    sizes: list[int],
    num_workers: int,
    counts: Any,
    is_padded: bool,
    max_cost: float,
    max_tokens: float,
    max_bytes: float,
    max_examples: float,
) -> None:
    size = np.array(sizes, dtype=np.float64)
    num_bytes = 4 * size[::-1]
    limits = Limits(
        max_cost=max_cost, max_tokens=max_tokens, max_bytes=max_bytes, max_examples=max_examples
    )
    config = BalanceConfig(
        batch_size=12, num_workers=num_workers, counts=counts, padded=is_padded, limits=limits
    )
    try:
        plan = plan_epoch(size**2, config, sizes=size, example_bytes=num_bytes)
    except ValueError as error:
        # With free counts one worker may hold more examples than all could hold parts.
        assert counts == "free"
        assert "raise the limits" in str(error)  # noqa: PT017
        return
    amounts = ((size**2, max_cost), (size, max_tokens), (num_bytes, max_bytes))
    for step in range(plan.num_steps):
        for worker in range(num_workers):
            for part in plan.micro_batches(step, worker):
                held = plan.examples[part]
                assert 0 < len(held) <= max_examples
                assert all(micro_cost(each[held], is_padded) <= most for each, most in amounts)


def test_epochs_and_seeds_have_orders_of_their_own_unless_unshuffled() -> None:
    costs = np.arange(64.0)
    config = BalanceConfig(batch_size=8, num_workers=2)
    plans = [
        plan_epoch(costs, replace(config, seed=seed), epoch=epoch)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(plan.examples.tolist()) for plan in plans}) == 3
    plain = [
        plan_epoch(costs, replace(config, shuffle=False), epoch=epoch).examples.tolist()
        for epoch in (0, 1)
    ]
    assert plain[0] == plain[1]
    assert sorted(plain[0][:8]) == list(range(8))


COSTS = [5.0, 1.0, 40.0, 2.0, 8.0, 3.0, 7.0, 6.0, 1.0, 9.0, 1.0, 4.0, 2.0]
GOLDEN_CONFIG = BalanceConfig(batch_size=4, num_workers=2, seed=7)


@pytest.mark.parametrize(
    ("changes", "micro_batches"),
    [
        ({}, "7 1 | 8 11 | 12 9 | 0 6 | 10 2 | 3 4 | 5 5 | 5 5"),
        ({"counts": "free"}, "7 | 8 1 11 | 12 9 | 0 6 | 2 | 10 3 4 | 5 5 | 5 5"),
        ({"window": 2}, "12 6 | 11 0 | 9 1 | 7 8 | 10 2 | 3 4 | 5 5 | 5 5"),
        (
            {"window": 9, "num_workers": 4},
            "3 | 8 | 1 | 10 | 7 | 0 | 11 | 12 | 2 | 9 | 4 | 6 | 5 | 5 | 5 | 5",
        ),
        ({"padded": True}, "7 11 | 8 1 | 6 9 | 12 0 | 4 2 | 10 3 | 5 5 | 5 5"),
        ({"padded": True, "counts": "free"}, "7 11 | 8 1 | 6 9 | 12 0 | 2 | 10 3 4 | 5 5 | 5 5"),
        (
            {"padded": True, "counts": "free", "window": 3},
            "12 | 8 1 10 | 7 0 | 11 3 | 2 | 9 4 6 | 5 5 | 5 5",
        ),
        (
            {"num_microbatches": 2, "longest_first": True},
            "10 | 2 | 3 | 4 | 1 | 7 | 8 | 11 | 12 | 9 | 0 | 6 | 5 | 5 | 5 | 5",
        ),
        (
            {"counts": "free", "limits": Limits(max_examples=2)},
            "8 | 7 | 1 | 11 | 12 9 | 0 6 | 10 | 2 | 3 | 4 | 5 5 | 5 5",
        ),
        ({"tail": "drop", "shuffle": False}, "1 2 | 0 3 | 4 5 | 6 7 | 9 10 | 8 11"),
        ({"tail": "pad"}, "7 1 | 8 11 | 12 9 | 0 6 | 10 2 | 3 4 | 5 5 | 5 5"),
        ({"tail": "wrap"}, "7 1 | 8 11 | 12 9 | 0 6 | 10 2 | 3 4 | 7 1 | 5 8"),
    ],
)
def test_plans_are_the_same_on_every_platform(changes: dict[str, Any], micro_batches: str) -> None:
    plan = plan_epoch(COSTS, replace(GOLDEN_CONFIG, **changes), epoch=1)
    parts = np.split(plan.examples, plan.micro_offsets[1:-1])
    assert " | ".join(" ".join(map(str, part)) for part in parts) == micro_batches


@pytest.mark.parametrize(
    ("tail", "examples", "is_repeat", "weights"),
    [
        ("pad", [4, 4, 4, 4], [False, True, True, True], [1.0, 1.0]),
        ("wrap", [0, 1, 2, 4], [True, True, True, False], [1.0, 1.0]),
        ("zero-weight", [4, 4, 4, 4], [False, True, True, True], [2.0, 0.0]),
    ],
)
def test_a_tail_of_one_is_filled_as_by_hand(
    tail: Tail, examples: list[int], is_repeat: list[bool], weights: list[float]
) -> None:
    config = BalanceConfig(batch_size=4, num_workers=2, tail=tail, shuffle=False)
    plan = plan_epoch([1.0, 1.0, 1.0, 1.0, 9.0], config)
    last = sorted(zip(plan.examples[4:].tolist(), plan.is_repeat[4:].tolist(), strict=True))
    assert last == sorted(zip(examples, is_repeat, strict=True))
    assert [plan.loss_weight(1, worker) for worker in (0, 1)] == weights


def test_a_slow_worker_is_planned_to_end_with_the_others() -> None:
    rng = np.random.default_rng(0)
    config = BalanceConfig(batch_size=64, num_workers=4, counts="free")
    workers = (Worker(), Worker(speed=1 / 3), Worker(overhead_s=1.0), Worker())
    plan = plan_epoch(rng.lognormal(0.0, 0.5, 6400), config, workers=workers)
    ends = plan.finish_times()
    assert ends.max(axis=1).sum() <= 1.01 * ends.mean(axis=1).sum()
    by_hand = plan.load / [1.0, 1 / 3, 1.0, 1.0] + [0.0, 0.0, 1.0, 0.0]
    np.testing.assert_allclose(ends, by_hand)


@pytest.mark.parametrize("counts", ["equal", "free"])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("cost", [0.0, 1.0, 1e-320, 1e300])
@pytest.mark.parametrize(
    ("batch_size", "num_workers", "num_examples"),
    [(1, 1, 1), (1, 1, 5), (4, 4, 4), (4, 4, 9), (8, 4, 5), (256, 256, 600)],
)
def test_edge_cases_are_planned(
    counts: Any,
    is_padded: bool,
    window: int,
    cost: float,
    batch_size: int,
    num_workers: int,
    num_examples: int,
) -> None:
    config = BalanceConfig(
        batch_size=batch_size,
        num_workers=num_workers,
        counts=counts,
        padded=is_padded,
        window=window,
        longest_first=True,
    )
    plan = plan_epoch(np.full(num_examples, cost), config)
    assert sorted(plan.examples[~plan.is_repeat].tolist()) == list(range(num_examples))
    assert (np.diff(plan.micro_offsets) >= 1).all()


@pytest.mark.parametrize(
    ("costs", "arguments", "message"),
    [
        ([], {}, "no example to plan"),
        ([1.0], {}, "1 examples are fewer than 2 workers"),
        ([1.0, nan], {}, r"costs\[1\] is nan"),
        ([-1.0, 1.0], {}, r"costs\[0\] is -1.0"),
        ([1.0, inf], {}, r"costs\[1\] is inf"),
        ([1e308] * 4, {}, "costs are too large to add up"),
        ([[1.0, 2.0]], {}, "costs must be one-dimensional"),
        ([1.0] * 4, {"epoch": -1}, "epoch must not be negative, got -1"),
        ([1.0] * 4, {"sizes": [1, 2]}, "sizes must have 4 entries like costs, got 2"),
        ([1.0] * 4, {"sizes": [1, 2, nan, 4]}, r"sizes\[2\] is nan"),
        ([1.0] * 4, {"example_bytes": [[1]]}, "example_bytes must be one-dimensional"),
        ([1.0] * 4, {"workers": (Worker(),)}, "workers must hold 2 entries, got 1"),
        ([1.0] * 4, {"remaining": []}, "no example to plan"),
        ([1.0] * 4, {"remaining": [1]}, "1 examples are fewer"),
        ([1.0] * 4, {"remaining": [1, 4]}, r"remaining\[1\] is 4; it belongs to another dataset"),
        ([1.0] * 4, {"remaining": [-1, 3]}, r"remaining\[0\] is -1"),
        ([1.0] * 4, {"remaining": [0.0, 1.0]}, "one-dimensional list of examples"),
        ([1.0] * 4, {"remaining": [[0, 1]]}, "one-dimensional list of examples"),
    ],
)
def test_bad_input_is_refused(costs: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_epoch(costs, BalanceConfig(batch_size=4, num_workers=2), **arguments)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_cost=4), r"max_cost is 4, but the cost of example 2 alone is 5 \(2 examples"),
        (Limits(max_tokens=7), "max_tokens is 7, but the size of example 3 alone is 8"),
        (Limits(max_bytes=1.5), "max_bytes is 1.5, but the bytes of example 1 alone is 2"),
        (Limits(max_examples=0.5), "max_examples must be at least 1, got 0.5"),
    ],
)
def test_an_example_over_a_limit_is_named(limits: Limits, message: str) -> None:
    config = BalanceConfig(batch_size=4, num_workers=2, limits=limits)
    with pytest.raises(ValueError, match=message):
        plan_epoch([1, 2, 5, 6], config, sizes=[1, 2, 3, 8], example_bytes=[1, 2, 1, 1])


@pytest.mark.parametrize(
    ("limits", "missing"), [(Limits(max_tokens=9), "sizes"), (Limits(max_bytes=9), "example_bytes")]
)
def test_a_limit_without_its_column_is_refused(limits: Limits, missing: str) -> None:
    config = BalanceConfig(batch_size=4, num_workers=2, limits=limits)
    with pytest.raises(ValueError, match=f"needs {missing}, got none"):
        plan_epoch([1.0] * 4, config)


def test_dropping_everything_is_refused() -> None:
    config = BalanceConfig(batch_size=8, num_workers=2, tail="drop")
    with pytest.raises(ValueError, match="leaves nothing of 7 examples at a batch size of 8"):
        plan_epoch([1.0] * 7, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"batch_size": 5}, "use 6 or 4, or counts='free'"),
        ({"batch_size": 0}, "batch_size must be at least"),
        ({"batch_size": 1, "counts": "free"}, "batch_size must be at least"),
        ({"counts": "some"}, "counts must be"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"num_microbatches": 0}, "num_microbatches must be at least 1, got 0"),
        ({"num_microbatches": "many"}, "must be a number or 'auto', got 'many'"),
        ({"microbatch_cost": -1.0}, "microbatch_cost must be finite and not negative, got -1.0"),
        ({"num_microbatches": 3}, "num_workers x num_microbatches = 6, got 4"),
        ({"tail": "keep"}, "tail must be one of drop, pad, wrap, zero-weight, got 'keep'"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BalanceConfig(**{"batch_size": 4, "num_workers": 2, **changes})


@pytest.mark.parametrize("name", ["max_cost", "max_tokens", "max_bytes", "max_examples"])
@pytest.mark.parametrize("value", [0.0, -1.0, nan])
def test_limits_are_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        Limits(**{name: value})


def test_swapped_arguments_are_told_apart() -> None:
    swapped: Any = (BalanceConfig(batch_size=2), [1.0, 2.0])
    with pytest.raises(ValueError, match="costs come first, then the BalanceConfig, got a list"):
        plan_epoch(*swapped)


def peak_bytes(costs: NDArray[np.float64], config: BalanceConfig) -> int:
    """Return the most that NumPy holds while a plan is made."""
    tracemalloc.start()
    try:
        plan_epoch(costs, config)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "settings", [{}, {"padded": True, "counts": "free", "num_microbatches": "auto"}]
)
def test_planning_holds_little_more_than_the_order_and_the_plan(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.balance._plan.BLOCK_SLOTS", 2**13)
    costs = np.random.default_rng(0).lognormal(5.0, 1.0, 200_000)
    config = BalanceConfig(batch_size=512, num_workers=64, **settings)
    plan_epoch(costs[:100_000], config)  # While kernels are compiled.
    assert peak_bytes(costs, config) < 45 * len(costs)


def test_an_error_names_the_step_whichever_block_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.balance._plan.BLOCK_SLOTS", 4)
    limits = Limits(max_cost=2.0)
    config = BalanceConfig(batch_size=4, num_workers=2, counts="free", shuffle=False, limits=limits)
    with pytest.raises(ValueError, match=r"need 2 micro-batches per worker in step 3, more than"):
        plan_epoch([1.0] * 12 + [2.0] * 3 + [1.9], replace(config, num_workers=3))


def test_workers_that_are_alike_and_examples_that_cost_nothing_tie_as_others_do() -> None:
    config = BalanceConfig(
        batch_size=8, num_workers=4, counts="free", padded=True, num_microbatches="auto",
        microbatch_cost=0.0, limits=Limits(max_examples=1), shuffle=False,
    )  # fmt: skip
    plan = plan_epoch([3.0, 2.0, 0, 0, 0, 0, 0, 0], config)
    assert [plan.step_examples(0, worker).tolist() for worker in range(4)] == [
        [0],
        [1],
        [2, 3, 4, 5, 6],
        [7],
    ]
