"""How faults are counted."""

from dataclasses import asdict, dataclass, field
from typing import Any

BROKEN = (
    "unclear", "silently_wrong", "lost", "repeated", "hangs", "diverged", "leaked",
)  # fmt: skip
MAX_NOTES = 5


@dataclass(slots=True)
class Tally:
    """What came of the faults of one kind.

    Attributes:
        tried: Faults.
        recovered: The run, or the reader, ended as if nothing had happened.
        refused_clearly: An error of one line that says what is wrong.
        still_valid: The damage made another valid input of a format without checksums.
        unclear: Any other error.
        silently_wrong: Went on with other numbers.
        lost: Examples of an epoch that are in no parameter.
        repeated: Examples of an epoch that are twice in one.
        hangs: Ran into the limit of time.
        diverged: Ranks ended with other parameters than each other.
        leaked: Threads, descriptors, processes, partial files left.
        notes: The first that broke a promise, in words.
    """

    tried: int = 0
    recovered: int = 0
    refused_clearly: int = 0
    still_valid: int = 0
    unclear: int = 0
    silently_wrong: int = 0
    lost: int = 0
    repeated: int = 0
    hangs: int = 0
    diverged: int = 0
    leaked: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, column: str, number: int = 1, note: str = "") -> None:
        """Count `number` in `column`; keep the note if that breaks a promise."""
        setattr(self, column, getattr(self, column) + number)
        if number and column in BROKEN and len(self.notes) < MAX_NOTES:
            self.notes.append(f"{column}: {note:.300}")

    def broken(self) -> int:
        """Return how many promises were broken."""
        return sum(getattr(self, column) for column in BROKEN)

    def plain(self) -> dict[str, Any]:
        """Return plain values; notes only if there are some."""
        found = asdict(self)
        return found if self.notes else {k: v for k, v in found.items() if k != "notes"}
