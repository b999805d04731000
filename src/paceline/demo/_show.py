"""Print what the demo found, as a person reads it."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from paceline.demo._result import LABELS, DemoResult, WayResult
from paceline.report import write_report
from paceline.run import Run

ENOUGH_ROUNDS = 3
FEW = "; too few rounds for a close race, try more --seconds"


def show(result: DemoResult, console: Console) -> None:
    """Print the comparison, the fastest way first said in words."""
    ways = {name: _cells(getattr(result, name)) for name in LABELS}
    table = Table(box=None, pad_edge=False)
    table.add_column("measured", no_wrap=True)
    for label in LABELS.values():
        table.add_column(label.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row in ways["plain"]:
        table.add_row(row, *(cells[row] for cells in ways.values()))
    console.print(table)
    console.print()
    for label, text in _lines(result).items():
        console.print(f"{label:<22}{text}", highlight=False, soft_wrap=True)


def show_verdict(recorded: str, console: Console) -> None:
    """Print what slowed the recorded way, draw its page, and say where that is."""
    run = Run.load(recorded)
    console.print(f"\n{run.verdict()}", highlight=False, markup=False, soft_wrap=True)
    page = write_report(run, Path(recorded).with_name("report.html"))
    console.print(f"\nreport: {page}", highlight=False, soft_wrap=True)


def _cells(way: WayResult) -> dict[str, str]:
    low, high = way.tokens_per_s_range
    return {
        "tokens/s": f"{way.tokens_per_s:,.0f}",
        "  range of rounds": f"{low:,.0f}-{high:,.0f}",
        "step p50, p90 (s)": f"{way.p50_s:.2f}, {way.p90_s:.2f}",
        "mean step (s)": f"{way.measured_step_s:.3f}",
        "  predicted before": f"{way.predicted_step_s:.3f}",
        "idle per rank": " ".join(f"{share:.0%}" for share in way.idle),
        "padding": f"{way.padding:.0%}",
        "last loss": f"{way.final_loss:.4f}",
    }


def _lines(result: DemoResult) -> dict[str, str]:
    low, high = result.speedup_range
    verdict = "equal" if result.losses_agree else "DIFFERENT"
    paced = result.paced
    return {
        "fastest": _fastest(result) + (FEW if result.num_rounds < ENOUGH_ROUNDS else ""),
        "same global batches": f"Paceline stable over default {paced.over_plain:.2f} x tokens/s "
        f"[{low:.2f}, {high:.2f}], over tuned {paced.over_tuned:.2f} x; "
        f"{result.num_rounds} rounds on {result.num_ranks} ranks",
        "losses": f"{verdict}, default and Paceline stable: at most "
        f"{result.max_loss_difference:.1e} apart in any step, {result.num_examples} examples",
        "tuned": "length-grouped batches, which sort 50 batches of a rank by length, and "
        f"bucket_cap_mb={result.tuned_bucket_mb:g}",
        "trace, summary": f"{result.trace}, {result.summary}",
    }


def _fastest(result: DemoResult) -> str:
    """Name the way that won, whichever it is, and by how much over the others' best."""
    best: WayResult = getattr(result, result.fastest)
    if result.fastest in ("paced", "window"):
        rival = f"{best.over_tuned:.2f} x tuned PyTorch"
    else:
        ours = max(result.paced.tokens_per_s, result.window.tokens_per_s)
        rival = f"{best.tokens_per_s / ours:.2f} x the better of Paceline's ways"
    return f"{LABELS[result.fastest]}: {best.over_plain:.2f} x default PyTorch, {rival}"
