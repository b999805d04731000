"""Figures of bokeh that look alike; what a theme colours is left to the page."""

from collections.abc import Sequence
from typing import Any

from bokeh.models import BoxZoomTool, FixedTicker, HoverTool, Range1d, WheelZoomTool
from bokeh.plotting import figure

FONT = "system-ui, sans-serif"
MARGIN = 0.05  # Of the range, above the largest value.


def new_figure(
    name: str,
    *,
    x_range: Range1d,
    y_range: Range1d,
    x_label: str,
    y_label: str = "",
    height: int = 220,
    zooms: bool = False,
) -> Any:
    """Return an empty figure; `zooms` lets a reader drag over a range of x to see it larger."""
    drawing = figure(
        name=name,
        height=height,
        sizing_mode="stretch_width",
        x_range=x_range,
        y_range=y_range,
        x_axis_label=x_label,
        y_axis_label=y_label,
        toolbar_location=None,
        tools=_zoom_tools() if zooms else [],
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_left=58,
        min_border_right=14,
        min_border_top=6,
        min_border_bottom=30,
    )
    drawing.xgrid.visible = False
    drawing.ygrid.grid_line_width = 1
    for axis in drawing.axis:
        axis.axis_label_text_font = axis.major_label_text_font = FONT
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.minor_tick_line_color = None
        axis.major_tick_in = 0
    return drawing


def _zoom_tools() -> list[Any]:
    # Without a modifier the wheel scrolls the page, as everywhere else.
    return [
        BoxZoomTool(dimensions="width"),
        WheelZoomTool(dimensions="width", modifiers={"ctrl": True}),
    ]


def hover(drawing: Any, renderers: Sequence[Any], rows: Sequence[tuple[str, str]]) -> None:
    """Show `rows` of names and values beside the pointer."""
    drawing.add_tools(HoverTool(renderers=list(renderers), tooltips=list(rows)))


def range_from_zero(largest: float) -> Range1d:
    """Return a range that a line up to `largest` fits into."""
    return Range1d(0.0, largest * (1 + MARGIN) if largest > 0 else 1.0)


def name_rows(drawing: Any, names: Sequence[str], *, most: int = 32) -> None:
    """Write `names` beside rows 0, 1, ... of the y axis, from the top down; some if many."""
    stride = -(-len(names) // most)
    centres = {len(names) - 0.5 - row: name for row, name in enumerate(names) if row % stride == 0}
    drawing.yaxis.ticker = FixedTicker(ticks=list(centres))
    drawing.yaxis.major_label_overrides = centres
    drawing.yaxis.axis_line_color = drawing.yaxis.major_tick_line_color = None
    drawing.ygrid.visible = False
