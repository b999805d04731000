"""Start the demo's ranks and show what they found."""

import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import multiprocessing

from paceline.demo._config import DemoConfig
from paceline.demo._corpus import standard_library_functions
from paceline.demo._result import DemoResult, WayResult
from paceline.demo._train import train_both_ways
from paceline.testing import run_ranks

READING_SHARE = 0.12


def run_demo(config: DemoConfig) -> DemoResult:
    """Train both ways on all ranks; return what was measured.

    Raises:
        ValueError: If the output folder cannot be written to.
        RankFailedError: If a rank failed; no process is left behind.
    """
    end_s = time.monotonic() + config.seconds
    config.make_output()
    progress = multiprocessing.get_context("spawn").Value("d", 0.0)
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder, _bar() as bar:
        task = bar.add_task("reading the standard library", total=1.0)
        corpus = Path(folder) / "corpus.npz"
        standard_library_functions(budget_s=READING_SHARE * config.seconds).save(corpus)
        bar.update(task, description="training both ways in turn")
        run_ranks(
            train_both_ways,
            config.num_ranks,
            config,
            corpus,
            end_s,
            progress,
            while_waiting=lambda: bar.update(task, completed=progress.value),
        )
    return DemoResult.load(config.output / "summary.json")


def show(result: DemoResult, console: Console) -> None:
    """Print the comparison as a person reads it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("measured, median [least, largest round]")
    table.add_column("plain DDP", justify="right")
    table.add_column("paceline", justify="right")
    paced = _cells(result.paced)
    for label, plain in _cells(result.plain).items():
        table.add_row(label, plain, paced[label])
    console.print(table)
    low, high = result.speedup_range
    verdict = "equal" if result.losses_agree else "DIFFERENT"
    console.print(
        f"\nspeedup (measured)    {result.speedup:.2f} x tokens/s "
        f"[{low:.2f}, {high:.2f}] over {result.num_rounds} rounds on {result.num_ranks} ranks\n"
        f"losses                {verdict}: at most {result.max_loss_difference:.1e} apart in any "
        f"step, {result.num_examples} examples\n"
        f"trace, summary        {result.trace}, {result.summary}",
        highlight=False,
    )


def _cells(way: WayResult) -> dict[str, str]:
    low, high = way.tokens_per_s_range
    return {
        "tokens/s": f"{way.tokens_per_s:,.0f} [{low:,.0f}, {high:,.0f}]",
        "step time p50 / p90 (s)": f"{way.p50_s:.3f} / {way.p90_s:.3f}",
        "idle share per rank": " ".join(f"{share:.0%}" for share in way.idle),
        "padding share": f"{way.padding:.0%}",
        "mean step (s): measured": f"{way.measured_step_s:.3f}",
        "mean step (s): simulated": f"{way.predicted_step_s:.3f}",
        "loss of the last batch": f"{way.final_loss:.4f}",
    }


def _bar() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
