"""Elements of a page; whatever is not an element itself is escaped."""

from collections.abc import Sequence
from html import escape


class Html(str):
    """Markup: text that must not be escaped again."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: str) -> Html:
    """Return `<name ...>content</name>`; a trailing `_` of an attribute's name is cut.

    Examples:
        >>> element("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
        >>> element("div", element("b", "x"))
        '<div><b>x</b></div>'
    """
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{''.join(pairs)}>{joined(content)}</{name}>")


def joined(content: Sequence[str]) -> Html:
    """Return the content of an element: markup as it is, text escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in content))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Return a table whose first column names the rows."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = (
        element(
            "tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])
        )
        for row in rows
    )
    inner = element("table", element("thead", head), element("tbody", *body))
    return element("div", inner, class_="table", tabindex="0", role="region", aria_label="table")
