"""Compare what ranks hold, and say who differs in what."""

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import distributed as dist

from paceline.torch.ranks._gather import all_gather_bytes, device_of
from paceline.torch.ranks._meeting import named

NUM_NAMED = 4
Facts = dict[str, str]


@dataclass(frozen=True, slots=True)
class Odd:
    """Which ranks of a group differ from which; ranks are global.

    Attributes:
        ranks: Those that differ.
        reference: A rank that is right, as far as a majority tells; else the group's first.
        is_majority: Whether more than half of the ranks agree.
    """

    ranks: tuple[int, ...]
    reference: int
    is_majority: bool

    def __str__(self) -> str:
        who = named(self.ranks)
        verb = "differ" if len(self.ranks) > 1 else "differs"
        if self.is_majority:
            return f"{who} {verb} from the other ranks"
        return f"{who} {verb} from rank {self.reference} (no majority says which is right)"


def odd_ones(values: Mapping[int, Hashable]) -> Odd | None:
    """Return which ranks differ from the majority, or from the first if there is none.

    Examples:
        >>> odd_ones({0: "a", 1: "b", 2: "b"})
        Odd(ranks=(0,), reference=1, is_majority=True)
        >>> odd_ones({0: "a", 1: "b"})
        Odd(ranks=(1,), reference=0, is_majority=False)
    """
    most_common, count = Counter(values.values()).most_common(1)[0]
    if count == len(values):
        return None
    is_majority = 2 * count > len(values)
    right = most_common if is_majority else next(iter(values.values()))
    reference = next(rank for rank, value in values.items() if value == right)
    return Odd(tuple(r for r, value in values.items() if value != right), reference, is_majority)


def difference(facts: Facts, group: dist.ProcessGroup | None) -> str | None:
    """Return who holds other facts, and which; None if all are alike. All ranks must call it.

    Sends 8 bytes per rank; all facts only if they differ.
    """
    digests = gather_numbers(group, digest_of_facts(facts))
    odd = odd_ones(digests)
    return None if odd is None else f"{odd} in {differences(gather_facts(facts, group), odd)}"


def differences(everyone: Mapping[int, Facts], odd: Odd) -> str:
    """Name what differs on the first odd rank, with both values."""
    rank = odd.ranks[0]
    found, right = everyone[rank], everyone[odd.reference]
    names = [name for name in (*right, *found) if found.get(name) != right.get(name)]
    names = list(dict.fromkeys(names))
    shown = [
        f"{name} (rank {rank}: {found.get(name, 'none')}, rank {odd.reference}: "
        f"{right.get(name, 'none')})"
        for name in names[:NUM_NAMED]
    ]
    return ", ".join([*shown, *[f"{len(names) - NUM_NAMED} more"] * (len(names) > NUM_NAMED)])


def digest_of_facts(facts: Facts) -> int:
    """Return a hash that fits into an int64, whatever the order of the facts."""
    text = json.dumps(sorted(facts.items())).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def gather_numbers(group: dist.ProcessGroup | None, *numbers: int) -> dict[int, tuple[int, ...]]:
    """Return the numbers of each rank, by global rank; all ranks must call it."""
    own = torch.tensor(numbers, dtype=torch.int64, device=device_of(group))
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    rows = [torch.empty_like(own) for _ in ranks]
    dist.all_gather(rows, own, group=group)
    return {rank: tuple(row.tolist()) for rank, row in zip(ranks, rows, strict=True)}


def gather_facts(facts: Facts, group: dist.ProcessGroup | None) -> dict[int, Facts]:
    """Return the facts of each rank, by global rank; all ranks must call it."""
    blobs = all_gather_bytes(json.dumps(facts).encode(), group)
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    return {rank: json.loads(blob) for rank, blob in zip(ranks, blobs, strict=True)}
