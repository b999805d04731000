import copy
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from paceline.balance import BalanceConfig, Shards
from paceline.cost import Worker
from paceline.errors import StateMismatchError
from paceline.order import (
    OrderPolicy,
    coordinated_pair_balance,
    flip_flop,
    halve_and_herd,
    mean_balance,
    pair_balance,
    stratified,
)
from paceline.torch import BalancedBatchSampler, DataLoader, Replica
from paceline.torch.order._gradient_order import GradientOrder
from paceline.torch.order._gradient_sketch import GradientSketch

NUM, BATCH = 30, 8
SIZES = np.random.default_rng(0).integers(1, 40, NUM)
LABELS = np.arange(NUM) % 3
ROWS = np.random.default_rng(1).integers(-9, 10, (NUM, 4))
X = torch.randn(NUM, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randn(NUM, 1, generator=torch.Generator().manual_seed(1))


def sampler(rank: int = 0, num_replicas: int = 1, **options: Any) -> BalancedBatchSampler:
    names = {field.name for field in fields(BalanceConfig)} & options.keys()
    config = BalanceConfig(batch_size=BATCH, **{name: options.pop(name) for name in names})
    replica = Replica(rank=rank, num_replicas=num_replicas)
    options = {"sizes": SIZES, "config": config, "process_group": replica, **options}
    return BalancedBatchSampler(**options)


def policy(one: BalancedBatchSampler) -> OrderPolicy:
    assert one.order is not None
    return one.order


def slices(order: NDArray[np.int64]) -> list[list[int]]:
    return [sorted(order[b : b + BATCH].tolist()) for b in range(0, NUM, BATCH)]


def run_ranks_here(
    num_ranks: int,
    until: int,
    make: Callable[[], Any] = lambda: "pair-balance",
    state: Any = None,
    saved: list[Any] | None = None,
) -> list[list[list[int]]]:
    """Run ranks in turn, each with an order of its own; return every global batch by epoch."""
    ranks = [sampler(r, num_ranks, counts="free", order=make()) for r in range(num_ranks)]
    for one in ranks:
        if state is not None:
            one.load_state_dict(json.loads(json.dumps(state)))
    epochs = []
    for epoch in range(ranks[0].epoch, until):
        for one in ranks:
            one.set_epoch(epoch)
        order = policy(ranks[0]).order(epoch)
        epochs.append(slices(order))
        at = ranks[0].cursor
        left = epochs[-1][at.num_steps + sum(segment.num_steps for segment in at.earlier) :]
        for batch, parts in zip(left, zip(*ranks, strict=True), strict=True):
            ids = np.unique(np.concatenate(parts))
            assert ids.tolist() == batch
            place = np.argsort(np.argsort(order)[ids])
            for one in ranks:
                policy(one).observe(ids[place], ROWS[ids[place]] + epoch)
            if saved is not None:
                saved.append(ranks[0].state_dict())
                assert all(one.state_dict() == saved[-1] for one in ranks)
    return epochs


def test_plain_reshuffling_is_the_default_and_its_state_stays_small() -> None:
    one = sampler()
    assert one.order is None
    assert "order" not in one.state_dict()
    assert list(sampler(order="shuffle")) == list(one)


def test_stratified_batches_are_those_of_the_policy() -> None:
    one = sampler(order="stratified", labels=LABELS, seed=3)
    for epoch in (0, 1, 0):
        one.set_epoch(epoch)
        expected = slices(stratified(LABELS, seed=3).order(epoch))
        assert [sorted(batch) for batch in one] == expected


@pytest.mark.parametrize(
    ("order", "name"), [("pair-balance", "pair-balance"), (mean_balance(NUM), "grab")]
)
def test_a_name_or_a_policy_says_the_order(order: Any, name: str) -> None:
    one = sampler(order=order, seed=2)
    assert one.order is not None
    assert one.order.name == name
    assert one.planner.order is one.order


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "sorted"}, "one of 'shuffle', 'stratified', 'pair-balance' or an OrderPolicy"),
        ({"order": "grab"}, "got 'grab'"),
        ({"order": "stratified"}, "need each other, got order='stratified' and no labels"),
        ({"labels": LABELS}, "need each other, got order='shuffle' and labels"),
        (
            {"order": "pair-balance", "labels": LABELS},
            "need each other, got order='pair-balance' and labels",
        ),
        ({"order": "stratified", "labels": LABELS[1:]}, "order is of 29 examples"),
        (
            {"order": "pair-balance", "shuffle": False},
            "shuffle=False and order='pair-balance' contradict",
        ),
        ({"order": "pair-balance", "window": 2}, "needs window=1, got 2"),
        ({"order": "pair-balance", "longest_first": True}, "needs longest_first=False, got True"),
        ({"order": "stratified", "labels": LABELS, "window": 2}, "needs window=1"),
        ({"order": halve_and_herd(3)}, "the order is of 3 examples"),
        (
            {"order": "pair-balance", "shards": Shards(np.zeros(NUM, int), ((0,),))},
            "shards bring examples in an order of their own",
        ),
    ],
)
def test_what_contradicts_an_order_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**options)


def test_the_next_epoch_is_planned_ahead_only_if_its_order_is_known() -> None:
    for options, is_ahead in (
        ({"order": "stratified", "labels": LABELS}, True),
        ({"order": "pair-balance"}, False),
    ):
        one = sampler(**options)
        next(iter(one))
        assert (one.planner._ahead is not None) == is_ahead


def test_an_epoch_of_the_order_ends_when_the_next_is_set_not_when_all_was_asked_for() -> None:
    one = sampler(order="pair-balance")
    list(one)  # As a loader with workers does, long before the loop has seen the last batch.
    assert (one.epoch, policy(one).epoch) == (1, 0)
    policy(one).observe(np.arange(NUM), ROWS)
    one.set_epoch(1)
    assert policy(one).epoch == 1
    expected = pair_balance(NUM)
    expected.observe(np.arange(NUM), ROWS)
    expected.end_epoch()
    assert [sorted(batch) for batch in one] == slices(expected.order(1))


def test_between_epochs_only_set_epoch_ends_one() -> None:
    one = sampler(order="pair-balance")
    list(one)
    assert len(one) == 4
    with pytest.raises(ValueError, match=r"epoch 1 has no order yet.*call set_epoch\(1\) first"):
        _ = one.plan
    assert policy(one).epoch == 0
    one.set_epoch(1)
    assert one.plan.num_steps == 4
    with pytest.raises(ValueError, match="stands at epoch 1 and cannot go back to 0"):
        one.set_epoch(0)
    assert one.epoch == policy(one).epoch == 1


def test_a_forgotten_epoch_ends_the_one_before() -> None:
    one, told = sampler(order="pair-balance"), sampler(order="pair-balance")
    list(one)
    with pytest.warns(UserWarning, match="set_epoch was not called before epoch 1"):
        second = list(one)
    told.set_epoch(1)
    assert second == list(told)


def test_an_epoch_that_is_broken_off_and_started_over_keeps_its_order() -> None:
    one = sampler(order="pair-balance")
    first = next(iter(one))
    policy(one).observe(first, ROWS[first])
    one.set_epoch(0)
    assert next(iter(one)) == first
    one.set_epoch(3)
    assert policy(one).epoch == 3


def test_a_refit_after_a_learnt_epoch_plans_nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    one = sampler(order="pair-balance")
    list(one)
    monkeypatch.setattr(
        "paceline.torch.balance._refit.busy_seconds",
        lambda *_: one.planner.plan(one._walk.finished).load,
    )
    one.refit(None)  # type: ignore[arg-type]
    assert one.planner._ahead is None
    one.set_epoch(1)
    assert len(list(one)) == 4
    assert one.workers != (Worker(),)


@pytest.mark.parametrize(
    "make",
    [
        lambda: "pair-balance",
        lambda: mean_balance(NUM),
        lambda: coordinated_pair_balance(NUM, 3),
        lambda: flip_flop(NUM),
    ],
    ids=["pair-balance", "grab", "d-grab", "flip-flop"],
)
def test_resumed_at_every_step_on_other_ranks_orders_stay_the_same(make: Any) -> None:
    saved: list[Any] = []
    straight = run_ranks_here(2, 3, make, saved=saved)
    assert len(saved) == 12
    assert straight[0] != straight[1]
    for state in saved[:-1]:
        for num_ranks in (2, 1, 4):
            resumed = run_ranks_here(num_ranks, 3, make, state)
            assert resumed == straight[3 - len(resumed) :]


def test_a_bad_state_changes_neither_order_nor_position() -> None:
    one = sampler(order="pair-balance")
    next(iter(one))
    before = one.state_dict()
    other = sampler(order="pair-balance", sizes=SIZES + 1)
    with pytest.raises(StateMismatchError, match="other sizes"):
        one.load_state_dict(other.state_dict())
    with pytest.raises(StateMismatchError, match="without an order of its own"):
        one.load_state_dict(sampler().state_dict())
    assert one.state_dict() == before


class Spy(OrderPolicy):
    """Herds, and keeps what it is told."""

    needs_rows = True

    def __init__(self) -> None:
        self.inner = halve_and_herd(NUM)
        self.name, self.num_examples, self.epoch = self.inner.name, NUM, 0
        self.told: list[tuple[list[int], NDArray[np.float32]]] = []

    def order(self, epoch: int) -> NDArray[np.int64]:
        return self.inner.order(epoch)

    def observe(self, example_ids: Any, rows: Any, scales: Any = None) -> None:
        self.inner.observe(example_ids, rows, scales)
        self.told.append((list(example_ids), np.asarray(rows) * scales[:, None]))

    def end_epoch(self) -> None:
        self.inner.end_epoch()
        self.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.inner.load_state_dict(state)
        self.epoch = self.inner.epoch


def one_by_one(model: nn.Module) -> NDArray[np.float32]:
    rows = []
    for x, y in zip(X, Y, strict=True):
        model.zero_grad()
        functional.mse_loss(model(x), y).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
    model.zero_grad()
    return torch.stack(rows).numpy()


def train(
    one: BalancedBatchSampler,
    num_epochs: int = 1,
    scale: float = 1.0,
    spoil: int = -1,
    num_workers: int = 0,
    **options: Any,
) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    sketch = GradientSketch(model, dim=1000, **options)
    order = GradientOrder(sketch, one)
    data = [(i, X[i], Y[i]) for i in range(NUM)]
    loader = DataLoader(data, batch_sampler=one, num_workers=num_workers)  # type: ignore[arg-type]
    for epoch in range(one.epoch, num_epochs):
        loader.set_epoch(epoch)
        for ids, x, y in loader:
            weight = torch.where(ids == spoil, torch.inf, 1.0)[:, None]
            loss = ((model(x) - y).square() * weight).mean()
            (loss * loader.loss_weight * scale).backward()
            if loader.is_step_end:
                order.observe(loss_scale=scale)
    sketch.remove_hooks()
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_microbatches": 2, "counts": "free"},
        {"tail": "wrap"},
        {"tail": "pad", "num_microbatches": 2},
        {"num_microbatches": 4},
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_order_is_told_the_gradient_of_every_example_in_its_order(
    options: Any, scale: float
) -> None:
    spy = Spy()
    model = train(sampler(order=spy, **options), scale=scale)
    exact = one_by_one(model)
    order = halve_and_herd(NUM).order(0)
    told = [list(dict.fromkeys(ids)) for ids, _ in spy.told]
    last = list(dict.fromkeys([*order[:2].tolist(), *order[24:].tolist()]))
    assert told[:3] == [order[b : b + BATCH].tolist() for b in (0, 8, 16)]
    assert told[3] == (last if options.get("tail") == "wrap" else order[24:].tolist())
    for ids, rows in spy.told:
        # Bytes are within 1/254 of a row's largest coordinate, of which there are four.
        length = np.linalg.norm(exact[ids], axis=1)
        assert (
            abs(rows @ rows.T - exact[ids] @ exact[ids].T) < 0.02 * np.outer(length, length)
        ).all()


def test_rows_that_are_not_finite_are_left_out() -> None:
    spy = Spy()
    order = spy.order(0)
    train(sampler(order=spy), spoil=int(order[9]))
    told = [ids for ids, _ in spy.told]
    # Its gradient alone is not finite, but the loss of its batch is one number.
    assert told[0] == order[:8].tolist()
    assert int(order[9]) not in told[1]
    assert told[2] == order[16:24].tolist()


class Scaled(nn.Module):
    """A linear layer, and parameters that no layer holds."""

    def __init__(self, num_loose: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.loose = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(num_loose)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x) * torch.stack(list(self.loose)).sum()
        return y


@pytest.mark.parametrize(("num_loose", "more"), [(1, False), (5, True)])
def test_what_the_order_does_not_see_is_warned_of_once(num_loose: int, more: bool) -> None:
    one = sampler(order="pair-balance")
    model = Scaled(num_loose)
    order = GradientOrder(GradientSketch(model), one)

    def learn() -> None:
        for batch in one:
            model(X[batch]).mean().backward()
            order.observe()

    with pytest.warns(UserWarning, match="the order is learnt without") as warned:
        learn()
    (said,) = [str(warning.message) for warning in warned]
    assert "loose.0 (" in said
    assert ("and 2 more" in said) is more


def test_a_step_of_which_nothing_is_finite_teaches_nothing() -> None:
    spy = Spy()
    one = sampler(order=spy)
    model = nn.Linear(3, 1)
    order = GradientOrder(GradientSketch(model), one)
    batch = next(iter(one))
    (model(X[batch]) * torch.nan).mean().backward()
    order.observe()
    assert [ids for ids, _ in spy.told] == [[]]
    one.set_epoch(1)
    assert policy(one).order(1).tolist() == np.random.default_rng([0, 1]).permutation(NUM).tolist()


def test_only_every_fourth_epoch_is_sketched_and_all_are_ordered() -> None:
    spy = Spy()
    train(sampler(order=spy), 6, every=4)
    assert len(spy.told) == 8
    assert spy.epoch == 5


def test_orders_of_a_resumed_run_are_those_of_one_that_went_on() -> None:
    straight, stopped, resumed = (sampler(order="pair-balance") for _ in range(3))
    train(straight, 3)
    train(stopped, 2)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert (resumed.epoch, policy(resumed).epoch) == (2, 2)
    assert policy(resumed).order(2).tolist() == policy(straight).order(2).tolist()


def test_batches_that_are_loaded_ahead_change_no_order() -> None:
    plain, ahead = sampler(order="pair-balance"), sampler(order="pair-balance")
    train(plain, 2)
    train(ahead, 2, num_workers=1)
    for one in (plain, ahead):
        one.set_epoch(2)
    assert policy(ahead).order(2).tolist() == policy(plain).order(2).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the order 'shuffle' learns nothing from gradients"),
        ({"order": "stratified", "labels": LABELS}, "'stratified' learns nothing"),
        ({"order": "pair-balance", "num_replicas": 2}, "2 ranks are gathered in a process group"),
    ],
)
def test_sketches_for_nothing_or_without_a_way_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientOrder(GradientSketch(nn.Linear(3, 1)), sampler(**options))


def test_steps_that_do_not_fit_are_refused() -> None:
    one = sampler(order="pair-balance", num_microbatches=2)
    model = nn.Linear(3, 1)
    sketch = GradientSketch(model)
    order = GradientOrder(sketch, one)
    with pytest.raises(RuntimeError, match="none is under way"):
        order.observe()
    model(X[next(iter(one))]).mean().backward()
    with pytest.raises(
        ValueError, match=r"rank 0 has 8 examples in step 0, but [1-7] rows; call obs"
    ):
        order.observe()
    one.set_epoch(1)
    with pytest.raises(RuntimeError, match="before set_epoch"):
        order.observe()


def test_a_copy_of_a_sampler_has_an_order_of_its_own() -> None:
    one = sampler(order="pair-balance")
    next(iter(one))
    twin = copy.deepcopy(one)
    twin.set_epoch(1)
    assert (policy(one).epoch, policy(twin).epoch) == (0, 1)
    assert twin.planner.order is twin.order
