"""Split the examples of a step over workers: one batch, padded or not, and what sorts them."""

from paceline.balance.split._expensive import Shape, choose_expensive, gather_steps
from paceline.balance.split._pace import Pace, pace_of
from paceline.balance.split._padded import (
    earliest_end,
    fastest_first,
    split_padded,
    split_padded_steps,
)
from paceline.balance.split._padded_micro import MicroBatchCosts, plan_padded_micro_batches
from paceline.balance.split._padded_price import Crew, crew_of
from paceline.balance.split._padded_steps import divide_window
from paceline.balance.split._partition import (
    Partition,
    check_worker_counts,
    checked_costs,
    partition,
)
from paceline.balance.split._regroup import rank_costs, regroup
from paceline.balance.split._sorting import descending_order, group_rows, sort_order
from paceline.balance.split._steps import TOLERANCE, WINDOW_TOLERANCE, Counts, partition_steps
