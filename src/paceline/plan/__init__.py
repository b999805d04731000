"""Where the rooms meet: one plan for a job, priced by the one simulator."""

from paceline.plan._advise import Advice, Suggestion, advise
from paceline.plan._graph import Blocks, Part, StepParts, blocks_of, data_parallel_graph, step_graph
from paceline.plan._lines import (
    BALANCE_LINES,
    BF16,
    BUCKET_LINE,
    PADDED_LINES,
    SCHEDULED_LINE,
)
from paceline.plan._schedule import Change, Schedule
from paceline.plan._tune import simulate_schedule, tune

__all__ = [
    "BALANCE_LINES",
    "BF16",
    "BUCKET_LINE",
    "PADDED_LINES",
    "SCHEDULED_LINE",
    "Advice",
    "Blocks",
    "Change",
    "Part",
    "Schedule",
    "StepParts",
    "Suggestion",
    "advise",
    "blocks_of",
    "data_parallel_graph",
    "simulate_schedule",
    "step_graph",
    "tune",
]
