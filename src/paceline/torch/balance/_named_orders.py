"""Which order of examples a sampler was asked for."""

from typing import Literal

from numpy.typing import ArrayLike

from paceline.balance import BalanceConfig
from paceline.order import OrderPolicy, pair_balance, stratified

NAMES = ("shuffle", "stratified", "pair-balance")
Order = Literal["shuffle", "stratified", "pair-balance"] | OrderPolicy


def policy_of(
    order: Order, labels: ArrayLike | None, num_examples: int, config: BalanceConfig
) -> OrderPolicy | None:
    """Return the policy that `order` names, None for a plain shuffle.

    Raises:
        ValueError: If the name is unknown, or arguments contradict it.
    """
    if not isinstance(order, OrderPolicy) and order not in NAMES:
        raise ValueError(
            f"order must be one of {', '.join(map(repr, NAMES))} or an OrderPolicy, got {order!r}"
        )
    if (order == "stratified") != (labels is not None):
        raise ValueError(
            "labels and order='stratified' need each other, got "
            f"order={order!r} and {'no ' if labels is None else ''}labels"
        )
    if order == "shuffle":
        return None
    if not config.shuffle:
        raise ValueError(f"shuffle=False and order={order!r} contradict; leave out one")
    if labels is not None:
        return stratified(labels, seed=config.seed)
    # Herding has the lower bound, pairs the lower training loss: benchmarks/ordering.py.
    return pair_balance(num_examples, seed=config.seed) if isinstance(order, str) else order
