"""A small corpus of ragged examples, the same for every test."""

import numpy as np
import pytest

from paceline.demo._corpus import Corpus
from paceline.demo._data import TextDataset


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    random = np.random.default_rng(0)
    sizes = random.integers(30, 200, size=131)
    sizes[7] = 3000  # longer than the model's context
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Corpus(random.integers(256, size=offsets[-1]).astype(np.uint8), offsets)


@pytest.fixture(scope="session")
def dataset(corpus: Corpus) -> TextDataset:
    return TextDataset(corpus)
