"""`paceline plan`: batches from sizes, buckets from a job."""

from paceline.cli.plan._command import add_plan

__all__ = ["add_plan"]
