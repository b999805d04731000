"""The rows of a forward pass, where each parameter's sketch lies in one, and how it is made."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.torch.order._compiled import add_rows, project


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
        left, right = left.to(rows), right.to(rows)
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


class Placed:
    """A small fixed matrix, copied once to each device and type that asks for it."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix.contiguous()
        self._copies = {(matrix.device, matrix.dtype): self.matrix}

    def like(self, tensor: Tensor) -> Tensor:
        """Return the matrix on the device and in the type of `tensor`."""
        key = (tensor.device, tensor.dtype)
        if key not in self._copies:
            self._copies[key] = self.matrix.to(*key)
        return self._copies[key]


class Factor(Placed):
    """A random sign matrix of shape `(num_out, num_in)`, scaled to keep lengths on average.

    It is the identity where `num_out` would not be smaller than `num_in`.
    """

    def __init__(self, num_in: int, num_out: int, generator: torch.Generator) -> None:
        self.num_out = min(num_in, num_out)
        self.is_identity = num_out >= num_in
        if self.is_identity:
            super().__init__(torch.eye(num_in))
        else:
            signs = torch.randint(0, 2, (num_out, num_in), generator=generator)
            super().__init__((2.0 * signs - 1.0) / math.sqrt(num_out))

    @property
    def relative_variance(self) -> float:
        """Bound on the variance of `(Fx)·(Fy)`, over `|x|² |y|²`."""
        return 0.0 if self.is_identity else 2.0 / self.num_out


class MatrixSlot:
    """The sketch `L G Rᵀ` of a weight's gradient `G`, with its biases as further columns."""

    share = 1.0

    def __init__(self, weight: Tensor) -> None:
        self.num_out, self.num_in = weight.shape
        self._columns: dict[Tensor, int] = {}

    @property
    def num_columns(self) -> int:
        """Most columns that the slot can use."""
        return self.num_out * (self.num_in + len(self._columns))

    def add_bias(self, bias: Tensor) -> None:
        """Give `bias` a column; a bias that several layers share has one."""
        self._columns.setdefault(bias, self.num_in + len(self._columns))

    def place(self, start: int, width: int, generator: torch.Generator) -> int:
        """Choose both factors so that the slot takes at most `width` columns of a row."""
        num_in = self.num_in + len(self._columns)
        num_left, num_right = _sides(self.num_out, num_in, width)
        self.left = Factor(self.num_out, num_left, generator)
        self.right = Factor(num_in, num_right, generator)
        self._of_input = Placed(self.right.matrix[:, : self.num_in])
        self._of_bias = {
            bias: Placed(self.right.matrix[:, column : column + 1])
            for bias, column in self._columns.items()
        }
        self._zeros = torch.zeros(num_right, 1)
        self.start, self.width = start, num_left * num_right
        return start + self.width

    @property
    def relative_variance(self) -> float:
        return (1 + self.left.relative_variance) * (1 + self.right.relative_variance) - 1

    def add_rows(self, batch: SketchedBatch, grads: Tensor, x: Tensor, bias: Tensor | None) -> None:
        """Add one outer product for each example, all in one compiled call."""
        column = self._zeros if bias is None else self._of_bias[bias].matrix
        add_rows(
            grads.contiguous().numpy(),
            x.contiguous().numpy(),
            (self.left.matrix.numpy(), self._of_input.matrix.numpy(), column.numpy()),
            self.left.is_identity,
            batch.rows_on(x).numpy(),
            (self.start, batch.scale),
        )

    def outputs(self, grads: Tensor) -> Tensor:
        """Project output gradients, shape `(num, num_out)`, to `(kept, num)`."""
        if self.left.is_identity:
            return grads.t()
        return _project(self.left.like(grads), grads, None)

    def rows(self, index: Tensor) -> Tensor:
        """Return the projection of the unit vectors `index`, shape `(kept, num)`."""
        return self.left.matrix.to(index.device).index_select(1, index)

    def inputs(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Project inputs, shape `(num, num_in)`, each followed by its one for the bias."""
        column = None if bias is None else self._of_bias[bias].like(x)
        return _project(self._of_input.like(x), x, column)

    def add(self, batch: SketchedBatch, left: Tensor, right: Tensor, lead: Sequence[int]) -> None:
        """Add the outer products of `left` and `right`, summed over an example's positions."""
        shape = (self.left.num_out, self.right.num_out)
        batch.add_outer(self.start, shape, left, right, lead)


def _project(matrix: Tensor, rows: Tensor, column: Tensor | None) -> Tensor:
    """Return `matrix @ rowsᵀ`, plus a column."""
    # With `out`, autocast leaves the product alone: many rows are not copied to its type.
    made = rows.new_empty(len(matrix), len(rows))
    if is_plain(rows):
        added = matrix.new_zeros(len(matrix), 1) if column is None else column
        project(rows.contiguous().numpy(), matrix.numpy(), added.numpy(), made.numpy())
        return made
    if column is None:
        return torch.mm(matrix, rows.t(), out=made)
    return torch.addmm(column, matrix, rows.t(), out=made)


def _sides(num_out: int, num_in: int, width: int) -> tuple[int, int]:
    """Return the sides of the largest nearly square sketch of at most `width` entries."""
    left = min(num_out, max(1, math.isqrt(width)))
    right = min(num_in, width // left)
    return min(num_out, width // right), right


class VectorSlot:
    """The sketch of the gradients of a norm layer's scale and shift, laid end to end."""

    # A norm layer holds little of the gradient: it gets a quarter of a matrix's columns.
    share = 0.25

    def __init__(self, num_params: int) -> None:
        self.num_columns = num_params

    def place(self, start: int, width: int, generator: torch.Generator) -> int:
        self.start = start
        self.factor = Factor(self.num_columns, width, generator)
        return start + self.factor.num_out

    @property
    def relative_variance(self) -> float:
        return self.factor.relative_variance

    def add(self, batch: SketchedBatch, block: Tensor) -> None:
        """Add gradients of shape `(num_examples, num_params)`."""
        if not self.factor.is_identity:
            block = block @ self.factor.like(block).t()
        batch.add_block(self.start, block)
