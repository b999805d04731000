"""What each rank trains on in each step: packed sequences, or ragged documents.

Which global batch comes in which step depends on the seed and the step alone, not on the number
of ranks, so one rank that accumulates sees what many ranks see at once, and what is resumed
goes on exactly.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol

import numpy as np
import torch
from model import IGNORED
from numpy.typing import NDArray
from shards import Manifest, Split, array_path
from torch.utils.data import Dataset

import paceline
from paceline.balance import BalanceConfig, EpochPlan
from paceline.cost import LinearCost, QuadraticCost
from paceline.errors import StateMismatchError
from paceline.torch import Replica


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of one rank; shapes `(batch, time)`."""

    inputs: torch.Tensor
    targets: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Targets that count."""
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; the host does not wait for the copy."""
        if device.type == "cpu":
            return self
        inputs, targets = (
            tensor.pin_memory().to(device, non_blocking=True)
            for tensor in (self.inputs, self.targets)
        )
        return Batch(inputs, targets)


@dataclass(frozen=True, slots=True)
class Step:
    """What one rank needs for one optimizer step.

    Attributes:
        batches: Its micro-batches.
        num_tokens: Predicted tokens of the global batch, all ranks together.
        num_pairs: Squared lengths of its sequences, summed.
    """

    batches: list[Batch]
    num_tokens: int
    num_pairs: int


class Feed(Protocol):
    """An endless stream of steps that can be saved and resumed."""

    def steps(self) -> Iterator[Step]:
        """Yield this rank's part of each step, from where the stream stands."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, equal on all ranks: what was yielded so far."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream stood."""


class Corpus:
    """One split of the shards, mapped into memory.

    Raises:
        ValueError: If `prepare.py` was not run, or not to its end.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        found = Manifest.load(folder)
        if found is None or not found.is_complete:
            state = "holds no shards" if found is None else "is not finished"
            raise ValueError(f"{folder} {state}; run: python prepare.py --out {folder}")
        self.manifest = found
        self._folder, self._split = folder, split
        numbers = range(len(found.shards))
        self.tokens = [self._load(number, "tokens") for number in numbers]
        self.documents = [self._load(number, "documents") for number in numbers]
        for number in numbers:
            self._check(number)

    def _load(self, number: int, what: str) -> NDArray[Any]:
        path = array_path(self._folder, self._split, number, what)
        if not path.exists():
            raise ValueError(f"{path} is missing; run prepare.py again, which makes it anew")
        try:
            # Mapped, so a header that lies about the size is an error and takes no memory.
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError, OverflowError, SyntaxError, TokenError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}); run prepare.py again, which makes "
                "it anew"
            ) from error
        return array

    def _check(self, number: int) -> None:
        """Raise a `ValueError` unless documents lie one behind the other in the tokens."""
        tokens, offsets = self.tokens[number], self.documents[number]
        whole = tokens.ndim == offsets.ndim == 1 and tokens.dtype.kind == "u" and offsets.size
        whole = whole and offsets.dtype == np.int64 and not offsets[0]
        expected = self.manifest.shards[number].num_tokens[self._split]
        if not whole or len(tokens) != expected or offsets[-1] != expected:
            raise ValueError(self._damaged(number))
        if (np.diff(offsets) < 1).any():
            raise ValueError(self._damaged(number))

    def _damaged(self, number: int) -> str:
        path = array_path(self._folder, self._split, number, "tokens")
        return (
            f"{path} or its documents are not what the manifest says; run prepare.py again, which "
            "makes them anew"
        )


class Sequences(Dataset[NDArray[np.int64]]):
    """Pieces of the corpus; an example of `n` predicted tokens has `n + 1` tokens.

    Attributes:
        sizes: Predicted tokens of each. Shape `(num_examples,)`.
    """

    def __init__(
        self, corpus: Corpus, shard: NDArray[np.int64], begin: NDArray[np.int64], sizes: Any
    ) -> None:
        self._tokens, self._shard, self._begin = corpus.tokens, shard, begin
        self.sizes: NDArray[np.int64] = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        begin = self._begin[index]
        tokens = self._tokens[self._shard[index]]
        return np.asarray(tokens[begin : begin + self.sizes[index] + 1], dtype=np.int64)


def packed(corpus: Corpus, context: int) -> Sequences:
    """Cut each shard into sequences of `context`, across documents; the rest is left out."""
    counts = [max(0, len(tokens) - 1) // context for tokens in corpus.tokens]
    begin = np.concatenate([np.arange(count) * context for count in counts])
    shard = np.repeat(np.arange(len(counts)), counts)
    return Sequences(corpus, shard, begin, np.full(len(begin), context))


def documents(corpus: Corpus, context: int) -> Sequences:
    """Return the documents; those longer than `context` come in pieces, one example each."""
    parts = [_pieces(offsets, context) for offsets in corpus.documents]
    shard = np.repeat(np.arange(len(parts)), [len(begin) for begin, _ in parts])
    begin, sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Sequences(corpus, shard, begin, sizes)


def _pieces(offsets: NDArray[np.int64], context: int) -> tuple[NDArray[np.int64], ...]:
    """Return begin and predicted tokens of each piece; its last token begins the next."""
    num_predicted = np.diff(offsets) - 1
    counts = -(-num_predicted // context)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = np.repeat(offsets[:-1], counts) + number * context
    return begin, np.minimum(context, np.repeat(offsets[1:] - 1, counts) - begin)


def collate(examples: Sequence[NDArray[np.int64]]) -> Batch:
    """Pad behind the text, where causal attention does not look, and let padding not count."""
    longest = max(map(len, examples))
    tokens = np.full((len(examples), longest), IGNORED)
    for row, example in zip(tokens, examples, strict=True):
        row[: len(example)] = example
    inputs, targets = torch.from_numpy(tokens[:, :-1]), torch.from_numpy(tokens[:, 1:])
    return Batch(inputs.clamp(min=0), targets.contiguous())


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a feed is cut by: the global batch, and this rank's part of it."""

    batch_size: int
    num_microbatches: int
    rank: int
    num_ranks: int
    seed: int


class PackedFeed:
    """Sequences of one length, equally many per rank."""

    def __init__(self, sequences: Sequences, share: Share) -> None:
        _check_enough(sequences, share)
        self._sequences, self._share, self._num_steps = sequences, share, 0
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def steps(self) -> Iterator[Step]:
        """Yield this rank's part of each step, from where the stream stands."""
        while True:
            share, sizes = self._share, self._sequences.sizes
            chosen = self._global_batch()
            mine = chosen.reshape(share.num_microbatches, share.num_ranks, -1)[:, share.rank]
            batches = [collate([self._sequences[i] for i in part.tolist()]) for part in mine]
            self._num_steps += 1
            yield Step(batches, int(sizes[chosen].sum()), int((sizes[chosen] ** 2).sum()))

    def _global_batch(self) -> NDArray[np.int64]:
        size = self._share.batch_size
        epoch, number = divmod(self._num_steps, len(self._sequences) // size)
        if epoch != self._epoch:
            random = np.random.default_rng([self._share.seed, epoch])
            self._epoch, self._order = epoch, random.permutation(len(self._sequences))
        return self._order[number * size : (number + 1) * size]

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps were yielded."""
        return {"num_steps": self._num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream stood."""
        if set(state) != {"num_steps"}:
            raise StateMismatchError("the checkpoint was trained on documents; pass --documents")
        self._num_steps = state["num_steps"]


class DocumentFeed:
    """Ragged documents, shared out so that all ranks finish together, or by count alone.

    Both ways see the same global batches. The loss is to be divided by the tokens of the global
    batch, which every rank reads from the plan, so it is exact however ragged the parts are.
    """

    def __init__(self, sequences: Sequences, share: Share, *, width: int, balanced: bool) -> None:
        _check_enough(sequences, share)
        self._sizes = sequences.sizes
        # To the plain way all documents are alike, so it shares them out by number.
        cost = QuadraticCost(6.0 * width, 1.0) if balanced else LinearCost(0.0, fixed=1.0)
        config = BalanceConfig(
            batch_size=share.batch_size,
            counts="free" if balanced else "equal",
            padded=True,
            num_microbatches=share.num_microbatches,
            tail="drop",
            seed=share.seed,
        )
        replica = Replica(rank=share.rank, num_replicas=share.num_ranks)
        self._batches = paceline.BalancedBatchSampler(
            sequences.sizes, config, cost=cost, process_group=replica
        )
        self._loader = paceline.DataLoader(
            sequences, batch_sampler=self._batches, collate_fn=collate, with_info=True
        )

    def steps(self) -> Iterator[Step]:
        """Yield this rank's part of each step, from where the stream stands."""
        while True:
            self._batches.set_epoch(self._batches.epoch)
            plan, number = self._batches.plan, self._batches.cursor.num_steps
            batches: list[Batch] = []
            for batch, info in self._loader:
                batches.append(batch)
                if info.is_step_end:
                    yield self._step(plan, number, batches)
                    batches, number = [], number + 1

    def _step(self, plan: EpochPlan, number: int, batches: list[Batch]) -> Step:
        begin, end = plan.micro_offsets[plan.step_offsets[[number, number + 1]]]
        sizes = self._sizes[plan.examples[begin:end]]
        return Step(batches, int(sizes.sum()), int((sizes**2).sum()))

    def state_dict(self) -> dict[str, Any]:
        """Return what the loader has delivered, in whole steps."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream stood, also on another number of ranks."""
        self._loader.load_state_dict(state)


def _check_enough(sequences: Sequences, share: Share) -> None:
    if len(sequences) < share.batch_size:
        raise ValueError(
            f"--batch-size ({share.batch_size}) must not exceed the {len(sequences)} examples "
            "there are; prepare more text, or pass a smaller one"
        )
