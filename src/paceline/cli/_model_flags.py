"""The flags that say what the model and its inputs are, for `estimate` and `collect`."""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paceline._files import shown
from paceline.errors import MissingExtraError

INTEGERS = ("int64", "int32")


@contextmanager
def needing(what: str, extras: str, otherwise: str = "") -> Iterator[None]:
    """Say which extras to install where an import inside fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        command = f"pip install 'paceline[{extras}]'"
        raise MissingExtraError(
            f"{what} needs {error.name}; install it with: {command}{otherwise}"
        ) from error


def add_model_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model", help="FILE.py:FUNCTION that returns a module, or a pair of it and an example input"
    )
    command.add_argument("--input-shape", help="of one example: 3,224,224, or 128:int64 for tokens")


def load_function(text: str) -> Callable[[], Any]:
    """Return the function that `FILE.py:FUNCTION` names; runs the file."""
    name, _, function = text.rpartition(":")
    path = Path(name)
    if not name.endswith(".py") or not function.isidentifier():
        raise ValueError(f"model must be FILE.py:FUNCTION such as train.py:build, got {text!r}")
    if not path.is_file():
        raise ValueError(f"cannot read {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise ValueError(f"cannot import {path}: {error}") from error
    finally:
        sys.path.pop(0)
    found = vars(module).get(function)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ValueError(
            f"{path} has no function {function!r}; it has {', '.join(names) or 'none'}"
        )
    build: Callable[[], Any] = found
    return build


def parse_shape(text: str | None) -> "tuple[tuple[int, ...] | None, str | None]":
    """Return the sizes and the integer type that `3,224,224` or `128:int64` stand for."""
    if text is None:
        return None, None
    sizes, _, kind = text.partition(":")
    try:
        shape = tuple(int(part) for part in sizes.split(",") if part.strip())
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or kind not in ("", *INTEGERS):
        raise ValueError(
            f"input-shape must be positive sizes such as 3,224,224, with :int64 for tokens, got "
            f"{shown(text)}"
        )
    return shape, kind or None


def example_input(text: str | None) -> "tuple[Any, tuple[int, ...] | None]":
    """Return example input and input shape, one of them or none, for `trace_workload`."""
    import torch

    shape, kind = parse_shape(text)
    if kind is None or shape is None:
        return None, shape
    return torch.zeros((1, *shape), dtype=getattr(torch, kind)), None
