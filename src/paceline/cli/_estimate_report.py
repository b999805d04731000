"""What `paceline estimate` prints: a JSON object, or a table of it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from paceline.errors import MissingExtraError

if TYPE_CHECKING:
    from paceline.predict import Device, RunEstimate, RunSetup, Workload


def as_json(
    found: "RunEstimate", workload: "Workload", where: "Device | None", setup: "RunSetup"
) -> dict[str, Any]:
    """Return the estimate as one JSON object."""

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
        "num_params": workload.num_params,
        "train_flops_per_batch": workload.train_flops_per_batch,
        "step_s": numbers(found.step),
        "epoch_s": numbers(found.epoch),
        "run_s": numbers(found.run),
        "cost_dollars": numbers(found.cost),
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
    """Print a table of what `as_json` returns.

    Raises:
        MissingExtraError: If rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the table needs {error.name}; install it with: pip install 'paceline[report]', or "
            "pass --json"
        ) from error
    table = Table(title=f"{result['model']} on {result['workers']} x {result['device']}")
    for column in ("", "median", "low", "high", ""):
        table.add_column(column, justify="left" if column == "" else "right")
    label = result["source"]
    for key, name, shown in (
        ("step_s", "step", _duration),
        ("epoch_s", "epoch", _duration),
        ("run_s", "run", _duration),
        ("cost_dollars", "cost", lambda dollars: f"${dollars:,.2f}"),
    ):
        if result[key] is not None:
            numbers = (shown(result[key][end]) for end in ("median", "low", "high"))
            table.add_row(name, *numbers, label)
    peak = _memory(result["memory_bytes"]["peak"])
    table.add_row("memory", peak, "", "", _memory_note(result))
    console = Console()
    console.print(table)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items() if share)
    console.print(f"bound by {result['bound_by']} ({shares}; predicted)")
    if result["workers"] > 1:
        ddp = _duration(result["ddp_step_s"])
        console.print(f"schedule {result['schedule']}; with DDP a step takes {ddp} (simulated)")
    if result["new_to_predictor"]:
        console.print(f"new to the predictor: {result['new_to_predictor']}")
    console.print(f"change first: {result['advice']}")


def _memory_note(result: dict[str, Any]) -> str:
    if result["fits"] is None:
        return "predicted"
    fits = "fits" if result["fits"] else "does not fit"
    return f"predicted; {fits}, largest batch {result['largest_batch']}"


def _memory(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.3g} MiB"


def _duration(seconds: float) -> str:
    for limit, unit, per in ((1e-3, "us", 1e6), (1.0, "ms", 1e3), (120.0, "s", 1.0)):
        if seconds < limit:
            return f"{seconds * per:.3g} {unit}"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
