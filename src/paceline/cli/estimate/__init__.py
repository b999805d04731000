"""`paceline estimate`, one job or a table of choices."""

from paceline.cli.estimate._command import add_estimate, parse_link

__all__ = ["add_estimate", "parse_link"]
