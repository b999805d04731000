"""The page of promises names tests that exist, and every promise has one."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_every_test_that_the_page_names_exists() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 20
    assert [place for place in named if not exists(*place)] == []


def test_every_promise_has_a_limit_and_a_test() -> None:
    promises = re.split(r"\n(?=\*\*)", PAGE.partition("## Crashes")[2].partition("## Test your")[0])
    assert len(promises) > 10
    for promise in promises[1:]:
        assert "- *Limit*: " in promise, promise
        assert "- *Test*: `tests/" in promise, promise


def exists(file: str, name: str) -> bool:
    path = ROOT / file
    if not path.is_file():
        return False
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return not name or any(
        isinstance(node, ast.FunctionDef) and node.name == name for node in nodes
    )
