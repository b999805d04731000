"""Policies that every contract test runs over."""

from collections.abc import Callable

import numpy as np

from paceline import order
from paceline.order import OrderPolicy

Make = Callable[[int, int], OrderPolicy]

# Of (number of examples, seed).
POLICIES: dict[str, Make] = {
    "random-reshuffling": lambda n, seed: order.RandomReshuffling(n, seed=seed),
    "shuffle-once": lambda n, seed: order.ShuffleOnce(n, seed=seed),
    "flip-flop": lambda n, seed: order.FlipFlop(n, seed=seed),
    "stratified": lambda n, seed: order.Stratified(np.arange(n) % 3, seed=seed),
    "grab": lambda n, seed: order.MeanBalance(n, seed=seed),
    "pair-balance": lambda n, seed: order.PairBalance(n, seed=seed),
    "i-b": lambda n, seed: order.IndependentMeanBalance(n, 3, seed=seed),
    "i-pb": lambda n, seed: order.IndependentPairBalance(n, 3, seed=seed),
    "d-grab": lambda n, seed: order.CoordinatedPairBalance(n, 3, seed=seed),
    "recursive-mean-balance": lambda n, seed: order.RecursiveMeanBalance(n, depth=3, seed=seed),
    "recursive-pair-balance": lambda n, seed: order.RecursivePairBalance(n, depth=3, seed=seed),
    "self-balancing-walk": lambda n, seed: order.SelfBalancingWalk(n, seed=seed),
    "windowed-greedy": lambda n, seed: order.WindowedGreedy(n, window=5, seed=seed),
    "halve-and-herd": lambda n, seed: order.HalveAndHerd(n, seed=seed),
}
LEARNING = [name for name in POLICIES if POLICIES[name](1, 0).needs_rows]
