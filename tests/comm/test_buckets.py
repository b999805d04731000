import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.comm import ddp_buckets

GRADIENTS = st.lists(st.integers(0, 12), max_size=12)
CAPS = st.integers(1, 30)
MIB = 1 << 20


@pytest.mark.parametrize(
    ("gradients", "buckets"),
    [
        ([], ()),
        ([0, 0], ()),
        ([3], ((0,),)),
        ([4, 4, 4, 4], ((3,), (2, 1), (0,))),
        ([1, 1, 1, 1, 1, 1], ((5, 4), (3, 2, 1, 0))),
        ([4, 0, 4, 0, 4, 0], ((4,), (2, 0))),
        ([50, 1, 50], ((2,), (1, 0))),
    ],
)
def test_layers_are_grouped_from_the_last_as_by_hand(
    gradients: list[int], buckets: tuple[tuple[int, ...], ...]
) -> None:
    assert ddp_buckets(gradients, bucket_bytes=8, first_bucket_bytes=2) == buckets


def test_the_caps_of_ddp_are_used_unless_told() -> None:
    gradients = [13 * MIB, 12 * MIB, 13 * MIB, 12 * MIB, MIB]
    assert ddp_buckets(gradients) == ((4,), (3, 2), (1, 0))


@given(gradients=GRADIENTS, cap=CAPS, first=CAPS)
def test_each_layer_with_a_gradient_is_sent_once_last_first(
    gradients: list[int], cap: int, first: int
) -> None:
    buckets = ddp_buckets(gradients, bucket_bytes=cap, first_bucket_bytes=first)
    sent = [layer for bucket in buckets for layer in bucket]
    assert sent == [i for i in reversed(range(len(gradients))) if gradients[i]]


@given(gradients=GRADIENTS, cap=CAPS, first=CAPS)
def test_a_bucket_is_full_but_would_not_be_without_its_last_layer(
    gradients: list[int], cap: int, first: int
) -> None:
    buckets = ddp_buckets(gradients, bucket_bytes=cap, first_bucket_bytes=first)
    for index, bucket in enumerate(buckets):
        limit = cap if index else min(first, cap)
        assert sum(gradients[layer] for layer in bucket[:-1]) < limit
        if index < len(buckets) - 1:
            assert sum(gradients[layer] for layer in bucket) >= limit


@given(
    gradients=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    cap=st.integers(1, 30),
    first=st.integers(1, 30),
)
def test_buckets_are_those_that_ddp_itself_makes(
    gradients: list[int], cap: int, first: int
) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    last_first = [torch.empty(size, dtype=torch.uint8) for size in reversed(gradients)]
    theirs, _ = torch.distributed._compute_bucket_assignment_by_size(
        last_first, [min(first, cap), cap]
    )
    ours = ddp_buckets(gradients, bucket_bytes=cap, first_bucket_bytes=first)
    assert [[len(gradients) - 1 - index for index in bucket] for bucket in theirs] == [
        list(bucket) for bucket in ours
    ]


@pytest.mark.parametrize("name", ["bucket_bytes", "first_bucket_bytes"])
@pytest.mark.parametrize("cap", [0, -1])
def test_a_cap_that_is_not_positive_is_refused(name: str, cap: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be positive, got {cap}"):
        ddp_buckets([1], **{name: cap})
