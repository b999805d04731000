"""What benchmarks saved, and how it becomes a table in Markdown."""

import json
from collections.abc import Iterable
from typing import Any

from _record import RESULTS

Rows = Iterable[Iterable[str]]


def record(name: str) -> dict[str, Any]:
    """Return what a benchmark saved, an empty record if it saved nothing."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {"result": {}, "environment": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = record(name)["result"]
    return found


def table(head: str, rows: Rows) -> str:
    """Return a Markdown table; `head` names its columns, separated by bars."""
    names = head.split("|")
    lines = [[name.strip() for name in names], ["---"] * len(names), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ranged(found: dict[str, float], places: int = 2, unit: float = 1.0) -> str:
    """Return a median with its quartiles."""
    middle, low, high = (f"{found[key] / unit:,.{places}f}" for key in ("median", "q25", "q75"))
    return f"{middle} [{low}, {high}]"


def bold(system: str) -> str:
    return f"**{system}**" if system.startswith("paceline") else system
