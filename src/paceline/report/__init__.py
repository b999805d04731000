"""One page of a run: what was measured, what it says, and what would change it."""

from paceline.report._report import report, write_report

__all__ = ["report", "write_report"]
