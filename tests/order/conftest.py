"""Policies that every contract test runs over."""

from collections.abc import Callable

import numpy as np

from paceline import order
from paceline.order import OrderPolicy

Make = Callable[[int, int], OrderPolicy]

# Of (number of examples, seed).
POLICIES: dict[str, Make] = {
    "random-reshuffling": lambda n, seed: order.random_reshuffling(n, seed=seed),
    "shuffle-once": lambda n, seed: order.shuffle_once(n, seed=seed),
    "flip-flop": lambda n, seed: order.flip_flop(n, seed=seed),
    "stratified": lambda n, seed: order.stratified(np.arange(n) % 3, seed=seed),
    "grab": lambda n, seed: order.mean_balance(n, seed=seed),
    "pair-balance": lambda n, seed: order.pair_balance(n, seed=seed),
    "i-b": lambda n, seed: order.independent_mean_balance(n, 3, seed=seed),
    "i-pb": lambda n, seed: order.independent_pair_balance(n, 3, seed=seed),
    "d-grab": lambda n, seed: order.coordinated_pair_balance(n, 3, seed=seed),
    "recursive-mean-balance": lambda n, seed: order.recursive_mean_balance(n, depth=3, seed=seed),
    "recursive-pair-balance": lambda n, seed: order.recursive_pair_balance(n, depth=3, seed=seed),
    "self-balancing-walk": lambda n, seed: order.self_balancing_walk(n, seed=seed),
    "windowed-greedy": lambda n, seed: order.windowed_greedy(n, window=5, seed=seed),
    "halve-and-herd": lambda n, seed: order.halve_and_herd(n, seed=seed),
}
LEARNING = [name for name in POLICIES if POLICIES[name](1, 0).needs_rows]
