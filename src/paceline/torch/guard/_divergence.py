"""Compare digests over ranks, and say who differs in what."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import distributed as dist

from paceline.errors import DivergenceError
from paceline.torch.guard._checksum import Checksums
from paceline.torch.guard._replicated import Data, Facts, position, replicated_tensors
from paceline.torch.ranks import all_gather_bytes, device_of

NUM_NAMED = 4
RESUME = "go back to the last checkpoint; see docs/guard.md for the usual causes"
SAME = "start every rank from the same environment, data and configuration"


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
        who = f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
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


class Replicas:
    """What this rank must have in common with all ranks of `group`, and how that is checked.

    Args:
        model: As the training loop calls it.
        data: Loader or sampler; None to leave the plan out.
        ignore: Names of parameters and buffers that each rank keeps for itself.
        group: Ranks that train together.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data: Data | None,
        ignore: Collection[str],
        group: dist.ProcessGroup | None,
    ) -> None:
        self._model, self._data, self._ignore, self._group = model, data, ignore, group
        self._checksums = Checksums()
        self.ranks: list[int] = dist.get_process_group_ranks(group or dist.group.WORLD)

    def check_environment(self, facts: Facts) -> None:
        """Compare `facts` over ranks; all must call it.

        Raises:
            DivergenceError: On every rank alike; with what differs and both values.
        """
        everyone = self._gather(facts)
        odd = odd_ones({rank: _digest(facts) for rank, facts in everyone.items()})
        if odd is not None:
            raise DivergenceError(
                f"before the first step: {odd} in {_differences(everyone, odd)}; {SAME}"
            )

    def check(self, step: int) -> None:
        """Compare checksums of all replicated tensors and of the plan; all ranks must call it.

        Sends 16 bytes per rank; all checksums only if they differ.

        Raises:
            DivergenceError: On every rank alike.
        """
        names, sums = self._tensor_sums()
        place = position(self._data)
        total = int(self._checksums.of(sums)) if names else 0
        odd = odd_ones(self._gather_numbers(total, _digest(place)))
        if odd is None:
            return
        # A sum depends on all bits of a tensor, so the first name that differs is the tensor.
        own = {f"{name!r}": str(one) for name, one in zip(names, sums.tolist(), strict=True)}
        tensors, places = self._gather(own), self._gather(place)
        raise DivergenceError(f"after step {step}: {odd} in {_where(tensors, places, odd)}")

    def _tensor_sums(self) -> tuple[list[str], torch.Tensor]:
        """Return names and checksums, moved to the device on which the group talks."""
        named = list(replicated_tensors(self._model, self._ignore))
        device = device_of(self._group)
        sums = [self._checksums.of(tensor) for _, tensor in named]
        alike = {one.device for one in sums} <= {device}
        moved = sums if alike else [one.to(device) for one in sums]
        return [name for name, _ in named], torch.stack(moved) if moved else torch.zeros(0)

    def _gather_numbers(self, *numbers: int) -> dict[int, tuple[int, ...]]:
        own = torch.tensor(numbers, dtype=torch.int64, device=device_of(self._group))
        rows = [torch.empty_like(own) for _ in self.ranks]
        dist.all_gather(rows, own, group=self._group)
        return {rank: tuple(row.tolist()) for rank, row in zip(self.ranks, rows, strict=True)}

    def _gather(self, facts: Facts) -> dict[int, Facts]:
        blobs = all_gather_bytes(json.dumps(facts).encode(), self._group)
        return {rank: json.loads(blob) for rank, blob in zip(self.ranks, blobs, strict=True)}


def _where(tensors: Mapping[int, Facts], places: Mapping[int, Facts], odd: Odd) -> str:
    """Say in which tensor ranks differ, or else where in the data."""
    right = tensors[odd.reference]
    wrong = [name for name in right if any(tensors[r].get(name) != right[name] for r in odd.ranks)]
    if wrong:
        rest = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"parameter or buffer {wrong[0]}{rest} of {len(right)}; {RESUME}"
    return f"the plan of the data: {_differences(places, odd)}; {RESUME}"


def _differences(everyone: Mapping[int, Facts], odd: Odd) -> str:
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


def _digest(facts: Facts) -> int:
    text: Sequence[tuple[str, str]] = sorted(facts.items())
    digest = hashlib.blake2b(json.dumps(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
