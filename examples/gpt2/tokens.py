"""Turn documents into tokens: bytes, or byte-pair encoding."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from corpus import documents_in
from numpy.typing import NDArray

END_OF_TEXT = "<|endoftext|>"
# Enough to learn merges from; the rest of the text is only encoded.
MAX_TRAINING_CHARS = 50_000_000


class Tokenizer(Protocol):
    """What `prepare.py` needs of a tokenizer."""

    vocab_size: int
    end_of_text: int
    digest: str

    def encode(self, documents: Sequence[str]) -> list[NDArray[Any]]:
        """Return the tokens of each document, without the end of text."""


class ByteTokenizer:
    """One token per byte of UTF-8; needs no training and no package."""

    vocab_size, end_of_text, digest = 257, 256, "bytes"

    def encode(self, documents: Sequence[str]) -> list[NDArray[Any]]:
        """Return the bytes of each document."""
        return [np.frombuffer(document.encode(), dtype=np.uint8) for document in documents]


class BytePairTokenizer:
    """What a `tokenizer.json` of the `tokenizers` package says."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = _tokenizers().Tokenizer.from_file(str(path))
        end_of_text = self._tokenizer.token_to_id(END_OF_TEXT)
        if end_of_text is None:
            raise ValueError(f"{path} has no token {END_OF_TEXT}, which ends a document")
        self.end_of_text: int = end_of_text
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    def encode(self, documents: Sequence[str]) -> list[NDArray[Any]]:
        """Return the tokens of each document."""
        encoded = self._tokenizer.encode_batch(list(documents), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.uint32) for one in encoded]


def tokenizer_for(
    name: str, folder: Path, sources: Sequence[Path], *, vocab_size: int, separator: str | None
) -> Tokenizer:
    """Return the tokenizer `name`: "bytes", "bpe", or the path of a `tokenizer.json`.

    "bpe" is trained once, and kept in `folder`.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name != "bpe":
        if not Path(name).is_file():
            raise ValueError(f"--tokenizer must be bytes, bpe or a tokenizer.json, got {name!r}")
        return BytePairTokenizer(Path(name))
    path = folder / "tokenizer.json"
    if not path.exists():
        _train(path, _sample(sources, separator), vocab_size)
    return BytePairTokenizer(path)


def _train(path: Path, documents: Iterator[str], vocab_size: int) -> None:
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    partial = path.with_suffix(".partial")
    tokenizer.save(str(partial))
    partial.replace(path)


def _sample(sources: Sequence[Path], separator: str | None) -> Iterator[str]:
    """Yield documents of files in a fixed random order, so that all parts are seen."""
    left = MAX_TRAINING_CHARS
    for index in np.random.default_rng(0).permutation(len(sources)):
        for document in documents_in(sources[index], separator):
            yield document
            left -= len(document)
        if left <= 0:
            return


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ValueError(
            "byte-pair encoding needs the package tokenizers; install it with: pip install "
            "tokenizers, or pass --tokenizer bytes"
        ) from error
    return tokenizers
