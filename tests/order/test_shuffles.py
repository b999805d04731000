import numpy as np
import pytest

from paceline.balance import BalanceConfig, plan_epoch
from paceline.order import OrderPolicy, flip_flop, random_reshuffling, shuffle_once, stratified


def test_reshuffling_is_the_shuffle_of_balanced_batches() -> None:
    config = BalanceConfig(batch_size=4, num_workers=1, seed=6)
    plan = plan_epoch(np.ones(20), config, epoch=2)
    expected = random_reshuffling(20, seed=6).order(2).reshape(-1, 4)
    assert np.sort(plan.examples.reshape(-1, 4)).tolist() == np.sort(expected).tolist()


def test_shuffle_once_is_one_order_and_flip_flop_turns_it_round() -> None:
    once, flop = shuffle_once(30, seed=2), flip_flop(30, seed=2)
    assert once.order(0).tolist() == once.order(7).tolist()
    assert flop.order(1).tolist() == flop.order(0).tolist()[::-1]
    assert flop.order(3).tolist() == flop.order(2).tolist()[::-1]
    assert flop.order(2).tolist() != flop.order(0).tolist()


@pytest.mark.parametrize("policy", [random_reshuffling(3), shuffle_once(3), flip_flop(3)])
def test_there_is_no_epoch_before_the_first(policy: OrderPolicy) -> None:
    with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
        policy.order(-1)


@pytest.mark.parametrize("counts", [(10, 10), (12, 5, 1), (30, 3), (7,)])
def test_every_part_of_a_stratified_epoch_holds_its_share_of_a_class(
    counts: tuple[int, ...],
) -> None:
    labels = np.repeat([f"class {k}" for k in range(len(counts))], counts)
    policy = stratified(labels, seed=1)
    orders = {tuple(policy.order(epoch).tolist()) for epoch in range(3)}
    assert len(orders) == 3
    for order in orders:
        of_place = labels[list(order)]
        for k, count in enumerate(counts):
            places = np.flatnonzero(of_place == f"class {k}")
            # A place is that of a random point in each count-th part, among those of others:
            # each of the others can be one off.
            expected = (np.arange(count) + 0.5) / count * len(labels)
            assert np.abs(places - expected).max() <= 0.5 * len(labels) / count + len(counts)


def test_labels_must_be_a_list() -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \(num_examples,\), got \(2, 2\)"):
        stratified([[0, 1], [1, 0]])
