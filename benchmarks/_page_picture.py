"""The picture of the first page: tokens per second of each way, as bars with quartiles."""

from html import escape
from typing import Any

from _page_examples import WAYS

WIDTH, LEFT, ROW = 720, 330, 26
INK, OURS, OTHERS = "#6f7b87", "#00897b", "#9aa5b1"


def picture(title: str, ways: dict[str, Any]) -> str:
    """Return an SVG that reads on light and on dark pages."""
    most = max(found["tokens_per_s"]["q75"] for found in ways.values())
    scale = (WIDTH - LEFT - 90) / most
    height = 40 + ROW * len(ways)
    rows = [
        bar(number, way, found["tokens_per_s"], scale)
        for number, (way, found) in enumerate(ways.items())
    ]
    heading = escape(f"tokens per second, measured: {title}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="sans-serif" font-size="13" role="img" aria-label="{heading}">',
            f'<text x="0" y="18" fill="{INK}" font-weight="bold">{heading}</text>',
            *rows,
            "</svg>\n",
        ]
    )


def bar(number: int, way: str, found: dict[str, float], scale: float) -> str:
    """Return one bar with its name, its quartiles and its median."""
    y = 34 + ROW * number
    label = WAYS[way].replace("*", "").replace("`", "")
    colour = OURS if WAYS[way].startswith("**") else OTHERS
    low, middle, high = (LEFT + scale * found[key] for key in ("q25", "median", "q75"))
    return (
        f'<text x="{LEFT - 8}" y="{y + 13}" fill="{INK}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{LEFT}" y="{y}" width="{middle - LEFT:.0f}" height="17" fill="{colour}"/>'
        f'<path d="M{low:.0f} {y + 8}H{high:.0f}" stroke="{INK}" stroke-width="2"/>'
        f'<text x="{high + 8:.0f}" y="{y + 13}" fill="{INK}">{found["median"]:,.0f}</text>'
    )
