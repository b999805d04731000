"""The rows of one forward pass, filled in while its backward pass runs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class NotByExampleError(Exception):
    """A layer's tensors do not have the examples of the batch on the expected axis."""


def is_plain(tensor: Tensor) -> bool:
    """Whether compiled sums take the tensor: 32-bit floats on the CPU."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


class SketchedBatch:
    """One row for each example that a forward pass saw.

    Args:
        num_examples: Examples in the batch.
        dim: Columns of a row.
        batch_dim: Axis of the examples where a tensor has several before its features.
        scale: Multiplies what is added.
    """

    def __init__(self, num_examples: int, dim: int, batch_dim: int, scale: float) -> None:
        self.num_examples = num_examples
        self.rows: Tensor | None = None
        self._dim, self._batch_dim, self.scale = dim, batch_dim, scale

    def num_positions(self, lead: Sequence[int]) -> int:
        """Return the vectors per example in a tensor with these axes before its features.

        A single axis may hold the positions of all examples, flattened.

        Raises:
            NotByExampleError: If the axes do not hold the examples of the batch.
        """
        axis = self._batch_dim if len(lead) > 1 else 0
        fits = len(lead) > axis and (
            lead[axis] == self.num_examples or (len(lead) == 1 and lead[0] % self.num_examples == 0)
        )
        if not fits:
            raise NotByExampleError(
                f"axis {axis} of {tuple(lead)} does not hold the {self.num_examples} examples"
            )
        return math.prod(lead) // self.num_examples

    def is_first_axis(self, lead: Sequence[int]) -> bool:
        """Return whether an example's positions lie side by side; raises as `num_positions`."""
        return self.num_positions(lead) == 1 or self._batch_dim == 0

    def by_example(self, projected: Tensor, lead: Sequence[int]) -> Tensor:
        """View `(k, num)` as `(num_examples, k, num_positions)`."""
        num_positions = self.num_positions(lead)
        if self.is_first_axis(lead):
            return projected.view(-1, self.num_examples, num_positions).transpose(0, 1)
        return projected.view(-1, num_positions, self.num_examples).permute(2, 0, 1)

    def sum_positions(self, values: Tensor, lead: Sequence[int]) -> Tensor:
        """Sum a tensor with these leading axes to `(num_examples, num_features)`."""
        num_positions = self.num_positions(lead)
        if self.is_first_axis(lead):
            return values.reshape(self.num_examples, num_positions, -1).sum(1)
        return values.reshape(num_positions, self.num_examples, -1).sum(0)

    def add_outer(
        self, start: int, shape: tuple[int, int], left: Tensor, right: Tensor, lead: Sequence[int]
    ) -> None:
        """Add `left rightᵀ`, summed over positions, both of shape `(k, num)`."""
        rows = self.rows_on(left)
        block = rows.as_strided((len(rows), *shape), (rows.shape[1], shape[1], 1), start)
        if left.dtype != rows.dtype or left.device != rows.device:
            left = left.to(rows)
        if right.dtype != rows.dtype or right.device != rows.device:
            right = right.to(rows)
        if self.num_positions(lead) == 1:
            outs, ins = left.t().contiguous(), right.t().contiguous()
            block.addcmul_(outs.unsqueeze(2), ins.unsqueeze(1), value=self.scale)
        else:
            outs, ins = self.by_example(left, lead), self.by_example(right, lead).mT
            block.baddbmm_(outs, ins, alpha=self.scale)

    def add_block(self, start: int, block: Tensor) -> None:
        """Add `(num_examples, width)` to the columns from `start`."""
        columns = self.rows_on(block)[:, start : start + block.shape[1]]
        columns.add_(block.to(columns), alpha=self.scale)

    def rows_on(self, like: Tensor) -> Tensor:
        """Return the rows, made on the device of the first tensor that adds to them."""
        if self.rows is None:
            self.rows = torch.zeros(self.num_examples, self._dim, device=like.device)
        return self.rows
