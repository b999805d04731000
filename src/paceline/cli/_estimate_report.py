"""What `paceline estimate` prints: a JSON object, or a table of it."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from paceline.cli._model_flags import needing

ENDS = ("median", "low", "high")

if TYPE_CHECKING:
    from paceline.predict import Device, RunEstimate, RunSetup, Workload


def as_json(
    found: "RunEstimate", workload: "Workload", where: "Device | None", setup: "RunSetup"
) -> dict[str, Any]:
    def numbers(estimate: Any) -> dict[str, float] | None:
        return None if estimate is None else asdict(estimate)

    memory = found.memory
    return {
        "model": workload.name,
        "family": workload.family,
        "device": where.name if where else "cpu, this machine",
        "workers": found.num_workers,
        "batch_size": workload.batch_size,
        "precision": workload.precision_bits,
        "optimizer": workload.optimizer,
        "input_kind": workload.input_kind or "shape",
        "num_params": workload.num_params,
        "train_flops_per_batch": workload.train_flops_per_batch,
        "step_s": numbers(found.step),
        "epoch_s": numbers(found.epoch),
        "run_s": numbers(found.run),
        "cost_dollars": numbers(found.cost),
        "kg_co2e": numbers(found.kg_co2e),
        "kg_co2e_per_kwh": setup.kg_co2e_per_kwh,
        "epochs": setup.epochs.median if setup.epochs else None,
        "micro_batches": setup.micro_batches,
        "shard": setup.sharding.level if setup.sharding else "none",
        "price_per_hour": setup.price_per_hour,
        "source": found.source,
        "schedule": found.schedule,
        "ddp_step_s": found.ddp_step_s,
        "exposed_communication_s": found.exposed_s,
        "memory_bytes": asdict(memory) | {"peak": memory.peak},
        "fits": memory.fits(where) if where else None,
        "largest_batch": memory.largest_batch(where) if where else None,
        "bound_by": found.bound_by,
        "shares": found.shares,
        "advice": found.advice,
    }


def show(result: dict[str, Any]) -> None:
    """Print a table of what `as_json` returns."""
    with needing("the table", "report", otherwise=", or pass --json"):
        from rich.console import Console
        from rich.table import Table
    table = Table(title=f"{result['model']} on {result['workers']} x {result['device']}")
    table.add_column(result["source"])
    columns = dict(_columns(result))
    for name in columns:
        table.add_column(name, justify="right")
    for row, end in enumerate(ENDS):
        table.add_row(end, *(cells[row] for cells in columns.values()))
    console = Console()
    console.print(table)
    peak = memory_text(result["memory_bytes"]["peak"])
    console.print(f"memory {peak} ({_memory_note(result)})", highlight=False)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items() if share)
    console.print(f"bound by {result['bound_by']} ({shares}; predicted)")
    if result["workers"] > 1:
        ddp = _duration(result["ddp_step_s"])
        console.print(f"schedule {result['schedule']}; with DDP a step takes {ddp} (simulated)")
    if result["new_to_predictor"]:
        console.print(f"new to the predictor: {result['new_to_predictor']}")
    console.print(f"change first: {result['advice']}")


def _columns(result: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each column with its unit, and its cells: one unit for all of them."""
    for name in ("step", "epoch", "run"):
        if (found := result[f"{name}_s"]) is not None:
            unit, per_s = time_unit(found["median"])
            yield f"{name} ({unit})", [figure(found[end] * per_s) for end in ENDS]
    if (cost := result["cost_dollars"]) is not None:
        yield "cost ($)", [f"{cost[end]:,.2f}" for end in ENDS]
    if (carbon := result["kg_co2e"]) is not None:
        yield "kgCO2e", [f"{carbon[end]:,.3f}" for end in ENDS]


def _memory_note(result: dict[str, Any]) -> str:
    if result["fits"] is None:
        return "predicted"
    fits = "fits" if result["fits"] else "does not fit"
    return f"predicted; {fits}, largest batch {result['largest_batch']}"


def memory_text(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.3g} MiB"


def _duration(seconds: float) -> str:
    unit, per_s = time_unit(seconds)
    return f"{figure(seconds * per_s)} {unit}"


def figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def time_unit(seconds: float) -> tuple[str, float]:
    """Return the unit that people give so many seconds in, and how many of it a second is."""
    for limit, unit, per_s in ((1e-3, "us", 1e6), (1.0, "ms", 1e3), (120.0, "s", 1.0)):
        if seconds < limit:
            return unit, per_s
    return ("min", 1 / 60) if seconds < 7200 else ("h", 1 / 3600)
