"""Compare digests over ranks, and say who differs in what."""

from collections.abc import Collection, Mapping

import torch
from torch import distributed as dist

from paceline.errors import DivergenceError
from paceline.torch.guard._checksum import Checksums
from paceline.torch.guard._replicated import Data, position, replicated_tensors
from paceline.torch.ranks import (
    Facts,
    Odd,
    device_of,
    difference,
    differences,
    digest_of_facts,
    gather_facts,
    gather_numbers,
    odd_ones,
)

RESUME = "go back to the last checkpoint; see docs/guard.md for the usual causes"
SAME = "start every rank from the same environment, data and configuration"


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
        found = difference(facts, self._group)
        if found is not None:
            raise DivergenceError(f"before the first step: {found}; {SAME}")

    def check(self, step: int) -> None:
        """Compare checksums of all replicated tensors and of the plan; all ranks must call it.

        Sends 16 bytes per rank; all checksums only if they differ.

        Raises:
            DivergenceError: On every rank alike.
        """
        names, sums = self._tensor_sums()
        place = position(self._data)
        total = int(self._checksums.of(sums)) if names else 0
        odd = odd_ones(gather_numbers(self._group, total, digest_of_facts(place)))
        if odd is None:
            return
        # A sum depends on all bits of a tensor, so the first name that differs is the tensor.
        own = {f"{name!r}": str(one) for name, one in zip(names, sums.tolist(), strict=True)}
        tensors, places = (gather_facts(one, self._group) for one in (own, place))
        raise DivergenceError(f"after step {step}: {odd} in {_where(tensors, places, odd)}")

    def _tensor_sums(self) -> tuple[list[str], torch.Tensor]:
        """Return names and checksums, moved to the device on which the group talks."""
        named = list(replicated_tensors(self._model, self._ignore))
        device = device_of(self._group)
        sums = [self._checksums.of(tensor) for _, tensor in named]
        alike = {one.device for one in sums} <= {device}
        moved = sums if alike else [one.to(device) for one in sums]
        return [name for name, _ in named], torch.stack(moved) if moved else torch.zeros(0)


def _where(tensors: Mapping[int, Facts], places: Mapping[int, Facts], odd: Odd) -> str:
    """Say in which tensor ranks differ, or else where in the data."""
    right = tensors[odd.reference]
    wrong = [name for name in right if any(tensors[r].get(name) != right[name] for r in odd.ranks)]
    if wrong:
        rest = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"parameter or buffer {wrong[0]}{rest} of {len(right)}; {RESUME}"
    return f"the plan of the data: {differences(places, odd)}; {RESUME}"
