"""What is counted of the inputs of a forward pass."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from paceline.run import UNKNOWN
from paceline.torch.run._inputs import counted

IDS = torch.tensor([[7, 5, 9, 2], [4, 8, 0, 0]])
FRAMES = torch.cat(
    [torch.ones(2, 3, 5), torch.tensor([1.0, 0.0]).reshape(2, 1, 1) * torch.ones(5)], 1
)
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, int, int]]] = [
    ("padded ids", (IDS,), {}, (2, 8, 2)),
    ("ids in a mapping", ({"input_ids": IDS, "labels": torch.ones(2, 9).long()},), {}, (2, 8, 2)),
    ("the mask says more", (), {"input_ids": IDS, "attention_mask": IDS != 7}, (2, 8, 1)),
    ("a mask beside frames", (FRAMES,), {"attention_mask": torch.ones(2, 4)}, (2, 40, 0)),
    ("the widest table", (IDS, torch.zeros(2, 1).long()), {}, (2, 8, 2)),
    ("full rows", (torch.arange(12).reshape(3, 4),), {}, (3, 12, 0)),
    (
        "the end of an ordinary row",
        (torch.tensor([[1, 1, 2, 1, 1], [1, 1, 1, 2, 3]]),),
        {},
        (2, 10, 0),
    ),
    ("padded to a fixed length", (torch.tensor([[5, 1, 1], [6, 1, 1]]),), {}, (2, 6, 4)),
    ("frames of zeros", (FRAMES,), {}, (2, 40, 5)),
    ("zeros that all have", (FRAMES.flip(1) * 0,), {}, (2, 40, UNKNOWN)),
    ("a picture", (torch.ones(2, 3, 4, 4), torch.ones(2)), {}, (2, 96, UNKNOWN)),
    ("one column", (torch.ones(4, 1).long(),), {}, (4, 4, 0)),
    ("no rows", (torch.ones(0, 3).long(),), {}, (0, 0, 0)),
    ("on a device", (torch.ones(2, 3, device="meta").long(),), {}, (2, 6, UNKNOWN)),
    ("no tensor", ("text", torch.tensor(1.0)), {}, (UNKNOWN, UNKNOWN, UNKNOWN)),
    ("sparse", (torch.eye(3).to_sparse(),), {}, (UNKNOWN, UNKNOWN, UNKNOWN)),
]


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_inputs_are_counted(
    args: tuple[Any, ...], kwargs: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    assert counted(args, kwargs) == (0.0, 1, *expected)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 5))
def test_padding_is_found_up_to_single_positions(lengths: list[int], extra: int) -> None:
    rows = [torch.arange(1, length + 1) for length in lengths]
    ids = torch.nn.functional.pad(pad_sequence(rows, batch_first=True), (0, extra))
    found = counted((ids,), {})
    padding = ids.numel() - sum(lengths)
    assert found.num_examples == len(lengths)
    # A last column of zeros in one row alone could be anything.
    ends = [ids.shape[1] - length for length in lengths]
    assert found.num_padding == (padding if max(ends) > 1 else 0)
