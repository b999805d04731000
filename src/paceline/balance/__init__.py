"""Which worker gets which example."""

from paceline.balance._config import BalanceConfig, Limits, Tail
from paceline.balance._delivery import Delivery, MicroBatch, delivery_of, micro_batches_of
from paceline.balance._epoch_plan import EpochPlan
from paceline.balance._example_order import ExampleOrder
from paceline.balance._frontier import WHOLE_EPOCH, MixingStop, knee_of, mixing_frontier
from paceline.balance._plan import plan_epoch
from paceline.balance._quality import PlanQuality, measure_quality
from paceline.balance._refit import MIN_REFIT_STEPS, refit_workers
from paceline.balance._regime import Regime, regime_of
from paceline.balance._shards import ShardBound, Shards, shard_bound
from paceline.balance.cursor import Cursor, EpochPlanner, Segment
from paceline.balance.split import (
    Counts,
    Partition,
    partition,
    rank_costs,
    regroup,
    split_padded,
)

__all__ = [
    "MIN_REFIT_STEPS",
    "WHOLE_EPOCH",
    "BalanceConfig",
    "Counts",
    "Cursor",
    "Delivery",
    "EpochPlan",
    "EpochPlanner",
    "ExampleOrder",
    "Limits",
    "MicroBatch",
    "MixingStop",
    "Partition",
    "PlanQuality",
    "Regime",
    "Segment",
    "ShardBound",
    "Shards",
    "Tail",
    "delivery_of",
    "knee_of",
    "measure_quality",
    "micro_batches_of",
    "mixing_frontier",
    "partition",
    "plan_epoch",
    "rank_costs",
    "refit_workers",
    "regime_of",
    "regroup",
    "shard_bound",
    "split_padded",
]
