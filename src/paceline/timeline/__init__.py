"""What happens when: spans, their summary, their export, and the simulator."""

from paceline.timeline._columns import (
    BUCKET_LANE,
    BUSY_KINDS,
    COLUMNS,
    LAYER_LANE,
    SOURCES,
    Kind,
    Source,
    Span,
)
from paceline.timeline._plot import KIND_COLOURS
from paceline.timeline._resample import gain_interval, interval_of, resampled_sums
from paceline.timeline._simulate import TaskGraph, simulate, simulate_steps
from paceline.timeline._summary import Summary
from paceline.timeline._timeline import Timeline

__all__ = [
    "BUCKET_LANE",
    "BUSY_KINDS",
    "COLUMNS",
    "KIND_COLOURS",
    "LAYER_LANE",
    "SOURCES",
    "Kind",
    "Source",
    "Span",
    "Summary",
    "TaskGraph",
    "Timeline",
    "gain_interval",
    "interval_of",
    "resampled_sums",
    "simulate",
    "simulate_steps",
]
