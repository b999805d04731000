"""The command line: flags into calls."""

from paceline.cli._main import main

__all__ = ["main"]
