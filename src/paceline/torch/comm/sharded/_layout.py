"""Who owns which part of which parameter, and how owned parts lie in a collective's buffer.

A parameter is cut into segments of a fixed length, and each segment into one part per rank.
That does not depend on the plan: a plan only says which segments are sent together, so it may
change at any step and the optimizer's state stays where it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from paceline.torch.comm.transfer import Payload, Piece

# Plans cut a parameter at multiples of this; 1 MiB of float32.
SEGMENT_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True)
class Segment:
    """Elements `[begin, end)` of one flattened parameter; rank `r` owns the `r`-th `width` of them.

    The last parts may be shorter or empty.
    """

    tensor: int
    begin: int
    end: int
    width: int

    def part(self, rank: int) -> tuple[int, int]:
        """Return the elements of the parameter that `rank` owns."""
        begin = min(self.begin + rank * self.width, self.end)
        return begin, min(begin + self.width, self.end)


@dataclass(frozen=True, slots=True)
class ShardPayload:
    """What one reduce-scatter and one all-gather carry: segments of one dtype on one device.

    The buffer is a matrix with a row per rank; a row holds that rank's parts one after
    another, each padded to the width of its segment.
    """

    block: int
    segments: tuple[Segment, ...]

    @property
    def width(self) -> int:
        """Elements of a row."""
        return sum(segment.width for segment in self.segments)

    @property
    def tensors(self) -> list[int]:
        """The parameters, each once."""
        return list(dict.fromkeys(segment.tensor for segment in self.segments))

    def columns(self) -> Iterator[tuple[Segment, int]]:
        """Yield each segment and the column of a row at which its parts begin."""
        begin = 0
        for segment in self.segments:
            yield segment, begin
            begin += segment.width


class ShardLayout:
    """Cuts parameters into segments, the same on all ranks.

    Args:
        parameters: All that are trained.
        num_ranks: Ranks that share them.
        segment_elements: Length of a segment; the last of a parameter may be shorter.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        num_ranks: int,
        *,
        segment_elements: int = SEGMENT_ELEMENTS,
    ) -> None:
        self._numels = [parameter.numel() for parameter in parameters]
        self._length, self._num_ranks = segment_elements, num_ranks

    def segments_of(self, tensor: int) -> list[Segment]:
        """Return all segments of one parameter."""
        return self._between(tensor, 0, self._numels[tensor])

    def payloads(self, payloads: Iterable[Payload]) -> list[ShardPayload]:
        """Round the cuts of `payloads` to segments; those that become empty are left out."""
        rounded = [
            ShardPayload(payload.block, tuple(self._segments(payload.pieces)))
            for payload in payloads
        ]
        return [payload for payload in rounded if payload.segments]

    def _segments(self, pieces: Iterable[Piece]) -> Iterable[Segment]:
        for piece in pieces:
            begin, end = (self._rounded(piece.tensor, cut) for cut in (piece.begin, piece.end))
            yield from self._between(piece.tensor, begin, end)

    def _rounded(self, tensor: int, cut: int) -> int:
        """Round to the nearest border of a segment; the end of the parameter is one."""
        numel = self._numels[tensor]
        return numel if cut == numel else min(round(cut / self._length) * self._length, numel)

    def _between(self, tensor: int, begin: int, end: int) -> list[Segment]:
        cuts = [*range(begin, end, self._length), end]
        return [
            Segment(tensor, low, high, -((low - high) // self._num_ranks))
            for low, high in pairwise(cuts)
        ]
