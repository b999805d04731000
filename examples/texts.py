"""The paragraphs of `examples/ragged_text.py` as arrays, for frameworks that are not torch."""

import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES, GLOBAL_BATCH = 512, 48


class Texts:
    """Paragraphs of the standard library's source, in the same order in every process."""

    def __init__(self, num_examples: int) -> None:
        root = Path(sysconfig.get_paths()["stdlib"])
        self._items: list[Any] = []
        for path in sorted(root.glob("*.py")):
            for text in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
                if len(text) > 8 and len(self._items) < num_examples:
                    self._items.append(np.frombuffer(text.encode()[:MAX_BYTES], dtype=np.uint8))

    @property
    def sizes(self) -> list[int]:
        """Bytes of each paragraph."""
        return [len(item) for item in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self._items[index]}
