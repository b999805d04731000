"""Micro-batches without padding: examples end to end, and attention that keeps them apart."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_leaves, tree_map


class Packed(NamedTuple):
    """Examples end to end, without padding.

    Attributes:
        values: What the examples hold, joined along the first dimension: a tensor of shape
            `(num_tokens, ...)`, or a container of them if examples are containers.
        position_ids: Place of each token in its own example, shape `(num_tokens,)`.
        offsets: Where each example begins, and the end: the `cu_seqlens` of variable-length
            attention, int32, shape `(num_examples + 1,)`.
        lengths: Tokens of each example.
    """

    values: Any
    position_ids: torch.Tensor
    offsets: torch.Tensor
    lengths: tuple[int, ...]

    @property
    def example_ids(self) -> torch.Tensor:
        """The example of each token, shape `(num_tokens,)`, as a FlexAttention mask needs it."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def jagged(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values`, one row per token, as a `torch.nested` tensor of jagged layout."""
        return torch.nested.nested_tensor_from_jagged(
            values,
            self.offsets,
            min_seqlen=min(self.lengths),
            max_seqlen=max(self.lengths),
        )

    def example_means(self, values: torch.Tensor) -> torch.Tensor:
        """Return each example's mean over its tokens of `values`, shape `(num_examples,)`."""
        sums = values.new_zeros(len(self.lengths)).index_add(0, self.example_ids, values)
        return sums / self.offsets.diff()


def pack(examples: Sequence[Any]) -> Packed:
    """Join examples end to end: a `collate_fn` for models that take packed sequences.

    Plan such batches with `padded=False` and `counts="free"`: an example then costs what it costs
    alone. `Limits(max_tokens=...)` is the token budget of a micro-batch.

    Args:
        examples: Tensors of shape `(num_tokens, ...)`, or containers of such tensors with equally
            many tokens each.

    Raises:
        ValueError: If there is no example, or the tensors of one differ in length.

    Examples:
        >>> packed = pack([torch.tensor([5, 6, 7]), torch.tensor([8, 9])])
        >>> packed.values.tolist(), packed.position_ids.tolist(), packed.offsets.tolist()
        ([5, 6, 7, 8, 9], [0, 1, 2, 0, 1], [0, 3, 5])
    """
    lengths = tuple(_length(index, example) for index, example in enumerate(examples))
    if not lengths:
        raise ValueError("pack needs at least one example, got none")
    offsets = torch.tensor((0, *lengths)).cumsum(0)
    starts = torch.repeat_interleave(offsets[:-1], torch.tensor(lengths))
    return Packed(
        values=tree_map(lambda *parts: torch.cat(parts), *examples),
        position_ids=torch.arange(int(offsets[-1])) - starts,
        offsets=offsets.to(torch.int32),
        lengths=lengths,
    )


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Packed,
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    """Return scaled dot-product attention within each example.

    Nothing is computed for pairs of tokens of different examples. 16-bit tensors on a CUDA device
    use PyTorch's variable-length FlashAttention; others one call per example.

    Args:
        query: Shape `(num_tokens, num_heads, head_dim)`.
        key: As `query`.
        value: As `query`.
        packed: Says where examples begin.
        is_causal: Whether a token attends to itself and those before it only.

    Returns:
        Shape of `query`.
    """
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _flash_attention(query, key, value, packed, is_causal)
    heads = [t.transpose(0, 1)[None].split(packed.lengths, dim=2) for t in (query, key, value)]
    mixed = [
        scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        for q, k, v in zip(*heads, strict=True)
    ]
    return torch.cat(mixed, dim=2)[0].transpose(0, 1)


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Packed,
    is_causal: bool,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest, at = max(packed.lengths), packed.offsets
    window = (-1, 0) if is_causal else (-1, -1)
    mixed = varlen_attn(query, key, value, at, at, longest, longest, window_size=window)
    assert isinstance(mixed, torch.Tensor)
    return mixed


def _length(index: int, example: Any) -> int:
    lengths = {len(leaf) for leaf in tree_leaves(example)}
    if len(lengths) != 1:
        raise ValueError(
            f"all tensors of an example must hold equally many tokens, got {sorted(lengths)} in "
            f"example {index} of the batch; pad or pack what differs by itself"
        )
    return lengths.pop()
