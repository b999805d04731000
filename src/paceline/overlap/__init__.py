"""Which task runs on which lane, when: task graphs, and plans of what to defer."""

from paceline.overlap._choose import MIN_GAIN, LanePlan, Way, choose_way, defer_all
from paceline.overlap._graph import Task, lane_graph
from paceline.overlap._lane import DEFAULT_LANES, Lane
from paceline.overlap._plan import plan_lanes
from paceline.overlap._step import SplitCost, Threads, step_graph

__all__ = [
    "DEFAULT_LANES",
    "MIN_GAIN",
    "Lane",
    "LanePlan",
    "SplitCost",
    "Task",
    "Threads",
    "Way",
    "choose_way",
    "defer_all",
    "lane_graph",
    "plan_lanes",
    "step_graph",
]
