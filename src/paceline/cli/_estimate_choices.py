"""What `paceline estimate` is asked to compare: devices, precisions, numbers of workers."""

import argparse
from dataclasses import dataclass
from itertools import product
from typing import Any

# What --precision says, and what the predictor calls it.
PRECISIONS = {"32": "fp32", "16": "amp", "tf32": "tf32", "bf16": "bf16", "fp8": "fp8"}
SHARDS = {"none": "none", "optimizer": "optimizer", "gradients": "optimizer", "parameters": "full"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One row of the table; `device` is "cpu" or a name, `precision` one of `PRECISIONS`."""

    device: str
    precision: str
    num_workers: int

    @property
    def on_cpu(self) -> bool:
        return self.device.lower() == "cpu"

    @property
    def bits(self) -> int:
        """Of what a step computes in: 32, or 16 with autocast or throughout."""
        return 32 if self.precision in ("32", "tf32") else 16

    @property
    def param_bits(self) -> int:
        return 16 if self.precision == "bf16" else 32


def choices_in(options: argparse.Namespace) -> list[Choice]:
    """Return every combination of what the flags list, separated by commas.

    Raises:
        ValueError: If a precision or a number is not known, or asks a CPU for what it lacks.
    """
    precisions = _parts(options.precision)
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ValueError(
                f"precision must be 32, or 16 for mixed precision, or tf32, bf16 or fp8, got "
                f"{precision}"
            )
    workers = [_whole(part) for part in _parts(options.workers)]
    made = [Choice(*each) for each in product(_parts(options.device), precisions, workers)]
    for choice in made:
        if choice.on_cpu and choice.precision in ("tf32", "fp8"):
            raise ValueError(f"a cpu has no {choice.precision}; use 32, 16 or bf16, or name a GPU")
    return list(dict.fromkeys(made))


def frontier(rows: list[dict[str, Any]]) -> list[int]:
    """Return the rows that no other one beats in both seconds and dollars of the run.

    Rows that do not fit their device, or lack a run or a price, are left out.

    Examples:
        >>> rows = [
        ...     {"fits": True, "run_s": {"median": s}, "cost_dollars": {"median": d}}
        ...     for s, d in ((10.0, 1.0), (5.0, 2.0), (9.0, 3.0))
        ... ]
        >>> frontier(rows)
        [0, 1]
    """
    points = {
        index: (row["run_s"]["median"], row["cost_dollars"]["median"])
        for index, row in enumerate(rows)
        if row["run_s"] and row["cost_dollars"] and row["fits"] is not False
    }
    return [
        index
        for index, (run_s, cost) in points.items()
        if not any(s <= run_s and c <= cost and (s, c) != (run_s, cost) for s, c in points.values())
    ]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"workers must be whole numbers such as 1,8, got {text!r}") from None
