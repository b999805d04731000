import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from paceline.torch import Packed, pack, packed_attention

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def qkv_of(packed: Packed, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    shape = (sum(packed.lengths), 2, 8)
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]


def masked_attention(packed: Packed, qkv: list[torch.Tensor], *, is_causal: bool) -> torch.Tensor:
    """Return one attention over all tokens, with a mask that keeps examples apart."""
    ids = packed.example_ids
    mask = ids[:, None] == ids
    if is_causal:
        mask &= packed.position_ids[:, None] >= packed.position_ids
    heads = [t.transpose(0, 1) for t in qkv]
    return scaled_dot_product_attention(*heads, attn_mask=mask).transpose(0, 1)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.booleans())
def test_packed_attention_and_its_gradients_are_those_of_a_block_diagonal_mask(
    lengths: list[int], is_causal: bool
) -> None:
    packed = pack([torch.zeros(n) for n in lengths])
    qkv = qkv_of(packed, torch.device("cpu"), torch.float64)
    mixed = packed_attention(*qkv, packed, is_causal=is_causal)
    expected = masked_attention(packed, qkv, is_causal=is_causal)
    weight = torch.randn_like(mixed)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(
        torch.autograd.grad((mixed * weight).sum(), qkv),
        torch.autograd.grad((expected * weight).sum(), qkv),
    )


@settings(max_examples=25, deadline=None)
@given(LENGTHS)
def test_examples_lie_end_to_end_each_with_positions_of_its_own(lengths: list[int]) -> None:
    examples = [{"ids": torch.randn(n), "labels": torch.randn(n, 2)} for n in lengths]
    packed = pack(examples)
    assert packed.lengths == tuple(lengths)
    parts = zip(*packed.offsets.unfold(0, 2, 1).T.tolist(), strict=True)
    for index, (begin, end) in enumerate(parts):
        for name, column in packed.values.items():
            assert torch.equal(column[begin:end], examples[index][name])
        assert packed.position_ids[begin:end].tolist() == list(range(lengths[index]))
        assert packed.example_ids[begin:end].tolist() == [index] * lengths[index]


def test_a_jagged_tensor_and_means_know_the_examples() -> None:
    values = [torch.tensor([1.0, 3.0]), torch.tensor([4.0, 5.0, 9.0])]
    packed = pack(values)
    assert packed.example_means(packed.values).tolist() == [2.0, 6.0]
    padded = packed.jagged(packed.values).to_padded_tensor(0.0)
    torch.testing.assert_close(padded, pad_sequence(values, batch_first=True))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "pack needs at least one example, got none"),
        (
            [{"x": torch.zeros(2), "y": torch.zeros(3)}],
            r"equally many tokens, got \[2, 3\] in example 0",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(examples: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(examples)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("is_causal", [False, True])
def test_flash_attention_gives_the_same_up_to_16_bits(is_causal: bool) -> None:
    device = torch.device("cuda")
    packed = pack([torch.zeros(n) for n in (1, 7, 130)])
    packed = packed._replace(
        offsets=packed.offsets.to(device), position_ids=packed.position_ids.to(device)
    )
    qkv = qkv_of(packed, device, torch.bfloat16)
    mixed = packed_attention(*qkv, packed, is_causal=is_causal)
    expected = masked_attention(packed, qkv, is_causal=is_causal)
    torch.testing.assert_close(mixed, expected, rtol=0.02, atol=0.02)
