"""What a job costs: examples, layers, the link and the workers."""

from paceline.cost._checks import check_number, checked_column
from paceline.cost._cores import shared_cores_s, shared_work_s
from paceline.cost._examples import ExampleCost, LinearCost, QuadraticCost, example_costs
from paceline.cost._job import Job, LayerCost, Link, Worker
from paceline.cost._least_squares import fit_nonnegative

__all__ = [
    "ExampleCost",
    "Job",
    "LayerCost",
    "LinearCost",
    "Link",
    "QuadraticCost",
    "Worker",
    "check_number",
    "checked_column",
    "example_costs",
    "fit_nonnegative",
    "shared_cores_s",
    "shared_work_s",
]
