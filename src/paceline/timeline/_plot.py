"""Timeline -> one figure of matplotlib: a row for each lane of each rank.

Colours: the palette of M. Okabe and K. Ito, "Color Universal Design", 2008, which people with any
colour vision can tell apart.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paceline.errors import MissingExtraError
from paceline.timeline._columns import Columns, Kind, Source

if TYPE_CHECKING:
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


def plot_timeline(source: Source, spans: Columns, lanes: Sequence[str]) -> "Figure":
    """Draw spans on one clock; the first begins at zero."""
    pyplot = _pyplot()
    places, row = np.unique(np.stack([spans.rank, spans.lane]), axis=1, return_inverse=True)
    rows = row.ravel()
    height = MARGIN_INCHES + ROW_INCHES * max(places.shape[1], 1)
    figure: Figure
    figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, height), layout="constrained")
    start_s = spans.start_s - spans.start_s.min(initial=np.inf)
    for kind, colour in KIND_COLOURS.items():
        for place in np.unique(rows[spans.kind == kind]):
            mine = (rows == place) & (spans.kind == kind)
            bars = np.stack([start_s[mine], spans.duration_s[mine]], axis=1)
            axes.broken_barh(bars, (place - BAR / 2, BAR), color=colour, label=kind.name.lower())
    axes.set_yticks(range(places.shape[1]))
    axes.set_yticklabels([f"rank {rank} {lanes[lane]}" for rank, lane in places.T.tolist()])
    axes.invert_yaxis()
    axes.set_xlabel(f"{source} time in s")
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if named:
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=len(named))
    # A notebook shows what a cell returns; an open figure would be shown a second time.
    pyplot.close(figure)
    return figure


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"plot() needs {error.name}; install it with: pip install 'paceline[report]'"
        ) from error
    return pyplot
