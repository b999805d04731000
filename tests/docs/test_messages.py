"""What the page of messages quotes is what the code says."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUOTED = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
HOLE = "…"


def said(node: ast.AST) -> str | None:
    """Return what a string says, with holes for what it fills in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) or HOLE for part in node.values)
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if is_text else None


def everything_said() -> list[str]:
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "src").rglob("*.py"))
    found = (said(node) for tree in trees for node in ast.walk(tree))
    return [" ".join(text.split()) for text in found if text]


def test_every_message_of_the_page_is_one_of_ours() -> None:
    quoted = QUOTED.findall((ROOT / "docs/troubleshooting.md").read_text("utf-8"))
    messages = everything_said()
    assert len(quoted) > 30
    patterns = {text: re.compile(".*".join(map(re.escape, text.split(HOLE)))) for text in quoted}
    assert [text for text in quoted if not any(map(patterns[text].search, messages))] == []
