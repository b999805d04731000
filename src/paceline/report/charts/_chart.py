"""What surrounds a figure: its title, where its numbers are from, and how to read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paceline.report.markup import Html, element

Source = Literal["measured", "simulated", "predicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One section of the page.

    Attributes:
        name: Unique; letters and hyphens.
        title: What it shows.
        sources: Where the numbers are from, beside the title.
        caption: How to read it, in plain English; may hold markup.
        figures: Figures of bokeh, from the top down, each named.
        legend: Pairs of a meaning and its colour.
        numbers: A table of the most important values, for those who cannot see the figure.
        zoom: Ranges that share this word are zoomed together; empty where there is nothing to zoom.
        is_half: Whether two such sections stand beside each other on a wide screen.
    """

    name: str
    title: str
    sources: Sequence[Source]
    caption: str
    figures: Sequence[Any] = ()
    legend: Sequence[tuple[str, str]] = ()
    numbers: Html | None = None
    zoom: str = ""
    is_half: bool = False


def section(chart: Chart, drawings: Sequence[str]) -> Html:
    """Return the markup of a section around `drawings`, the places where figures are drawn."""
    title = f"{chart.name}-title"
    parts = [
        element("div", _heading(chart, title), _zoom_buttons(chart.zoom), class_="head"),
        element("p", chart.caption, class_="caption", id=f"{chart.name}-caption"),
        _legend(chart.legend),
        element("div", *(_drawing(chart, *pair) for pair in enumerate(drawings))),
        _numbers(chart.numbers),
    ]
    kind = "chart half" if chart.is_half else "chart"
    return element("section", *parts, class_=kind, id=chart.name, aria_labelledby=title)


def _heading(chart: Chart, identity: str) -> Html:
    labels = (element("span", source, class_=f"source {source}") for source in chart.sources)
    return element("h2", chart.title, " ", *labels, id=identity)


def _drawing(chart: Chart, number: int, drawing: str) -> Html:
    zooms = {"tabindex": "0", "data_zoom": chart.zoom} if chart.zoom else {}
    what = f"{chart.title}, figure {number + 1}" if len(chart.figures) > 1 else chart.title
    about = {"role": "img", "aria_label": what, "aria_describedby": f"{chart.name}-caption"}
    return element("div", Html(drawing), class_="drawing", **about, **zooms)


def _zoom_buttons(zoom: str) -> Html:
    if not zoom:
        return Html("")
    buttons = (
        ("in", "+", "zoom in"),
        ("out", "−", "zoom out"),
        ("left", "←", "earlier"),
        ("right", "→", "later"),
        ("reset", "reset", "show what was shown at first"),
    )
    made = (
        element(
            "button", sign, type="button", data_do=do, data_zoom=zoom, title=name, aria_label=name
        )
        for do, sign, name in buttons
    )
    return element("div", *made, class_="zoom", role="group", aria_label="zoom")


def _numbers(numbers: Html | None) -> Html:
    # Sections beside each other have the same rows, so that their figures are level.
    return element("details", element("summary", "Numbers"), numbers) if numbers else element("div")


def _legend(entries: Sequence[tuple[str, str]]) -> Html:
    items = (
        element("li", element("i", style=f"background:{colour}"), meaning)
        for meaning, colour in entries
    )
    return element("ul", *items, class_="legend")
