"""In which order examples come."""

from paceline.order._balance import (
    CoordinatedPairBalance,
    IndependentMeanBalance,
    IndependentPairBalance,
    MeanBalance,
    PairBalance,
    RecursiveMeanBalance,
    RecursivePairBalance,
    SelfBalancingWalk,
)
from paceline.order._herded import HalveAndHerd, WindowedGreedy
from paceline.order._herding import Herding, herding_bound
from paceline.order._policy import EpochOrder, OrderPolicy
from paceline.order._shuffles import FlipFlop, RandomReshuffling, ShuffleOnce, Stratified
from paceline.order._simulate import HerdingRun, gaussian_unit_rows, simulate_herding

__all__ = [
    "CoordinatedPairBalance",
    "EpochOrder",
    "FlipFlop",
    "HalveAndHerd",
    "Herding",
    "HerdingRun",
    "IndependentMeanBalance",
    "IndependentPairBalance",
    "MeanBalance",
    "OrderPolicy",
    "PairBalance",
    "RandomReshuffling",
    "RecursiveMeanBalance",
    "RecursivePairBalance",
    "SelfBalancingWalk",
    "ShuffleOnce",
    "Stratified",
    "WindowedGreedy",
    "gaussian_unit_rows",
    "herding_bound",
    "simulate_herding",
]
