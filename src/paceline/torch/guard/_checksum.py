"""A checksum of a tensor's bits, on its own device; equal on every kind of device."""

import numpy as np
import torch

# Elements of a row: a table of weights and a row of products stay in a core's cache.
ROW = 1 << 14
ROWS_AT_ONCE = {"cpu": 1}
MANY_ROWS = 256
WIDTHS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


class Checksums:
    """Makes checksums; keeps its tables of weights on each device that it has seen.

    The bits of a tensor are read as integers `x_i`, and the checksum is `sum_i w_i f(x_i)`
    modulo 2^64 with fixed pseudo-random odd weights `w_i`; `f(x) = x + floor(x / 2^32)`, since
    a product's top bit would not depend on its weight. A flipped bit changes `f` by an odd
    number times at most 2^31, which times an odd weight is never 0 modulo 2^64: it is always
    found. Flips of several bits, or values that are swapped, cancel for fewer than one in 2^31
    choices of the weights. Long tensors are summed by rows, and the sums of the rows alike.
    Sums of integers do not depend on their order, so no setting of determinism is needed.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[torch.device, int], torch.Tensor] = {}

    @torch.no_grad()
    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the checksum of `tensor`, an int64 scalar on its device; waits for nothing.

        Of the values in their logical order: memory formats may differ. Reads the tensor once,
        about 2 ns per 8 bytes on one core (measured); as much per element where its bytes
        are no multiple of 8.

        Examples:
            >>> sums = Checksums()
            >>> x = torch.tensor([1.0, 2.0])
            >>> bool(sums.of(x) == sums.of(x.clone())), bool(sums.of(x) == sums.of(x.flip(0)))
            (True, False)
        """
        return self._weighted_sum(_bits(tensor.detach()), depth=0)

    def _weighted_sum(self, bits: torch.Tensor, depth: int) -> torch.Tensor:
        weights = self._weights(bits.device, depth)
        if len(bits) <= ROW:
            return (_folded(bits) * weights[: len(bits)]).sum()
        num_whole = len(bits) // ROW * ROW
        rows = bits[:num_whole].view(-1, ROW)
        sums = [
            (_folded(block) * weights).sum(1)
            for block in rows.split(ROWS_AT_ONCE.get(bits.device.type, MANY_ROWS))
        ]
        last = bits[num_whole:]
        sums.append((_folded(last) * weights[: len(last)]).sum().view(1))
        return self._weighted_sum(torch.cat(sums), depth + 1)

    def _weights(self, device: torch.device, depth: int) -> torch.Tensor:
        key = (device, depth)
        if key not in self._tables:
            self._tables[key] = torch.from_numpy(_odd_weights(depth)).to(device)
        return self._tables[key]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of `tensor` as the widest integers that its bytes divide into."""
    flat = tensor.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    width, dtype = next(one for one in WIDTHS if len(flat) % one[0] == 0)
    # A view of another tensor may begin where wider integers cannot.
    return (flat.clone() if flat.storage_offset() % width else flat).view(dtype)


def _folded(bits: torch.Tensor) -> torch.Tensor:
    """Bring high bits to where a product depends on its weight; narrow integers are there."""
    return (bits >> 32).add_(bits) if bits.dtype == torch.int64 else bits


def _odd_weights(depth: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return the fixed weights of one level: SplitMix64 of their positions, made odd."""
    with np.errstate(over="ignore"):
        z = (np.arange(ROW, dtype=np.uint64) + np.uint64(1 + depth * ROW)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) | np.uint64(1)).view(np.int64)
