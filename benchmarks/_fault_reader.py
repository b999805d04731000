"""What a reader of outside input is, to the harness."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.testing.faults import mutated_bytes, mutated_state


@dataclass(frozen=True, slots=True)
class Reader:
    """One way in.

    Attributes:
        name: For reports.
        good: What it accepts.
        read: Takes `good` or what was made of it.
        mutate: Makes that.
        is_checked: Whether it has a checksum, so that it must refuse what is not `good`.
    """

    name: str
    good: Any
    read: Callable[[Any], Any]
    mutate: Callable[[Any, random.Random], Any] = mutated_bytes
    is_checked: bool = False


def from_file(path: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def written(data: bytes) -> Any:
        path.write_bytes(data)
        return read(path)

    return written


def mutated_and(document: Callable[[Any], bytes], inside: Any, rng: random.Random) -> bytes:
    """Return what `document` makes of a mutated state that JSON can hold: a right checksum."""
    while True:
        try:
            return document(mutated_state(inside, rng))
        except (TypeError, ValueError, RecursionError):
            continue
