"""The random states of one rank: of torch, of Python's `random`, of NumPy's global generator."""

import random
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch

WORD = np.dtype("<u4")


def random_state() -> dict[str, Any]:
    """Return the states of this process as plain values; CUDA's of the current device, if used."""
    version, words, next_gauss = random.getstate()
    # The legacy generator is the one that `np.random.rand` and its like use.
    kind, key, *rest = np.random.get_state()  # noqa: NPY002
    if kind != "MT19937":
        raise ValueError(f"NumPy's global generator is {kind}; only its own, MT19937, is saved")
    has_cuda = torch.cuda.is_initialized()
    return {
        "torch": _text(torch.get_rng_state().numpy()),
        "cuda": _text(torch.cuda.get_rng_state().numpy()) if has_cuda else None,
        "python": [version, _text(np.array(words, WORD)), next_gauss],
        "numpy": [_text(np.asarray(key, WORD)), *rest],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set what `random_state` returned."""
    torch.set_rng_state(_tensor(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(state["cuda"]))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(_words(words).tolist()), next_gauss))
    key, *rest = state["numpy"]
    np.random.set_state(("MT19937", _words(key), *rest))  # noqa: NPY002


def state_of_rank(rank: int, saved: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | int:
    """Return what `rank` had; for a rank that is new, a seed from rank 0's and its number."""
    if rank < len(saved):
        return saved[rank]
    text = f"{saved[0]['torch']} {rank}"
    return int.from_bytes(sha256(text.encode()).digest()[:4], "little")


def restore(state: Mapping[str, Any] | int) -> None:
    """Set what `state_of_rank` returned."""
    if isinstance(state, int):
        torch.manual_seed(state)
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
    else:
        set_random_state(state)


def _text(array: np.ndarray[Any, Any]) -> str:
    return b64encode(array.tobytes()).decode()


def _words(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(b64decode(text), WORD)


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(b64decode(text)), dtype=torch.uint8)
