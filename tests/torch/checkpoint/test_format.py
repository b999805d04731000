"""A checkpoint is safetensors and JSON: what comes back is what was there, or an error."""

import json
import math
import random
import shutil
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from paceline.errors import CheckpointError
from paceline.torch import AsyncCheckpoint
from paceline.torch.checkpoint._safetensors import DTYPES
from paceline.torch.checkpoint._tree import decode, encode
from paceline.torch.checkpoint._whole import read_content, sealed, why_damaged

NUM_FLIPS = 200


def saved(folder: Path, state: dict[str, Any], *, step: int = 1) -> Path:
    with AsyncCheckpoint(folder) as checkpoint:
        return checkpoint.save(step, state).wait()


def small_state(value: float) -> dict[str, Any]:
    return {
        "weights": {"a": torch.full((3, 4), value), "b": torch.arange(5, dtype=torch.int16)},
        "flags": torch.tensor([True, False]),
        "step": 7,
    }


@pytest.mark.parametrize(
    "value",
    [
        {"n": None, "t": True, "i": -(10**30), "s": "\ud800 é\n", "f": 0.1 + 0.2},
        {0: 1, 1.5: 2, "0": 3, (0, "a", None): 4, True and 9: 5},
        [1, (2, [3, ()]), [], {}, ((),)],
        OrderedDict([("b", 1), ("a", OrderedDict())]),
        Counter({30: 1, 60: 2}),
        {"inf": math.inf, "low": -math.inf, "tiny": 5e-324},
        {"tensor": {"float": "1"}, "tuple": [{"dict": []}]},
    ],
)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    tree, tensors = encode(value)
    found = decode(json.loads(json.dumps(tree, allow_nan=False)), tensors)
    assert found == value
    assert repr(found) == repr(value)


def test_numbers_of_numpy_and_not_a_number_come_back() -> None:
    value = [np.float64(0.5), np.float32(math.pi), np.int16(-3), np.bool_(True), math.nan]
    found = decode(json.loads(json.dumps(encode(value)[0])), {})
    assert [type(one) for one in found] == [type(one) for one in value]
    assert found[:4] == value[:4]
    assert math.isnan(found[4])


def test_versions_of_modules_come_back() -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()
    assert decode(*encode(state))._metadata == state._metadata


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [0, {1}]}, r"state\['a'\]\[1\] is of type set, which is not saved"),
        ({"f": print}, r"state\['f'\] is of type builtin_function_or_method"),
        ({"p": Path()}, r"state\['p'\] is of type pathlib"),
        ({"n": np.zeros(2)}, r"state\['n'\] is of type numpy.ndarray"),
        ({"z": 1j}, r"state\['z'\] is of type complex"),
        ({b"k": 1}, "state has a key of type bytes; keys must be plain"),
        ({"d": {(1, b"k"): 1}}, r"state\['d'\] has a key of type bytes"),
        ({"c": torch.zeros(1, dtype=torch.complex128)}, r"state\['c'\] is a torch.Tensor of"),
        ({"s": torch.zeros(2, 2).to_sparse()}, r"state\['s'\] is a torch.Tensor .*sparse_coo"),
        ({"m": torch.zeros(1, device="meta")}, r"state\['m'\] is .* on meta"),
    ],
)
def test_what_is_not_saved_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(value)


def test_what_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="nested too deeply, or holds itself"):
        encode(value)


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    values = torch.arange(11)
    state: dict[str, Any] = {name: values.to(dtype) for name, dtype in DTYPES.items()}
    state |= {
        "scalar": torch.tensor(3, dtype=torch.int8),
        "none": torch.zeros(0, 3),
        "turned": torch.arange(6.0).view(2, 3).T,
        "__metadata__": torch.ones(1),
    }
    path = saved(tmp_path, state)
    found = read_content(path).state
    with safe_open(path / "tensors.safetensors", "pt") as file:
        assert set(file.keys()) == {*state, "__metadata__#2"} - {"__metadata__"}
        for name, tensor in state.items():
            theirs = file.get_tensor(name if name != "__metadata__" else "__metadata__#2")
            assert (theirs.dtype, theirs.shape) == (tensor.dtype, tensor.shape)
            bits = [one.contiguous().view(-1).view(torch.uint8) for one in (tensor, theirs)]
            assert torch.equal(*bits)
            assert torch.equal(bits[0], found[name].view(-1).view(torch.uint8))


def test_one_memory_is_written_once_and_stays_one(tmp_path: Path) -> None:
    shared = torch.ones(1000)
    path = saved(tmp_path, {"a": shared, "b": [shared.view(1000), shared[1:]]})
    assert (path / "tensors.safetensors").stat().st_size < 2.2 * shared.nbytes
    found = read_content(path).state
    assert found["a"] is found["b"][0]
    assert found["b"][1].shape == (999,)


def test_no_flipped_bit_loads(tmp_path: Path) -> None:
    path = saved(tmp_path, small_state(1.0))
    files = sorted(path.iterdir())
    assert [file.name for file in files] == ["index.json", "tensors.safetensors"]
    places = [(file, at) for file in files for at in range(file.stat().st_size)]
    header_bytes = json.loads((path / "index.json").read_text())["header_bytes"]
    # Every byte of the header and of the data of this small file, and many of the index.
    drawn = [place for place in places if place[0].name != "index.json"]
    drawn += random.Random(0).sample(places, NUM_FLIPS)
    assert len(drawn) > header_bytes + NUM_FLIPS
    for file, at in drawn:
        raw = file.read_bytes()
        flipped = bytearray(raw)
        flipped[at] ^= 1 << random.Random(at).randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=file.name):
            read_content(path)
        assert file.name in str(why_damaged(path))
        file.write_bytes(raw)
    assert why_damaged(path) is None


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "missing"])
@pytest.mark.parametrize("name", ["index.json", "tensors.safetensors"])
def test_a_damaged_file_is_named_and_nothing_is_changed(
    tmp_path: Path, damage: str, name: str
) -> None:
    older = saved(tmp_path, small_state(1.0), step=1)
    file = saved(tmp_path, small_state(2.0), step=2) / name
    raw = file.read_bytes()
    file.write_bytes({"cut": raw[:-3], "longer": raw + b"\0", "empty": b""}.get(damage, raw))
    if damage == "missing":
        file.unlink()
    here = small_state(0.0)
    with AsyncCheckpoint(tmp_path) as checkpoint:
        with pytest.raises(CheckpointError, match=rf"step_00000002/{name}.*") as caught:
            checkpoint.load(here)
        assert f"{older} is older and whole" in str(caught.value)
        assert here["weights"]["a"].sum() == 0
        checkpoint.load(here, older)
    assert here["weights"]["a"].sum() == 12


def test_the_damaged_tensor_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": {"layer.weight": torch.full((4,), 2.0)}})
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x41")
    message = r"tensor 'model.layer.weight' in .*; no older checkpoint is whole"
    with AsyncCheckpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=message):
        checkpoint.load({"model": {"layer.weight": torch.zeros(4)}})


def test_another_version_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path, small_state(1.0))
    index = path / "index.json"
    body = json.loads(index.read_text())
    del body["sha256"]
    index.write_bytes(sealed(body))
    assert why_damaged(path) is None
    index.write_bytes(sealed({**body, "version": 2}))
    with pytest.raises(CheckpointError, match="is of version 2, and this Paceline reads 1"):
        read_content(path)


@pytest.mark.parametrize(
    "change",
    [
        {"tree": {"set": []}},
        {"tree": {"tensor": "nowhere"}},
        {"tree": {"dict": [[[], 1]]}},
        {"tree": 3, "tensors": {"flags": {"dtype": "U8", "shape": [10**15], "sha256": ""}}},
        {"tree": 3, "tensors": {"flags": {"dtype": "U8", "shape": [-1, -2], "sha256": ""}}},
        {"tree": 3, "tensors": {"flags": {"dtype": "Q8", "shape": [2], "sha256": ""}}},
        {"tree": {"numpy": ["object", 1]}},
        {"tensors": []},
        {"header_bytes": "8"},
    ],
)
def test_an_index_that_was_made_up_is_an_error_and_runs_nothing(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = saved(tmp_path, small_state(1.0))
    index = path / "index.json"
    body = json.loads(index.read_text())
    del body["sha256"]
    index.write_bytes(sealed({**body, **change}))
    with pytest.raises(CheckpointError):
        read_content(path)
    index.write_bytes(b"null")
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        read_content(path)
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_content(path)
