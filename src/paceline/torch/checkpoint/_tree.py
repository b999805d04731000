"""Turn nested plain values into JSON that refers to tensors, and back.

No pickle: what is read can build plain values, and nothing else.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import torch

from paceline.torch.checkpoint._safetensors import NAME_OF_DTYPE

PLAIN = (type(None), bool, int, str)
NUMBERS = "biuf"  # What NumPy calls booleans, integers and floating-point numbers.
KEYS = (*PLAIN, float, tuple)
MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
MAKES = {name: kind for kind, name in MAPPINGS.items()}


def encode(value: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return `value` as JSON, and its tensors by the names that stand for them there.

    Plain values, NumPy numbers, lists, tuples and mappings come back as they were. Tensors that
    are one and the same part of memory get one name.

    Raises:
        ValueError: If it holds anything else; names where, and of which type.
    """
    encoder = _Encoder()
    try:
        return encoder.encode(value, ()), encoder.tensors
    except RecursionError:
        raise ValueError("the state is nested too deeply, or holds itself") from None


def decode(found: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what `encode` was given.

    Raises:
        KeyError, TypeError, ValueError: If `found` is not what `encode` returns.
    """
    if isinstance(found, (*PLAIN, float)):
        return found
    if isinstance(found, list):
        return [decode(one, tensors) for one in found]
    if not found:
        raise ValueError("an empty object stands for nothing")
    kind, content = next(iter(found.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(decode(content, tensors))
    if kind == "numpy" and np.dtype(content[0]).kind in NUMBERS:
        return np.dtype(content[0]).type(decode(content[1], tensors))
    return _mapping(MAKES[kind], found, content, tensors)


def _mapping(kind: type, found: Any, content: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    made = kind()
    for key, value in content:
        made[decode(key, tensors)] = decode(value, tensors)
    if "metadata" in found:
        made._metadata = decode(found["metadata"], tensors)
    return made


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._name_of: dict[Any, str] = {}

    def encode(self, value: Any, path: tuple[Any, ...]) -> Any:
        if type(value) in PLAIN:
            return value
        if type(value) is float:
            return value if isfinite(value) else {"float": repr(value)}
        if isinstance(value, torch.Tensor):
            return {"tensor": self._name(value, path)}
        if type(value) is list:
            return [self.encode(one, (*path, place)) for place, one in enumerate(value)]
        if type(value) is tuple:
            return {"tuple": self.encode(list(value), path)}
        if type(value) in MAPPINGS:
            return self._mapping(value, path)
        return self._number(value, path)

    def _mapping(self, value: Any, path: tuple[Any, ...]) -> dict[str, Any]:
        pairs = [
            [self._key(key, path), self.encode(one, (*path, key))] for key, one in value.items()
        ]
        found: dict[str, Any] = {MAPPINGS[type(value)]: pairs}
        if hasattr(value, "_metadata"):  # Versions of modules, which `load_state_dict` reads.
            found["metadata"] = self.encode(value._metadata, (*path, "_metadata"))
        return found

    def _key(self, key: Any, path: tuple[Any, ...]) -> Any:
        for one in key if type(key) is tuple else (key,):
            if type(one) not in KEYS:
                raise ValueError(
                    f"{_place(path)} has a key of type {_type_name(one)}; keys must be plain "
                    "values or tuples of them"
                )
        return self.encode(key, (*path, "key"))

    def _number(self, value: Any, path: tuple[Any, ...]) -> dict[str, Any]:
        is_number = isinstance(value, np.generic) and value.dtype.kind in NUMBERS
        if not is_number or value.dtype.itemsize > 8:
            raise ValueError(
                f"{_place(path)} is of type {_type_name(value)}, which is not saved; make it of "
                "numbers, text, None, tensors, lists, tuples and dictionaries"
            )
        return {"numpy": [value.dtype.str, self.encode(value.item(), path)]}

    def _name(self, tensor: torch.Tensor, path: tuple[Any, ...]) -> str:
        _check_tensor(tensor, path)
        memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.device
        key = (*memory, tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._name_of:
            plain = name = ".".join(map(str, path))
            count = 1
            while name in self.tensors or name == "__metadata__":  # Which safetensors reserves.
                count += 1
                name = f"{plain}#{count}"
            self._name_of[key] = name
            self.tensors[name] = tensor.detach()
        return self._name_of[key]


def _check_tensor(tensor: torch.Tensor, path: tuple[Any, ...]) -> None:
    is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    is_there = tensor.layout is torch.strided and not tensor.is_meta
    if not (is_plain and is_there and tensor.dtype in NAME_OF_DTYPE):
        raise ValueError(
            f"{_place(path)} is a {_type_name(tensor)} of {tensor.dtype}, {tensor.layout}, on "
            f"{tensor.device}; only plain dense tensors of types that safetensors has are saved"
        )


def _place(path: tuple[Any, ...]) -> str:
    return "state" + "".join(f"[{part!r}]" for part in path)


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
