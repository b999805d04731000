"""Text files, and the documents in them."""

import hashlib
import re
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

TEXT_SUFFIXES = frozenset({".md", ".py", ".rst", ".txt"})
# A function or class at the margin or inside a class, behind a blank line.
DEFINITION = re.compile(r"(?<=\n\n)(?=(?: {4})?(?:@|def |async def |class ))")


def find_sources(inputs: Sequence[Path]) -> list[Path]:
    """Return the text files in a fixed order; without inputs, those of the standard library.

    Raises:
        ValueError: If an input is not there, or no text file is found.
    """
    roots = list(inputs) or [Path(sysconfig.get_paths()["stdlib"])]
    for root in roots:
        if not root.exists():
            raise ValueError(f"{root} is not there; pass text files, or folders that hold some")
    sources = list(dict.fromkeys(path for root in roots for path in _text_files(root)))
    if not sources:
        named = ", ".join(map(str, roots))
        raise ValueError(f"found no {', '.join(sorted(TEXT_SUFFIXES))} file under {named}")
    return sources


def _text_files(root: Path) -> Iterable[Path]:
    if root.is_file():
        return [root]
    return (
        path
        for path in sorted(root.rglob("*"))
        if path.suffix in TEXT_SUFFIXES and path.is_file() and "site-packages" not in path.parts
    )


def sources_digest(sources: Sequence[Path]) -> str:
    """Return what changes when a file is added, renamed, or changes its length."""
    lines = (f"{path}\t{path.stat().st_size}\n" for path in sources)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def documents_in(path: Path, separator: str | None) -> list[str]:
    """Return the documents of one file, in order and without empty ones.

    A file is one document. Python files are cut at their functions and classes instead, and
    where `separator` is given, all files are cut there.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if separator is not None:
        pieces = text.split(separator)
    else:
        pieces = DEFINITION.split(text) if path.suffix == ".py" else [text]
    return [piece for piece in pieces if piece.strip()]
