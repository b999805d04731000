"""Draw the pictures of the documentation from real runs: those that `paceline demo` records.

`make docs-pictures` runs the demo and draws `docs/pictures/*.svg`: its steps before and after, who
waited for whom, the verdict and the what-if curve. With a chromium the report's two screenshots are
taken as well. `--recorded FOLDER` draws what a demo has recorded already.
"""

import argparse
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import numpy as np
from _browser import Tab, chromium_tab, find_chromium
from matplotlib import pyplot
from report_page import open_page

from paceline.demo import DemoConfig, run_demo
from paceline.report import write_report
from paceline.run import Curve, Run, powers_of_two
from paceline.timeline import KIND_COLOURS, Kind

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
# Grey that reads on white and on black; the page shows through.
INK = "#7b8794"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paceline",
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.titlelocation": "left",
}
NUM_STEPS, MOST_WAITS, MOST_RANKS = 6, 60, 1024
NAMES = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.COLLECTIVE: "waiting in the all-reduce",
    Kind.DATA: "between steps",
    Kind.OPTIMIZER: "optimizer",
}
LIMITS = ("compute", "small batch", "loop", "loader", "straggler", "wire")
LIMIT_COLOURS = ("#0072B2", "#009E73", "#8A939B", "#E69F00", "#D55E00", "#CC79A7")
PIXELS, LINE, TEXT = 7.4, 18, 12.5


def before_after(before: Run, after: Run) -> Any:
    """Draw the same global batches as default PyTorch and as Paceline trained them."""
    figure, places = pyplot.subplots(2, 1, figsize=(9, 3.4), sharex=True, layout="constrained")
    num = min(NUM_STEPS, before.num_steps, after.num_steps)
    first = (min(before.num_steps, after.num_steps) - num) // 2
    titles = ("default PyTorch", "Paceline, the same global batches")
    for axes, run, title in zip(places, (before, after), titles, strict=True):
        run.timeline(first=first, num=num).plot(axes)
        axes.set_yticks(range(run.num_ranks), [f"rank {rank}" for rank in range(run.num_ranks)])
        axes.set_title(title, fontsize=10)
    places[0].set_xlabel("")
    places[1].set_xlabel(f"seconds, measured: {num} steps on {before.num_ranks} ranks")
    keys = [pyplot.Rectangle((0, 0), 1, 1, color=KIND_COLOURS[kind]) for kind in NAMES]
    figure.legend(keys, list(NAMES.values()), loc="outside upper center", ncols=len(NAMES))
    return figure


def waits(run: Run) -> Any:
    """Draw how long each rank waited for the last one, step by step."""
    wait_s = run.grid().seconds["waiting"][:, :MOST_WAITS]
    height = 1.3 + 0.35 * run.num_ranks
    figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
    # From the page's own colour to vermilion, so that it reads on light and on dark.
    shades = mpl.colors.LinearSegmentedColormap.from_list("waits", ["#D55E0010", "#D55E00ff"])
    axes.pcolormesh(1e3 * wait_s, cmap=shades, vmin=0.0, linewidth=0)
    axes.set_yticks(np.arange(run.num_ranks) + 0.5, [f"rank {r}" for r in range(run.num_ranks)])
    axes.invert_yaxis()
    axes.set_xlabel("step after warm-up")
    keys = [pyplot.Rectangle((0, 0), 1, 1, color=shades(level)) for level in (0.0, 1.0)]
    words = ["no wait", f"waited {1e3 * wait_s.max():,.0f} ms, measured"]
    figure.legend(keys, words, loc="outside upper center", ncols=2)
    return figure


def what_if(curves: dict[str, Curve]) -> Any:
    """Draw the simulated step on more ranks, by what takes it."""
    figure, places = pyplot.subplots(
        1, len(curves), figsize=(9, 3.2), sharey=True, layout="constrained"
    )
    for axes, (title, curve) in zip(places, curves.items(), strict=True):
        parts_s = [{str(name): s for name, s in one.parts_s.items()} for one in curve.points]
        below = np.zeros(len(curve.points))
        at = np.arange(len(below))
        for limit, colour in zip(LIMITS, LIMIT_COLOURS, strict=True):
            part_ms = np.array([1e3 * found.get(limit, 0.0) for found in parts_s])
            axes.bar(at, part_ms, bottom=below, color=colour, label=limit, width=0.75)
            below += part_ms
        axes.set_xticks(at, [str(point.num_workers) for point in curve.points], fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("ranks")
    places[0].set_ylabel("step, ms, simulated")
    named = places[0].get_legend_handles_labels()
    figure.legend(*named, loc="outside upper center", ncols=len(LIMITS))
    return figure


def text_picture(text: str) -> str:
    """Return lines of a terminal as SVG."""
    lines = text.splitlines()
    width, height = PIXELS * max(map(len, lines)) + 20, LINE * len(lines) + 20
    rows = [
        f'<text x="10" y="{24 + LINE * row}" xml:space="preserve">{escape(line)}</text>'
        for row, line in enumerate(lines)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
            f'font-family="monospace" font-size="{TEXT}" fill="{INK}" role="img" '
            'aria-label="the verdict of a run">',
            *rows,
            "</svg>\n",
        ]
    )


def screenshots(run: Run, chromium: str, folder: Path) -> None:
    """Show the report of a run as a browser does: its top, light, and its steps, dark."""
    with TemporaryDirectory() as place, chromium_tab(chromium) as tab:
        page = write_report(run, Path(place) / "report.html")
        for name, part, dark in (
            ("report-verdict", "main > :nth-child(-n + 4)", False),
            ("report-steps-dark", ".chart", True),
        ):
            tab.show(width=1200, height=900, dark=dark)
            open_page(tab, page)
            tab.screenshot(folder / f"{name}.png", **_box(tab, part, skips=dark * 3))


def _box(tab: Tab, selector: str, skips: int) -> dict[str, float]:
    """Return the rectangle around what is selected, without the first `skips` of it."""
    left, top, right, bottom = tab.evaluate(
        f"(() => {{ const boxes = [...document.querySelectorAll({selector!r})].slice({skips}, 9)"
        ".map((one) => one.getBoundingClientRect());"
        " return [Math.min(...boxes.map((one) => one.left)), Math.min(...boxes.map((one) =>"
        " one.top)), Math.max(...boxes.map((one) => one.right)), Math.max(...boxes.map((one) =>"
        " one.bottom))]; })()"
    )
    return {
        "x": left - 12,
        "y": max(top - 12, 0),
        "width": right - left + 24,
        "height": bottom - top + 24,
    }


def draw(recorded: Path, folder: Path) -> None:
    """Write all pictures of what a demo recorded to `folder`."""
    before, after = (Run.load(recorded / way) for way in ("plain", "paced"))
    ranks = powers_of_two(1, MOST_RANKS)[::2]
    curves = {
        "as it is": before.what_if(ranks),
        "with even batches": before.what_if(ranks, balance="window"),
    }
    with mpl.rc_context(STYLE):
        figures = {
            "before-after": before_after(before, after),
            "waits": waits(before),
            "what-if": what_if(curves),
        }
        for name, figure in figures.items():
            # Without a date, the same run gives the same file.
            figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})
            pyplot.close(figure)
    verdict = text_picture(str(before.verdict()))
    (folder / "verdict.svg").write_text(verdict, encoding="utf-8")
    chromium = find_chromium()
    if chromium is None:
        print("no chromium was found, so the report's screenshots stay as they are")
    else:
        screenshots(before, chromium, folder)


def main() -> None:
    options = _options()
    mpl.use("svg")
    if options.recorded:
        draw(options.recorded, options.output)
    else:
        with TemporaryDirectory() as place:
            run_demo(DemoConfig(seconds=options.seconds, output=Path(place)))
            draw(Path(place), options.output)
    sizes = {path.name: path.stat().st_size for path in sorted(options.output.iterdir())}
    print(*(f"{size / 1e3:8.0f} kB  {name}" for name, size in sizes.items()), sep="\n")


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--recorded", type=Path, help="folder of a demo; unset to run one")
    made.add_argument("--seconds", type=float, default=90.0, help="of the demo (default 90)")
    made.add_argument("--output", type=Path, default=PICTURES, help="folder to write")
    return made.parse_args()


if __name__ == "__main__":
    main()
