"""Write and read the safetensors format a piece at a time, with a checksum per tensor.

The format is https://github.com/huggingface/safetensors: the length of a JSON header, the header,
the bytes of the tensors. Its library saves a file in one call and reads it through a memory map,
where a bad sector ends the process.
"""

import json
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from paceline._files import shown
from paceline.errors import CheckpointError

# For 16 MiB in one call, Linux took several times the processor time on ext4.
PIECE_BYTES = 1 << 20
ALIGNMENT = 8
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
}
NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write contiguous host tensors, and have them on disk.

    Returns:
        What `read_tensors` checks the file against, as plain values.
    """
    # As the library sorts them: what needs alignment comes first.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header = _header({name: tensors[name] for name in names})
    checksums = {}
    with path.open("wb") as file:
        header_checksum = write_pieces(file, memoryview(header))
        for name in names:
            checksums[name] = write_pieces(file, bytes_of(tensors[name]))
        num_bytes = file.tell()
        file.flush()
        os.fsync(file.fileno())
    return {
        "bytes": num_bytes,
        "header_bytes": len(header),
        "header_sha256": header_checksum,
        "tensors": {
            name: {**_kind(tensors[name]), "sha256": checksum}
            for name, checksum in checksums.items()
        },
    }


def read_tensors(path: Path, about: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor once its checksum was found to be right.

    Raises:
        CheckpointError: If the file is missing, too short or too long, or not what was written;
            names the file and the tensor.
    """
    try:
        with path.open("rb") as file:
            begin, header = _checked_header(path, file, about)
            for name, expected in about["tensors"].items():
                yield name, _checked_tensor(path, file, begin, name, header[name], expected)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous host tensor."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def write_pieces(file: BinaryIO, data: memoryview) -> str:
    """Write `data`, and return its checksum."""
    checksum = sha256()
    for begin in range(0, len(data), PIECE_BYTES):
        piece = data[begin : begin + PIECE_BYTES]
        checksum.update(piece)
        file.write(piece)
    return checksum.hexdigest()


def _read_pieces(file: BinaryIO, data: memoryview) -> str:
    """Fill `data`, and return its checksum."""
    checksum = sha256()
    for begin in range(0, len(data), PIECE_BYTES):
        piece = data[begin : begin + PIECE_BYTES]
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]  # of open("rb")
            break
        checksum.update(piece)
    return checksum.hexdigest()


def _kind(tensor: torch.Tensor) -> dict[str, Any]:
    return {"dtype": NAME_OF_DTYPE[tensor.dtype], "shape": list(tensor.shape)}


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    entries, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {**_kind(tensor), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // ALIGNMENT) * ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _checked_header(
    path: Path, file: BinaryIO, about: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Return where the header ends, and its entries."""
    num_bytes, header_bytes = _num_bytes(file), about["header_bytes"]
    if num_bytes != about["bytes"]:
        expected = shown(about["bytes"])
        raise CheckpointError(f"{path} has {num_bytes} bytes, but {expected} were written")
    if not 8 <= header_bytes <= num_bytes:  # Checked before memory is asked for.
        told = shown(header_bytes)
        raise CheckpointError(f"{path} has {num_bytes} bytes, and a header of {told}")
    raw = file.read(header_bytes)
    if sha256(raw).hexdigest() != about["header_sha256"]:
        raise CheckpointError(f"the header of {path} is not what was written")
    return header_bytes, json.loads(raw[8:])


def _checked_tensor(
    path: Path,
    file: BinaryIO,
    begin: int,
    name: str,
    entry: Mapping[str, Any],
    expected: Mapping[str, Any],
) -> torch.Tensor:
    first, end = entry["data_offsets"]
    dtype, shape = DTYPES[expected["dtype"]], expected["shape"]
    # Checked before memory is asked for.
    if not 0 <= first <= first + prod(shape) * dtype.itemsize == end <= _num_bytes(file) - begin:
        raise CheckpointError(f"the header of {path} and the index disagree about {name!r}")
    tensor = torch.empty(shape, dtype=dtype)
    file.seek(begin + first)
    if _read_pieces(file, bytes_of(tensor)) != expected["sha256"]:
        raise CheckpointError(f"tensor {name!r} in {path} is not what was written")
    return tensor


def _num_bytes(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
