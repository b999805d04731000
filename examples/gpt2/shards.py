"""Shards of tokens on disk, and the manifest that says which of them are whole.

A shard is two arrays per split, `train-00000.tokens.npy` and `train-00000.documents.npy`: the
tokens of all documents, one behind the other, each ended by the end of text, and where each
document begins. Everything is written beside its place and then moved there, and the manifest
last, so what the manifest names is whole unless the disk lost it, which a checksum tells.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What the manifest keeps of a shard; numbers are per split.

    Attributes:
        end_source: Source files before this index are in this shard or in an earlier one.
        num_tokens: Tokens, ends of text included.
        num_documents: Documents.
        checksum: CRC-32 of the two files, one behind the other.
    """

    end_source: int
    num_tokens: Mapping[str, int]
    num_documents: Mapping[str, int]
    checksum: Mapping[str, int]


@dataclass(slots=True, kw_only=True)
class Manifest:
    """What is done of a folder of shards.

    Attributes:
        settings: All that the shards depend on.
        vocab_size: Tokens lie below it.
        shards: Those that are whole, in order.
        is_complete: Whether all sources are in them.
    """

    settings: dict[str, Any]
    vocab_size: int
    shards: list[Shard] = field(default_factory=list)
    is_complete: bool = False

    @property
    def digest(self) -> str:
        """Tell one prepared corpus from another."""
        sums = [shard.checksum[split] for shard in self.shards for split in SPLITS]
        return f"{zlib.crc32(json.dumps([self.settings, sums], sort_keys=True).encode()):08x}"

    def total(self, what: Literal["num_tokens", "num_documents"], split: Split) -> int:
        """Add up over all shards."""
        return sum(getattr(shard, what)[split] for shard in self.shards)

    def save(self, folder: Path) -> None:
        """Replace the manifest of `folder`, whole or not at all."""
        partial = folder / "manifest.partial"
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1)
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / "manifest.json")

    @classmethod
    def load(cls, folder: Path) -> "Manifest | None":
        """Read the manifest of `folder`; None if there is none.

        Raises:
            ValueError: If it is damaged or of another version.
        """
        path = folder / "manifest.json"
        if not path.exists():
            return None
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if plain.pop("version") != VERSION:
                raise ValueError(f"it is not of version {VERSION}")
            shards = [Shard(**shard) for shard in plain.pop("shards")]
            found = cls(**plain, shards=shards)
            found._check()
            return found
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} cannot be read: {error!s:.200}; remove the folder and run prepare.py again"
            ) from error

    def _check(self) -> None:
        """Raise a `ValueError` unless every number that is read later is one."""
        counts = [shard.end_source for shard in self.shards]
        for shard in self.shards:
            for column in (shard.num_tokens, shard.num_documents, shard.checksum):
                counts += [column[split] for split in SPLITS]
        if not isinstance(self.settings, dict) or not isinstance(self.is_complete, bool):
            raise ValueError("its settings are none")
        if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
            raise ValueError("its counts must be whole numbers from 0 up")


def array_path(folder: Path, split: Split, number: int, what: str) -> Path:
    """Return where one array of a shard lies."""
    return folder / f"{split}-{number:05d}.{what}.npy"


def write_part(
    folder: Path, split: Split, number: int, documents: Sequence[NDArray[Any]], dtype: Any
) -> int:
    """Write the two arrays of one split of a shard; return their checksum."""
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    joined = np.concatenate([np.empty(0, dtype), *documents]).astype(dtype)
    for what, array in (("tokens", joined), ("documents", offsets)):
        path = array_path(folder, split, number, what)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        partial.replace(path)
    return checksum(folder, split, number)


def checksum(folder: Path, split: Split, number: int) -> int:
    """Return the checksum of the two files of one split; -1 if one is missing."""
    found = 0
    for what in ("tokens", "documents"):
        path = array_path(folder, split, number, what)
        if not path.exists():
            return -1
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found = zlib.crc32(chunk, found)
    return found


def whole_shards(folder: Path, shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards up to the first that is damaged or missing."""
    for number, shard in enumerate(shards):
        if any(checksum(folder, split, number) != shard.checksum[split] for split in SPLITS):
            return list(shards[:number])
    return list(shards)
