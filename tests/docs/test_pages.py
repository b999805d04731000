"""The pages: their code runs, their links lead somewhere, their figures are those of results."""

import os
import re
from pathlib import Path

import performance_page
import pytest

from paceline.testing import run_ranks

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BESIDES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
RUN = re.compile(r"^<!-- run -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
WIDEST = 88
WIDE = {"performance.md", "design.md", "guarantees.md"}  # Commands as given, and drawings.


def code_of(page: Path) -> str:
    """Return the blocks that are marked to run, on the lines where they stand in the page."""
    text, code = page.read_text(encoding="utf-8"), ""
    for block in RUN.finditer(text):
        code += "\n" * (text.count("\n", 0, block.start(1)) - code.count("\n")) + block[1]
    return code


def run_page(rank: int, page: str, folder: str) -> None:
    os.chdir(folder)
    exec(compile(code_of(Path(page)), page, "exec"), {"__name__": "page"})


@pytest.mark.parametrize(
    "page", [page for page in PAGES if RUN.search(page.read_text(encoding="utf-8"))], ids=str
)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    run_ranks(run_page, 2, str(page), str(tmp_path))


def test_the_first_pages_hold_code_that_runs() -> None:
    for name in ("ragged-text.md", "from-ddp.md", "measure.md"):
        assert code_of(ROOT / "docs" / name), name


def anchors(page: Path) -> set[str]:
    headings = HEADING.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def leads_somewhere(page: Path, link: str) -> bool:
    if link.startswith(("http://", "https://")):
        return True
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", [*PAGES, *BESIDES], ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    assert [link for link in links if not leads_somewhere(page, link)] == []


def test_links_that_lead_nowhere_are_found() -> None:
    index = ROOT / "docs/index.md"
    assert leads_somewhere(index, "which-part.md")
    assert not leads_somewhere(index, "which-part.md#nothing")
    assert not leads_somewhere(index, "nothing.md")


@pytest.mark.parametrize(
    "page",
    [page for page in [*PAGES, *BESIDES] if page.name not in WIDE],
    ids=lambda page: page.name,
)
def test_no_code_is_cut_off_at_the_right_edge(page: Path) -> None:
    blocks = CODE.findall(page.read_text(encoding="utf-8"))
    assert [line for block in blocks for line in block.splitlines() if len(line) > WIDEST] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    names = [str(page.relative_to(ROOT / "docs")) for page in PAGES]
    assert [name for name in names if f" {name}\n" not in navigation] == []


@pytest.mark.parametrize("path", performance_page.texts(), ids=lambda path: path.name)
def test_figures_are_those_of_the_results(path: Path) -> None:
    told = "run python benchmarks/performance_page.py"
    assert path.read_text(encoding="utf-8") == performance_page.texts()[path], told


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 110
