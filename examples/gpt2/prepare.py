"""Turn text files into shards of tokens that `train.py` maps into memory.

Without inputs it takes the source of Python's own standard library. What is interrupted goes
on where it was, by the same command: shards that are whole are kept.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from corpus import documents_in, find_sources, sources_digest
from numpy.typing import NDArray
from shards import SPLITS, Manifest, Shard, Split, whole_shards, write_part
from tokens import Tokenizer, tokenizer_for

Documents = dict[Split, list[NDArray[Any]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    flags = _flags().parse_args(argv)
    try:
        manifest, num_kept = prepare(flags)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    report = _report(flags.out, manifest, num_kept)
    print(json.dumps(report) if flags.json else _sentence(report))
    return 0


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="text files, or folders of them")
    add("--out", type=Path, default=Path("gpt2-data"), help="folder for the shards (%(default)s)")
    add("--tokenizer", default="bytes", help="bytes, bpe, or a tokenizer.json (%(default)s)")
    add("--vocab-size", type=int, default=8192, help="of a new bpe tokenizer (%(default)s)")
    add("--separator", help="text between two documents of a file; unset: see docs/gpt2.md")
    add("--shard-tokens", type=int, default=4_000_000, help="least tokens (%(default)s)")
    add("--validation", type=float, default=0.02, help="share of documents (%(default)s)")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def prepare(flags: argparse.Namespace) -> tuple[Manifest, int]:
    """Write the shards that are missing; return the manifest and how many were kept.

    Raises:
        ValueError: If a flag is out of range, nothing is found, or the folder holds shards that
            were made from other text or with other settings.
    """
    _check(flags)
    sources = find_sources(flags.inputs)
    flags.out.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_for(
        flags.tokenizer,
        flags.out,
        sources,
        vocab_size=flags.vocab_size,
        separator=flags.separator,
    )
    manifest = _begun(flags, sources, tokenizer)
    num_kept = len(manifest.shards)
    begin = manifest.shards[-1].end_source if manifest.shards else 0
    filled = _shards(sources, begin, tokenizer, flags)
    for number, (end, documents) in enumerate(filled, start=num_kept):
        manifest.shards.append(_write(flags.out, number, end, documents, tokenizer.vocab_size))
        manifest.save(flags.out)
    manifest.is_complete = True
    manifest.save(flags.out)
    return manifest, num_kept


def _check(flags: argparse.Namespace) -> None:
    if flags.vocab_size < 257:
        raise ValueError(f"--vocab-size must be at least 257, got {flags.vocab_size}")
    if flags.shard_tokens < 1:
        raise ValueError(f"--shard-tokens must be positive, got {flags.shard_tokens}")
    if not 0 < flags.validation < 1:
        raise ValueError(f"--validation must lie between 0 and 1, got {flags.validation}")
    if flags.separator == "":
        raise ValueError("--separator must not be empty; leave it unset to keep files whole")


def _begun(flags: argparse.Namespace, sources: list[Path], tokenizer: Tokenizer) -> Manifest:
    """Return what an earlier run left, less what is not whole; else an empty manifest."""
    settings = {
        "sources": sources_digest(sources),
        "tokenizer": tokenizer.digest,
        "separator": flags.separator,
        "shard_tokens": flags.shard_tokens,
        "validation": flags.validation,
    }
    found = Manifest.load(flags.out)
    if found is None:
        return Manifest(settings=settings, vocab_size=tokenizer.vocab_size)
    changed = [name for name in settings if found.settings.get(name) != settings[name]]
    if changed:
        listed = ", ".join(
            f"{name} was {found.settings.get(name)!r} and is {settings[name]!r}" for name in changed
        )
        raise ValueError(
            f"{flags.out} holds shards made otherwise: {listed}; pass another --out, or remove it"
        )
    found.shards = whole_shards(flags.out, found.shards)
    found.is_complete = False
    return found


def _shards(
    sources: list[Path], begin: int, tokenizer: Tokenizer, flags: argparse.Namespace
) -> Iterator[tuple[int, Documents]]:
    """Yield the documents of each shard, with the source that the next one begins with."""
    documents: Documents = {split: [] for split in SPLITS}
    num_tokens = 0
    for index in range(begin, len(sources)):
        texts = documents_in(sources[index], flags.separator)
        for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
            documents[_split_of(text, flags.validation)].append(
                np.append(tokens.astype(np.uint32), np.uint32(tokenizer.end_of_text))
            )
            num_tokens += len(tokens) + 1
        if num_tokens >= flags.shard_tokens:
            yield index + 1, documents
            documents, num_tokens = {split: [] for split in SPLITS}, 0
    if num_tokens:
        yield len(sources), documents


def _split_of(text: str, share: float) -> Split:
    """Choose by the text itself, so that copies of a document come to the same side."""
    return "validation" if zlib.crc32(text.encode()) < share * 2**32 else "train"


def _write(folder: Path, number: int, end: int, documents: Documents, vocab_size: int) -> Shard:
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    return Shard(
        end_source=end,
        num_tokens={split: sum(map(len, documents[split])) for split in SPLITS},
        num_documents={split: len(documents[split]) for split in SPLITS},
        checksum={
            split: write_part(folder, split, number, documents[split], dtype) for split in SPLITS
        },
    )


def _report(folder: Path, manifest: Manifest, num_kept: int) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "vocab_size": manifest.vocab_size,
        "num_shards": len(manifest.shards),
        "num_kept": num_kept,
        "num_tokens": {split: manifest.total("num_tokens", split) for split in SPLITS},
        "num_documents": {split: manifest.total("num_documents", split) for split in SPLITS},
        "digest": manifest.digest,
    }


def _sentence(report: dict[str, Any]) -> str:
    lines = [
        f"{report['folder']}: {report['num_shards']} shards, of which {report['num_kept']} were "
        f"there already; a vocabulary of {report['vocab_size']:,} tokens"
    ]
    for split in SPLITS:
        lines.append(
            f"{split:>10}: {report['num_tokens'][split]:,} tokens in "
            f"{report['num_documents'][split]:,} documents"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
