"""The page: verdict, numbers, sections; one file that asks nothing of any other place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.resources import Resources

from paceline import __version__
from paceline.report.charts import Chart, section
from paceline.report.markup import Html, element, number_text, time_text
from paceline.report.tables import StepsTable

# The browser itself refuses whatever would leave the page.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
KEYS = (
    "Keys, where a figure is selected: + and − zoom, arrows move, 0 resets. Mouse: drag over a "
    "range, or turn the wheel with Ctrl."
)
WORDS = (
    "measured: recorded while the script ran. simulated: computed from what was recorded, for a "
    "run that did not take place. predicted: said before it happened."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a page shows.

    Attributes:
        info: What the folder's `run.json` says.
        run: Seconds of all ranks.
        verdict: Its markup.
        charts: Sections, from the top down.
    """

    info: Mapping[str, Any]
    run: StepsTable
    verdict: Html
    charts: Sequence[Chart]


def html_of(page: Page) -> str:
    """Return the page as text."""
    name = Path(str(page.info.get("script") or "run")).name
    figures = {figure.name: figure for chart in page.charts for figure in chart.figures}
    # Bokeh runs the script once the page is parsed; the places carry the ids.
    drawing, places = components(figures)
    sections = [
        section(chart, [places[figure.name] for figure in chart.figures]) for chart in page.charts
    ]
    body = element(
        "main", _header(name, page), page.verdict, _tiles(page.run), *sections, _footer(page)
    )
    head = "".join(
        [
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            element("title", f"{name}: Paceline report"),
            f"<style>{_part('page.css')}</style>",
            Resources(mode="inline", components=["bokeh"]).render_js(),
        ]
    )
    script = f"<script>{_part('page.js')}</script>"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n'
        f"<body>{body}\n{drawing}\n{script}</body>\n</html>\n"
    )


def _part(name: str) -> str:
    return files("paceline.report").joinpath(name).read_text(encoding="utf-8")


def _header(name: str, page: Page) -> Html:
    steps, ranks = page.run.num_steps, page.run.num_ranks
    state = {"running": "still running", "failed": "failed", "interrupted": "interrupted"}
    facts = [
        f"{steps:,} steps on {ranks} rank{'s' * (ranks > 1)}",
        _day(page.info.get("started")),
        state.get(str(page.info.get("state")), ""),
    ]
    about = " · ".join(filter(None, facts))
    return element("header", element("h1", name), element("p", about, class_="about"))


def _day(started: object) -> str:
    """Return a moment as people write it, or as it was given if it is none."""
    try:
        return datetime.fromisoformat(str(started)).strftime("%-d %B %Y, %H:%M %Z")
    except ValueError:
        return str(started or "")


def _tiles(run: StepsTable) -> Html:
    total_s = float(run.step_s.sum())
    padding = run.padding_share
    known = padding[padding == padding]
    values = [
        ("step time, median", time_text(float(np.median(run.step_s)))),
        ("examples per second", number_text(float(run.examples.sum()) / total_s)),
        ("positions per second", number_text(float(run.elements.sum()) / total_s)),
        ("of rank time computing", f"{run.computing:.0%}"),
        ("slowest rank over mean", number_text(float(run.imbalance.mean()))),
        ("padding", f"{known.mean():.0%}" if known.size else "not known"),
    ]
    tiles = (
        element("div", element("dt", f"{name}, measured"), element("dd", value))
        for name, value in values
    )
    return element("dl", *tiles, class_="tiles")


def _footer(page: Page) -> Html:
    recorded = "; ".join([*_pairs(page.info.get("versions")), *_pairs(page.info.get("hardware"))])
    command = page.info.get("command")
    words = " ".join(map(str, command)) if isinstance(command, list) else "unknown"
    lines = [
        element("p", KEYS, class_="keys"),
        element("p", WORDS),
        element("p", f"Recorded with {recorded or 'unknown versions'}."),
        element("p", "Command: ", element("code", words)),
        element("p", f"Written by Paceline {__version__}. This file needs nothing besides itself."),
    ]
    return element("footer", *lines)


def _pairs(found: object) -> list[str]:
    """Return names and values of a JSON object, none of anything else."""
    if not isinstance(found, Mapping):
        return []
    return [f"{name} {value}" for name, value in found.items() if value is not None]
