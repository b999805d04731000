"""Where the rooms meet: one plan for a job, priced by the one simulator."""

from paceline.plan._graph import data_parallel_graph

__all__ = ["data_parallel_graph"]
