"""One checkpoint on disk: an index with a checksum, beside the tensors that it refers to."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from paceline._files import shown
from paceline.errors import CheckpointError
from paceline.torch.checkpoint._safetensors import read_tensors, write_tensors
from paceline.torch.checkpoint._tree import decode

VERSION = 1
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)
INDEX, TENSORS = "index.json", "tensors.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a checkpoint holds.

    Attributes:
        path: Its folder.
        digest: Of all that it holds: SHA-256 of the index, which holds that of each tensor.
        state: What was saved.
    """

    path: Path
    digest: str
    state: Any


def write_content(folder: Path, tree: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a new `folder`, and have it on disk.

    Args:
        folder: Must not exist.
        tree: What `encode` returned.
        tensors: Those that it refers to, contiguous and on the host.
    """
    folder.mkdir()
    about = write_tensors(folder / TENSORS, tensors)
    with (folder / INDEX).open("wb") as file:
        file.write(sealed({"version": VERSION, "tree": tree, **about}))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_content(path: Path) -> Content:
    """Read a checkpoint into new tensors on the host; every checksum is right.

    Raises:
        CheckpointError: If anything in the folder is not what was written.
    """
    with _telling_what_is_malformed(path):
        body, digest = _read_index(path / INDEX)
        tensors = dict(read_tensors(path / TENSORS, body))
        return Content(path, digest, decode(body["tree"], tensors))


def why_damaged(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if it is whole; holds one tensor at a time."""
    try:
        with _telling_what_is_malformed(path):
            for _ in read_tensors(path / TENSORS, _read_index(path / INDEX)[0]):
                pass
    except CheckpointError as error:
        return str(error)
    return None


def sealed(body: Mapping[str, Any]) -> bytes:
    """Return JSON that ends with a checksum of all before it."""
    return _seal(json.dumps(body, separators=(",", ":"), allow_nan=False)[:-1].encode())


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(text: bytes) -> bytes:
    return text + b',"sha256":"%s"}\n' % sha256(text).hexdigest().encode()


def _read_index(path: Path) -> tuple[dict[str, Any], str]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    text = raw[: len(raw) - len(_seal(b""))]
    if raw != _seal(text):
        raise CheckpointError(f"{path} is not what was written: its checksum is wrong")
    body: dict[str, Any] = json.loads(raw)
    if body["version"] != VERSION:
        raise CheckpointError(
            f"{path} is of version {shown(body['version'])}, and this Paceline reads {VERSION}"
        )
    return body, sha256(text).hexdigest()


@contextmanager
def _telling_what_is_malformed(path: Path) -> Iterator[None]:
    """Speak of `path` where checksums are right and the content still makes no sense."""
    try:
        yield
    except CheckpointError:
        raise
    except MALFORMED as error:
        told = shown(error)
        raise CheckpointError(f"{path} was written by another program: {told}") from error
