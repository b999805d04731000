"""The page as text: what it must hold, what it must not, and how large it may get."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.report.conftest import made_steps

from paceline.report import report, write_report
from paceline.run import Run

MakeRun = Callable[..., Run]
SECTIONS = [
    "verdict",
    "timeline",
    "shares",
    "step-times",
    "waiting",
    "distribution",
    "communication",
    "imbalance",
    "padding",
    "forecast",
    "what-if",
]
HOSTILE = "</script><script>alert(1)</script><img src=http://x.example/a onerror=alert(2)>.py"
# What makes a browser ask for something.
ASKING = {"src", "href", "srcset", "data", "action", "poster", "background"}


class Seen(HTMLParser):
    """What a browser would find: elements with attributes, and text outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] and self.elements[-1][0] not in ("script", "style"):
            self.text.append(data)

    def named(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)


@pytest.fixture(scope="module")
def page() -> str:
    return report(Run.of(made_steps(2, 200), info={"script": "train.py", "state": "ended"}))


def test_a_page_has_every_section_and_asks_for_nothing(page: str) -> None:
    seen = Seen(page)
    assert [section["id"] for section in seen.named("section")] == SECTIONS
    asked = [(tag, key) for tag, found in seen.elements for key in found if key in ASKING]
    assert asked == []
    assert "buckets" not in "".join(seen.text)  # 200 steps are drawn one by one.
    assert not list(seen.named("link"))
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(styles) == 1
    assert not re.search(r"@import|url\(", styles[0])
    policies = [meta["content"] for meta in seen.named("meta") if "http-equiv" in meta]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none';")
    assert "http" not in str(policies[0])


def test_each_figure_says_where_its_numbers_are_from(page: str) -> None:
    seen = Seen(page)
    labels = [found for found in seen.named("span") if "source" in str(found.get("class"))]
    # Every section but the verdict has a label; the timeline and the prediction have two.
    assert len(labels) == len(SECTIONS) - 1 + 2
    drawings = [found for found in seen.named("div") if found.get("class") == "drawing"]
    assert all(found["role"] == "img" and found["aria-label"] for found in drawings)
    zoomed = [found for found in drawings if "data-zoom" in found]
    assert {found["tabindex"] for found in zoomed} == {"0"}
    buttons = {(found["data-zoom"], found["data-do"]) for found in seen.named("button")}
    actions = ("in", "out", "left", "right", "reset")
    assert buttons == {(zoom, action) for zoom in ("time", "steps") for action in actions}


def test_10_000_steps_of_8_ranks_are_under_3_mb_and_the_page_says_how(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its text does not grow with the run, and fitting 80,000 steps takes seconds.
    verdict = make_run(8, 100).verdict()
    monkeypatch.setattr(Run, "verdict", lambda _: verdict)
    page = report(make_run(8, 10_000))
    assert len(page.encode()) < 3e6
    text = " ".join(Seen(page).text)
    assert re.search(r"The 9,997 steps are drawn in 600 buckets of about 17", text)


def test_what_others_wrote_is_text(page: str, make_run: MakeRun) -> None:
    info = {"script": HOSTILE, "command": ["paceline", HOSTILE], "versions": {HOSTILE: HOSTILE}}
    info |= {"hardware": {"processor": HOSTILE}, "started": HOSTILE, "state": HOSTILE}
    plain, hostile = Seen(page), Seen(report(make_run(2, 200, **info)))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert HOSTILE in "".join(hostile.text)


@pytest.mark.parametrize(("num_ranks", "num_steps"), [(1, 1), (2, 2), (70, 30)])
def test_a_run_of_any_shape_is_drawn(make_run: MakeRun, num_ranks: int, num_steps: int) -> None:
    seen = Seen(report(make_run(num_ranks, num_steps, knows_padding=False)))
    text = " ".join(seen.text)
    assert "The inputs do not tell which of their positions hold padding." in text
    names = [found.get("aria-label") for found in seen.named("div")]
    # One rank has nobody to share its compute with.
    assert ("Timeline, figure 2" in names) == (num_ranks > 1)
    assert ("64 of the 70 ranks are drawn" in text) == (num_ranks == 70)
    assert "nan" not in text


def test_a_path_that_cannot_hold_a_page_is_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(2, 20)
    assert write_report(run, tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doc")
    for path in (tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(ValueError, match="must go to a file in a folder that exists, got"):
            write_report(run, path)


def test_info_of_another_shape_is_no_obstacle(make_run: MakeRun) -> None:
    odd: dict[str, object] = {"versions": [1], "hardware": "x", "command": 3, "started": 7}
    text = "".join(Seen(report(make_run(1, 1, script=None, **odd))).text)
    assert "Recorded with unknown versions." in text
    assert "Command: unknown" in text


def test_a_rank_without_collectives_draws(make_run: MakeRun) -> None:
    run = make_run(2, 30)
    alone = [
        steps._replace(
            collective_s=np.zeros_like(steps.collective_s),
            arrival_s=np.full_like(steps.arrival_s, np.nan),
        )
        for steps in run.steps
    ]
    page = report(Run.of(alone))
    assert "No rank waited for another." in page
    assert "Timeline, figure 2" not in page  # There is no wait that even compute would end.
