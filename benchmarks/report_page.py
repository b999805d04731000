"""Claim: the page of 10,000 steps on 8 ranks is under 3 MB, opens in under 2 s, and works.

A made-up run with random steps is drawn, and opened in a headless Chromium without a network: on a
wide screen light and dark, on a phone of 390 pixels, and printed. Opened means that every figure is
drawn. Then buttons and keys zoom, and whatever the console says or the page asks for is counted.
Needs a chromium (`apt-get install chromium`); `--run` draws a recorded run instead, `--pictures`
keeps what a reader sees.
"""

import argparse
import json
import sys
import time
from base64 import b64decode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _browser import Tab, chromium_tab, find_chromium
from _record import finish, parser

from paceline.report import write_report
from paceline.run import Run, Steps

NUM_STEPS, NUM_RANKS, REPEATS = 10_000, 8, 5
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"width": 1200, "height": 900},
    "dark": {"width": 1200, "height": 900, "dark": True},
    "phone": {"width": 390, "height": 844, "phone": True},
}
DRAWN = (
    "typeof Bokeh === 'object' && Bokeh.documents.length === 1"
    " && Bokeh.documents.every((document) => document.is_idle)"
)
RANGE = """(() => {{
  const found = Bokeh.documents[0].roots().flatMap((root) => [...root.references()]);
  const range = found.find((model) => model.name === "{name}" && model.bounds);
  return [range.start, range.end];
}})()"""
PLACE = """(() => {{
  const drawing = document.querySelector(".drawing[data-zoom={name}]");
  drawing.scrollIntoView({{ block: "center", behavior: "instant" }});
  const {{ left, top, width, height }} = drawing.getBoundingClientRect();
  return [left, top, width, height];
}})()"""
# Ink in the middle of a canvas: a figure that was not drawn has none.
BLANK = """[...document.querySelectorAll(".drawing")].filter((drawing) => {
  const shadow = (node) => [node, ...(node.shadowRoot ? all(node.shadowRoot) : [])];
  const all = (root) => [...root.querySelectorAll("*")].flatMap(shadow);
  const canvas = all(drawing).find((node) => node.tagName === "CANVAS");
  if (!canvas) return true;
  const { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  return !pixels.some((value) => value);
}).length"""


def made_run() -> Run:
    """Return a run whose compute follows random sizes; all ranks leave a collective together."""
    rng = np.random.default_rng(0)
    shape = NUM_RANKS, NUM_STEPS
    sizes = rng.lognormal(7.0, 0.5, shape).astype(np.int64)
    compute_s = 2e-5 * sizes * rng.normal(1.0, 0.03, shape)
    data_s = rng.exponential(5e-4, shape)
    wire_s = rng.gamma(20.0, 2e-4, NUM_STEPS)
    arrival_s = data_s + compute_s
    last_s = arrival_s.max(axis=0)
    step_s = last_s + wire_s + 3e-3
    begin_s = np.broadcast_to(np.cumsum(step_s) - step_s, shape)
    small = {
        "data_s": data_s,
        "between_s": np.zeros(shape),
        "forward_s": compute_s / 3,
        "loss_s": np.zeros(shape),
        "backward_s": compute_s * 2 / 3,
        "collective_s": last_s - arrival_s + wire_s,
        "after_s": np.zeros(shape),
        "optimizer_s": np.full(shape, 3e-3),
    }
    columns: dict[str, Any] = {name: values.astype(np.float32) for name, values in small.items()}
    columns |= {
        "begin_s": begin_s,
        "arrival_s": begin_s + arrival_s,
        "num_microbatches": np.ones(shape, np.int32),
        "num_examples": np.full(shape, 8),
        "num_elements": sizes,
        "num_padding": sizes // 4,
    }
    steps = [Steps(**{name: column[rank] for name, column in columns.items()}) for rank in range(8)]
    facts = {"sampler": "DistributedSampler", "gradient_bytes": 40_000_000}
    return Run.of(steps, info={"script": "made_up.py"}, facts=[facts] * NUM_RANKS)


def open_page(tab: Tab, page: Path) -> float:
    """Load the page; return the seconds until every figure was drawn."""
    tab.call("Page.navigate", url=page.as_uri())
    tab.until(DRAWN)
    return float(tab.evaluate("performance.now()")) / 1e3


def drag(tab: Tab, name: str) -> None:
    """Drag the mouse from a quarter to a half of the first figure that shows a range."""
    left, top, width, height = tab.evaluate(PLACE.format(name=name))
    steps = (("mouseMoved", 0.25), ("mousePressed", 0.25), ("mouseMoved", 0.4))
    for kind, share in (*steps, ("mouseMoved", 0.5), ("mouseReleased", 0.5)):
        place = {"x": left + share * width, "y": top + 0.3 * height}
        tab.call("Input.dispatchMouseEvent", type=kind, **place, button="left", clickCount=1)


def zooms(tab: Tab, *, by_mouse: bool) -> dict[str, bool]:
    """Return what changes the range in view as it should; fingers that drag scroll instead."""
    found = {}
    for name in ("time", "steps"):
        shown = RANGE.format(name=name)
        first = tab.evaluate(shown)
        button = f"document.querySelector('button[data-zoom={name}][data-do={{}}]').click()"
        tab.evaluate(button.format("in"))
        start, end = tab.evaluate(shown)
        found[f"{name}_button"] = end - start < 0.51 * (first[1] - first[0])
        tab.evaluate(button.format("reset"))
        found[f"{name}_reset"] = tab.evaluate(shown) == first
        tab.evaluate(f"document.querySelector('.drawing[data-zoom={name}]').focus()")
        for key in ("+", "ArrowRight"):
            tab.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key[:1])
        moved, moved_end = tab.evaluate(shown)
        found[f"{name}_keys"] = moved > start and moved_end - moved < 0.51 * (first[1] - first[0])
        tab.evaluate(button.format("reset"))
        if by_mouse:
            drag(tab, name)
            start, end = tab.evaluate(shown)
            found[f"{name}_drag"] = start > first[0] and end - start < 0.5 * (first[1] - first[0])
            tab.evaluate(button.format("reset"))
    return found


def check(page: Path, chromium: str, pictures: Path | None) -> dict[str, Any]:
    """Open the page on each screen; return what was seen."""
    result: dict[str, Any] = {"open_s": {}, "overflows": [], "blank_figures": 0}
    with chromium_tab(chromium) as tab:
        for name, screen in SCREENS.items():
            tab.show(**screen)
            took_s = [open_page(tab, page) for _ in range(REPEATS)]
            result["open_s"][name] = [round(min(took_s), 3), round(max(took_s), 3)]
            if tab.evaluate("document.documentElement.scrollWidth") > screen["width"]:
                result["overflows"].append(name)
            result["blank_figures"] += tab.evaluate(BLANK)
            result[f"zooms_{name}"] = zooms(tab, by_mouse=not screen.get("phone"))
            if pictures is not None:
                tab.screenshot(pictures / f"report-{name}.png")
        # From the screen that a reader may have: dark, and what is printed is light.
        tab.show(**SCREENS["dark"])
        open_page(tab, page)
        pdf = b64decode(tab.call("Page.printToPDF", printBackground=True)["data"])
        result["printed_pages"] = pdf.count(b"/Type /Page\n")
        if pictures is not None:
            (pictures / "report-print.pdf").write_bytes(pdf)
        result["console_errors"] = tab.errors
        result["requests"] = [one for one in tab.requests if one != page.as_uri()]
    return result


def main() -> None:
    options = _options()
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no chromium was found; install it with: apt-get install chromium")
    run = Run.load(options.run) if options.run else made_run()
    with TemporaryDirectory() as folder:
        begin_s = time.perf_counter()
        page = write_report(run, Path(folder) / "report.html")
        write_s = time.perf_counter() - begin_s
        result = {
            "num_ranks": run.num_ranks,
            "num_steps": run.num_steps,
            "page_bytes": page.stat().st_size,
            "write_s": round(write_s, 2),
            **check(page, chromium, options.pictures),
        }
    finish("report_page", options, result, "bokeh")
    works = result["printed_pages"] > 0 and all(
        all(result[f"zooms_{name}"].values()) for name in SCREENS
    )
    if result["console_errors"] or result["requests"] or result["blank_figures"] or not works:
        sys.exit(f"the page does not work: {json.dumps(result)}")


def _options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--run", type=Path, help="folder of a recorded run to draw instead")
    made.add_argument("--pictures", type=Path, help="folder for screenshots")
    return made.parse_args()


if __name__ == "__main__":
    main()
