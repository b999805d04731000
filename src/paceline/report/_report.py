"""A recorded run -> one page."""

from pathlib import Path

from paceline.run import Run


def report(run: Run) -> str:
    """Return a run as one page of HTML that needs nothing besides itself.

    Needs the `report` extra. Of long runs, steps are drawn in buckets; the page says so.

    Examples:
        >>> from pathlib import Path
        >>> page = report(Run.load("paceline-runs/train"))  # doctest: +SKIP
        >>> Path("train.html").write_text(page)  # doctest: +SKIP
    """
    # bokeh takes most of a second to import.
    from paceline.report._contents import page_of
    from paceline.report._page import html_of

    return html_of(page_of(run))


def write_report(run: Run, path: str | Path) -> Path:
    """Write the page of a run to `path`, a file of HTML; return its path.

    Raises:
        ValueError: If the path is a folder, or is in none that exists.
    """
    target = Path(path)
    # Said before the page is drawn, which takes seconds.
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"the report must go to a file in a folder that exists, got {target}")
    target.write_text(report(run), encoding="utf-8")
    return target
