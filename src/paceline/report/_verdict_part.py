"""The verdict as the top of a page: what costs time, why, what to do, and what to leave."""

from collections.abc import Sequence
from typing import Protocol

from paceline.report._html import Html, element

HEALTHY = "Nothing here is worth a change."


class Cause(Protocol):
    """One thing that costs time; see `paceline.run.Cause`."""

    @property
    def share(self) -> float: ...
    @property
    def gain_low(self) -> float: ...
    @property
    def gain_high(self) -> float: ...
    @property
    def what(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def next(self) -> str: ...


def verdict_part(causes: Sequence[Cause], not_worth_it: Sequence[str]) -> Html:
    """Return the section of the verdict; causes come largest first."""
    title = element("h2", "Verdict", id="verdict-title")
    if causes:
        found = element("ol", *(_cause(cause) for cause in causes))
    else:
        found = element("p", HEALTHY, class_="healthy")
    parts = [title, found, *_rest(not_worth_it)]
    return element("section", *parts, class_="verdict", id="verdict", aria_labelledby="verdict-title")


def _cause(cause: Cause) -> Html:
    share = element("b", f"{cause.share:.0%}")
    gain = f"{cause.gain_low:.0%} to {cause.gain_high:.0%}"
    return element(
        "li",
        element("p", share, element("small", " of rank time, measured"), class_="share"),
        element("h3", cause.what),
        element("p", cause.why),
        element("p", element("code", cause.next), class_="next"),
        element("p", "A step would take ", element("b", gain), " less time, simulated.", class_="gain"),
        class_="cause",
    )


def _rest(not_worth_it: Sequence[str]) -> list[Html]:
    if not not_worth_it:
        return []
    lines = element("ul", *(element("li", line) for line in not_worth_it))
    return [element("div", element("h3", "Not worth it here"), lines, class_="rest")]
