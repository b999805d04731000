"""Timeline -> one figure of matplotlib: a row for each lane of each rank.

Colours: the palette of M. Okabe and K. Ito, "Color Universal Design", 2008, which people with any
colour vision can tell apart.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from paceline.errors import MissingExtraError
from paceline.timeline._columns import Columns, Kind, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_COLOURS = {
    Kind.FORWARD: "#56B4E9",
    Kind.BACKWARD: "#0072B2",
    Kind.OPTIMIZER: "#009E73",
    Kind.COMPUTE: "#8A939B",
    Kind.DATA: "#E69F00",
    Kind.COLLECTIVE: "#CC79A7",
    Kind.COPY: "#F0E442",
}
WIDTH_INCHES, ROW_INCHES, MARGIN_INCHES = 10.0, 0.32, 1.2
BAR = 0.8  # Of the height of a row.


def plot_timeline(
    source: Source, spans: Columns, lanes: Sequence[str], axes: "Axes | None" = None
) -> "Figure":
    """Draw spans on one clock, the first at zero; into `axes`, without a legend, if given."""
    places, row = np.unique(np.stack([spans.rank, spans.lane]), axis=1, return_inverse=True)
    if axes is not None:
        _draw(axes, source, spans, row.ravel(), places, lanes)
        return cast("Figure", axes.get_figure())
    pyplot = _pyplot()
    height = MARGIN_INCHES + ROW_INCHES * max(places.shape[1], 1)
    figure: Figure
    figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, height), layout="constrained")
    assert axes is not None, "one was asked for"
    _draw(axes, source, spans, row.ravel(), places, lanes)
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if named:
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=len(named))
    # A notebook shows what a cell returns; an open figure would be shown a second time.
    pyplot.close(figure)
    return figure


def _draw(
    axes: "Axes",
    source: Source,
    spans: Columns,
    rows: NDArray[np.int64],
    places: NDArray[np.int32],
    lanes: Sequence[str],
) -> None:
    start_s = spans.start_s - spans.start_s.min(initial=np.inf)
    for kind, colour in KIND_COLOURS.items():
        for place in np.unique(rows[spans.kind == kind]):
            mine = (rows == place) & (spans.kind == kind)
            bars = list(zip(start_s[mine].tolist(), spans.duration_s[mine].tolist(), strict=True))
            axes.broken_barh(bars, (place - BAR / 2, BAR), color=colour, label=kind.name.lower())
    axes.set_yticks(range(places.shape[1]))
    axes.set_yticklabels([f"rank {rank} {lanes[lane]}" for rank, lane in places.T.tolist()])
    axes.invert_yaxis()
    axes.set_xlabel(f"{source} time in s")


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"plot() needs {error.name}; install it with: pip install 'paceline[report]'"
        ) from error
    return pyplot
