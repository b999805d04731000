"""Ragged examples: real text, real lengths of speech, and images of mixed resolutions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline.demo import Corpus, standard_library_functions

SPEECH = Path("../shared/sizes/librispeech100_20ms.npy")
# What an encoder with fourfold subsampling makes of frames of 20 ms.
SUBSAMPLING, PATCH, IMAGE_SIDES = 4, 16, (96, 480)
DATA = {
    "text": "functions of Python's standard library, in bytes",
    "speech": "lengths of LibriSpeech train-clean-100 in frames of 80 ms, contents random",
    "vision": "patches of 16 x 16 of images with sides drawn log-uniformly from 96 to 480, random",
}


def ragged_corpus(name: str, num_examples: int) -> Corpus:
    """Return the first `num_examples` examples of one of `DATA`."""
    if name == "text":
        whole = standard_library_functions(budget_s=10.0)
        offsets = whole.offsets[: num_examples + 1]
        return replace(whole, text=whole.text[: offsets[-1]], offsets=offsets)
    random = np.random.default_rng(0)
    sizes = _speech(random) if name == "speech" else _vision(random, num_examples)
    offsets = np.concatenate([[0], np.cumsum(sizes[:num_examples])])
    text = random.integers(0, 256, offsets[-1]).astype(np.uint8)
    return Corpus(text=text, offsets=offsets)


def _speech(random: np.random.Generator) -> NDArray[np.int64]:
    frames = random.permutation(np.load(SPEECH))
    sizes: NDArray[np.int64] = np.maximum(frames // SUBSAMPLING, 2).astype(np.int64)
    return sizes


def _vision(random: np.random.Generator, num_examples: int) -> NDArray[np.int64]:
    low, high = np.log(IMAGE_SIDES).tolist()
    sides = np.exp(random.uniform(low, high, size=(num_examples, 2)))
    sizes: NDArray[np.int64] = np.ceil(sides / PATCH).astype(np.int64).prod(axis=1)
    return sizes
