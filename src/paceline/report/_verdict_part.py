"""The verdict as the top of a page: what costs time, why, what to do, and what to leave."""

from collections.abc import Sequence

from paceline.report.markup import Html, element
from paceline.run import Cause, Verdict


def verdict_part(verdict: Verdict) -> Html:
    """Return the section of the verdict; causes come largest first."""
    title = element("h2", "Verdict", id="verdict-title")
    if verdict.causes:
        found = element("ol", *(_cause(cause) for cause in verdict.causes))
    else:
        found = element("p", f"{verdict.what.capitalize()}.", class_="healthy")
    parts = [title, found, *_rest("Also seen", verdict.notes)]
    parts += _rest("Not worth it here", verdict.not_worth)
    return element(
        "section", *parts, class_="verdict", id="verdict", aria_labelledby="verdict-title"
    )


def _cause(cause: Cause) -> Html:
    share = element("b", f"{cause.share:.0%}")
    low, high = f"{cause.gain_low:.0%}", f"{cause.gain_high:.0%}"
    gain = f"about {low}" if low == high else f"{low} to {high}"
    return element(
        "li",
        element("p", share, element("small", " of rank time, measured"), class_="share"),
        element("h3", cause.what),
        element("p", cause.why, class_="why"),
        element("pre", element("code", cause.next)),
        element(
            "p", "A step would take ", element("b", gain), " less time, simulated.", class_="gain"
        ),
        class_="cause",
    )


def _rest(title: str, lines: Sequence[str]) -> list[Html]:
    if not lines:
        return []
    items = element("ul", *(element("li", line) for line in lines))
    return [element("div", element("h3", title), items, class_="rest")]
