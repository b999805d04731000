"""Read files that others wrote: what is damaged, too large or too deep is one `ValueError`.

What is written has another name until it is whole.
"""

import csv
import json
import os
import reprlib
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

# The command line should not wait for NumPy: what needs it imports it inside.
if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_TEXT_BYTES = 1 << 28
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
# What NumPy's reader of headers, a reader of Python literals, raises for damaged ones.
BAD_HEADER = (ValueError, EOFError, MemoryError, OverflowError, SyntaxError, TokenError, TypeError)


def shown(value: Any) -> str:
    """Return `value` for a message: on one line, short however long or deep it is.

    Examples:
        >>> shown([[[0] * 100] * 100]), shown(10**400)[:20]
        ('[[[0, 0, 0, 0, 0, 0, ...], ...]]', '10000000000000000000')
    """
    try:
        return " ".join(_SHORT.repr(value).split())[:200]
    except (ValueError, RecursionError):  # Of an integer of more than 4,300 digits.
        return f"a {type(value).__name__}"


def told(error: Exception) -> str:
    """Return what `error` says, for a message: on one line, and short."""
    return " ".join(str(error).split())[:200]


def read_text(path: Path) -> str:
    """Read UTF-8.

    Raises:
        ValueError: If the file cannot be read, is not UTF-8, or has more than 256 MiB.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError(f"{path} has more than {MAX_TEXT_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8: {error.reason} at byte {error.start}"
        ) from None


def read_json(path: Path) -> Any:
    """Read one JSON value.

    Raises:
        ValueError: As `read_text`, and if the text is not JSON or nested too deeply.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is not a JSON file: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {told(error)}") from None


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value in place of what is there; a reader never finds half of it."""
    with partial(path).open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
    partial(path).replace(path)


def partial(path: Path) -> Path:
    """Return the name under which `path` is written first; no reader looks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a table: its header, and its rows, in which missing cells are empty.

    Raises:
        ValueError: As `read_text`, if the text is not CSV, or a row has more cells than the header.
    """
    lines = csv.DictReader(read_text(path).splitlines(keepends=True), restval="")
    try:
        rows = list(lines)
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV table: {told(error)}") from None
    for number, row in enumerate(rows):
        if None in row:
            raise ValueError(f"{path} has more cells in row {number} than in its header")
    return list(lines.fieldnames or ()), rows


def read_array(path: Path) -> "NDArray[Any]":
    """Read a `.npy` file of plain values; its header is checked before memory is asked for.

    Raises:
        ValueError: If the file cannot be read, is no such file, or is shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            return _array_in(file, _num_bytes(file))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except (KeyError, *BAD_HEADER) as error:
        raise ValueError(
            f"{path} is not a .npy file of numbers ({told(error)}); write one with numpy.save"
        ) from None


def read_arrays(path: Path) -> "dict[str, NDArray[Any]]":
    """Read a `.npz` file of plain values, not compressed: what it unpacks to is no larger.

    Raises:
        ValueError: If the file cannot be read, is damaged, or unpacks to more than it has.
    """
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(path) as pack:
            sizes = {one.filename: one.file_size for one in pack.infolist()}
            if sum(sizes.values()) > path.stat().st_size:
                raise ValueError("it is compressed")
            return {name.removesuffix(".npy"): _member(pack, name, sizes[name]) for name in sizes}
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except (BadZipFile, KeyError, NotImplementedError, RuntimeError, *BAD_HEADER) as error:
        raise ValueError(
            f"{path} is not a .npz file of numbers ({told(error)}); write one with numpy.savez"
        ) from None


def _member(pack: Any, name: str, size: int) -> "NDArray[Any]":
    with pack.open(name) as file:
        return _array_in(file, size)


def _array_in(file: Any, size: int) -> "NDArray[Any]":
    """Read an array of at most `size` bytes, header included, from the begin of `file`."""
    from numpy.lib import format as npy

    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = headers[npy.read_magic(file)](file)
    num_bytes, there = prod(shape) * dtype.itemsize, size - int(file.tell())
    if not dtype.hasobject and (min(shape, default=0) < 0 or num_bytes > there):
        raise ValueError(f"{there} bytes for shape {shown(shape)} of {dtype}")
    file.seek(0)
    found: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return found


def _num_bytes(file: Any) -> int:
    size: int = os.fstat(file.fileno()).st_size
    return size
