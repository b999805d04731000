"""In which order examples come."""

from paceline.order._balance import (
    coordinated_pair_balance,
    independent_mean_balance,
    independent_pair_balance,
    mean_balance,
    pair_balance,
    recursive_mean_balance,
    recursive_pair_balance,
    self_balancing_walk,
)
from paceline.order._compare import measure_herding, order_policies
from paceline.order._herded import halve_and_herd, windowed_greedy
from paceline.order._herding import Herding, herding_bound
from paceline.order._policy import EpochOrder, OrderPolicy
from paceline.order._shuffles import flip_flop, random_reshuffling, shuffle_once, stratified
from paceline.order._simulate import HerdingRun, gaussian_unit_rows, simulate_herding

__all__ = [
    "EpochOrder",
    "Herding",
    "HerdingRun",
    "OrderPolicy",
    "coordinated_pair_balance",
    "flip_flop",
    "gaussian_unit_rows",
    "halve_and_herd",
    "herding_bound",
    "independent_mean_balance",
    "independent_pair_balance",
    "mean_balance",
    "measure_herding",
    "order_policies",
    "pair_balance",
    "random_reshuffling",
    "recursive_mean_balance",
    "recursive_pair_balance",
    "self_balancing_walk",
    "shuffle_once",
    "simulate_herding",
    "stratified",
    "windowed_greedy",
]
