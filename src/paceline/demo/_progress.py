"""Say what the demo is doing: lines on the standard error, and a bar if it is a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

BAR = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())


class Notes:
    """Lines that one rank appends to a file and the caller reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read = 0

    def add(self, line: str) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def unread(self) -> list[str]:
        """Return the whole lines that were added since the last call."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        fresh, self._num_read = lines[self._num_read :], len(lines)
        return fresh


class Reporter:
    """Prints notes as they come."""

    def __init__(self, bar: Progress, notes: Notes, seconds: float) -> None:
        self._bar, self._notes, self._seconds = bar, notes, seconds
        self._begin_s = time.monotonic()
        self._task = bar.add_task("demo", total=seconds)

    def say(self, line: str) -> None:
        """Print a line with the seconds since the start in front of it."""
        elapsed_s = time.monotonic() - self._begin_s
        self._bar.console.print(f"{elapsed_s:4.0f} s  {line}", highlight=False, soft_wrap=True)

    def poll(self) -> None:
        """Print what was noted since the last call."""
        for line in self._notes.unread():
            self.say(line)
        elapsed_s = time.monotonic() - self._begin_s
        self._bar.update(self._task, completed=min(elapsed_s, self._seconds))


@contextmanager
def reporting(notes: Notes, seconds: float) -> Iterator[Reporter]:
    """Show a bar while the block runs, if the standard error is a terminal."""
    console = Console(stderr=True)
    with Progress(*BAR, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Reporter(bar, notes, seconds)
