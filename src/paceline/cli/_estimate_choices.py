"""Choices that `paceline estimate` compares: what the flags list, one table, one picture."""

import argparse
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.cli._estimate_report import figure, time_unit
from paceline.cli._model_flags import needing

if TYPE_CHECKING:
    from paceline.predict.step import Execution

MARK = "*"
MOST_COLUMNS = 400
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


def execution_of(choice: Choice, options: argparse.Namespace) -> "Execution | None":
    """Return how the step is run; None where it is as in the tables, which need no factor."""
    from paceline.predict.step import Execution

    made = Execution(
        precision=PRECISIONS[choice.precision],  # type: ignore[arg-type]
        channels_last=options.channels_last,
        compiled=options.compile,
        micro_batches=options.accumulate,
        checkpointing=options.checkpoint,
        sharding=SHARDS[options.shard],  # type: ignore[arg-type]
        num_shards=choice.num_workers,
    )
    plain = Execution(precision="amp" if choice.bits == 16 else "fp32")
    return None if replace(made, num_shards=1) == plain else made


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


def show_choices(rows: list[dict[str, Any]]) -> None:
    """Print a row for each choice; each column has one unit."""
    with needing("the table", "report", otherwise=", or pass --json"):
        from rich.console import Console
        from rich.measure import Measurement
        from rich.table import Table
    table = Table(title=f"{rows[0]['model']}, medians; {MARK} none is faster and cheaper")
    columns = _columns(rows)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < 2 else "right")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    console = Console()
    # Cut figures mislead: in a narrow terminal lines are rather wrapped.
    needed = Measurement.get(console, console.options.update(width=MOST_COLUMNS), table).maximum
    console.width = max(needed, console.width)
    console.print(table)
    console.print(
        "predicted, with several workers simulated; kgCO2e: boards at full power, "
        f"{rows[0]['kg_co2e_per_kwh']:g} kg per kWh; --json has the intervals",
        highlight=False,
    )


def plot_choices(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw dollars against hours of the run, and write the picture.

    Raises:
        ValueError: If no choice has both, or the ending of `path` is no format of matplotlib.
    """
    with needing("--plot", "report"):
        from matplotlib.figure import Figure
    shown = [row for row in rows if row["run_s"] and row["cost_dollars"]]
    if not shown:
        raise ValueError("--plot needs --dataset-size, --epochs and a price, so that a run costs")

    drawn = Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawn.add_subplot()
    for index, row in enumerate(shown):
        _draw(axes, row, on_frontier=index in frontier(shown))
    best = sorted(_point(shown[index]) for index in frontier(shown))
    axes.plot(*zip(*best, strict=True), color="tab:blue", label="frontier") if best else None
    axes.set(xlabel="hours of the run (predicted)", ylabel="dollars of the run", ylim=(0, None))
    axes.set_xlim(0, None)
    axes.legend()
    drawn.savefig(path)


def _draw(axes: Any, row: dict[str, Any], *, on_frontier: bool) -> None:
    hours, dollars = _point(row)
    ends = [[abs(row["run_s"][end] / 3600 - hours)] for end in ("low", "high")]
    fits = row["fits"] is not False
    axes.errorbar(
        hours, dollars, xerr=ends, fmt="o" if fits else "x", capsize=2,
        color="tab:blue" if on_frontier else "0.6",
    )  # fmt: skip
    note = "" if fits else ", does not fit"
    text = f"{row['workers']} x {row['device']}, {row['execution']}{note}"
    axes.annotate(text, (hours, dollars), xytext=(4, 4), textcoords="offset points", fontsize=7)


def _point(row: dict[str, Any]) -> tuple[float, float]:
    return row["run_s"]["median"] / 3600, row["cost_dollars"]["median"]


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    best = set(frontier(rows))
    columns = {
        "device": [
            f"{row['workers']} x {row['device']}{' ' + MARK if index in best else ''}"
            for index, row in enumerate(rows)
        ],
        "precision": [row["execution"] for row in rows],
    }
    columns |= _times(rows) | _amounts(rows, "$", "cost_dollars", 2)
    columns |= _amounts(rows, "kgCO2e", "kg_co2e", 3)
    columns["memory (GiB)"] = [f"{row['memory_bytes']['peak'] / 2**30:.2f}" for row in rows]
    columns["fits"] = ["" if row["fits"] is None else ("no", "yes")[row["fits"]] for row in rows]
    return columns


def _times(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    columns = {}
    for name in ("step", "epoch", "run"):
        if all(row[f"{name}_s"] for row in rows):
            seconds = [row[f"{name}_s"]["median"] for row in rows]
            unit, per_s = time_unit(min(seconds))
            columns[f"{name} ({unit})"] = [figure(value * per_s) for value in seconds]
    return columns


def _amounts(rows: list[dict[str, Any]], name: str, key: str, digits: int) -> dict[str, list[str]]:
    """Return what an epoch and the run take of something; no column if nobody knows."""
    if not any(row[key] for row in rows):
        return {}
    amounts = [row[key]["median"] if row[key] else None for row in rows]
    epochs = [row["epochs"] for row in rows]
    per_epoch = [value and value / number for value, number in zip(amounts, epochs, strict=True)]
    return {
        f"{name} / epoch": [_amount(value, digits) for value in per_epoch],
        f"{name} / run": [_amount(value, digits) for value in amounts],
    }


def _amount(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
