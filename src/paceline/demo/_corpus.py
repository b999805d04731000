"""Real text that every machine has: the functions of Python's standard library."""

import ast
import sysconfig
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from paceline._files import BAD_HEADER, shown

MIN_BYTES, MAX_BYTES = 30, 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Examples of ragged length, joined.

    Attributes:
        text: All bytes, one example after the other. Shape `(num_bytes,)`.
        offsets: Where each example begins, and the end. Shape `(num_examples + 1,)`.
    """

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.text[self.offsets[index] : self.offsets[index + 1]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each example. Shape `(num_examples,)`."""
        return np.diff(self.offsets)

    def save(self, path: Path) -> None:
        """Write plain arrays."""
        np.savez(path, text=self.text, offsets=self.offsets)

    @classmethod
    def load(cls, path: Path) -> "Corpus":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file holds anything else.
        """
        try:
            # Opened here, because NumPy leaves the file open if it is damaged.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                text, offsets = arrays["text"], arrays["offsets"]
        except (*BAD_HEADER, OSError, LookupError, RuntimeError, BadZipFile) as error:
            raise ValueError(f"{path} holds no corpus ({shown(error)})") from error
        whole = text.ndim == offsets.ndim == 1 and offsets.size and offsets.dtype.kind == "i"
        if not whole or offsets[0] or offsets[-1] != len(text) or (np.diff(offsets) < 0).any():
            raise ValueError(f"{path} holds no corpus (its offsets do not fit its text)")
        return cls(text=text, offsets=offsets)


def standard_library_functions(*, budget_s: float, seed: int = 0) -> Corpus:
    """Collect functions of 30 bytes to 20 kB from as many modules as `budget_s` allows.

    Modules come in a fixed random order, so that a smaller budget still sees all parts of the
    library. Files that this Python cannot parse, such as broken ones of its tests, are skipped.

    Raises:
        ValueError: If no function was found, as on a machine without sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    end = time.monotonic() + budget_s
    functions: list[bytes] = []
    for index in np.random.default_rng(seed).permutation(len(modules)):
        functions.extend(_functions_in(modules[index]))
        if time.monotonic() > end:
            break
    if not functions:
        raise ValueError(f"found no Python functions under {root}; the demo needs its sources")
    lengths = [len(function) for function in functions]
    return Corpus(
        text=np.frombuffer(b"".join(functions), dtype=np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )


def _functions_in(path: Path) -> Iterator[bytes]:
    try:
        source = path.read_bytes()
        with warnings.catch_warnings(action="ignore"):  # Invalid escapes in the library's tests.
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = b"".join(lines[node.lineno - 1 : node.end_lineno])
            if MIN_BYTES <= len(function) <= MAX_BYTES:
                yield function
