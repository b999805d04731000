"""Half precision on the wire: what is packed, and what a plan makes of it."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.cost import Link
from paceline.torch.comm.transfer import Payload, Piece, Route
from paceline.torch.comm.whole._compression import (
    DTYPES,
    dtype_on_wire,
    link_per_gradient_byte,
    wire_dtype,
)
from paceline.torch.comm.whole._payload import pack, unpack
from paceline.torch.comm.whole._round import Flight, Round

HALVES = list(DTYPES.values())


@pytest.mark.parametrize("wire", HALVES)
@pytest.mark.parametrize("num_ranks", [2, 3, 49])
def test_gradients_are_cast_and_then_divided_as_torchs_hook_does(
    wire: torch.dtype, num_ranks: int
) -> None:
    gradient = torch.randn(50) * torch.logspace(-9, 4, 50)
    payload = Payload.of(0, [Piece(0, 10, 50), Piece(1, 0, 3)])
    buffer = pack(payload, [gradient, torch.zeros(3)], [gradient, None], 1 / num_ranks, [1.0], wire)
    assert buffer.dtype == wire
    assert torch.equal(buffer[:40], gradient[10:].to(wire).div_(num_ranks))
    assert buffer[40:].tolist() == [0.0] * 3 + [1.0, 0.0, 1.0]


@pytest.mark.parametrize("wire", HALVES)
def test_means_come_back_in_the_type_of_the_parameter(wire: torch.dtype) -> None:
    weight = torch.randn(2, 3, 2, 4).to(memory_format=torch.channels_last)
    parameters = [weight, torch.randn(5)]
    payload = Payload.of(0, [Piece(0, 0, 48), Piece(1, 0, 5)])
    current = Round(Route([payload], parameters))
    current.note_ready(0, weight, None)
    buffer = pack(payload, parameters, current.sources, 0.5, [0.0, 1.0], wire)
    landed, controls = unpack(Flight(payload, buffer, Any), current, parameters)  # type: ignore[arg-type]
    assert landed == [0, 1]
    assert controls == [0.0, 1.0]
    mean = current.reduced[0]
    assert mean is not None
    assert mean.dtype == torch.float32
    assert mean.stride() == weight.stride()
    assert torch.equal(mean, weight.to(wire).div(2).float())
    assert current.reduced[1] is None


@given(flags=st.lists(st.booleans(), min_size=1, max_size=3000), wire=st.sampled_from(HALVES))
def test_summed_flags_are_positive_exactly_if_one_is_set(
    flags: list[bool], wire: torch.dtype
) -> None:
    total = torch.zeros(1, dtype=wire)
    for flag in flags:
        total += flag
    assert bool(total > 0) == any(flags)


def test_only_wider_gradients_are_narrowed() -> None:
    assert dtype_on_wire(torch.float64, torch.bfloat16) == torch.bfloat16
    for own in HALVES:
        assert all(dtype_on_wire(own, wire) == own for wire in (*HALVES, None))


def test_plans_see_a_link_that_carries_twice_the_gradient_bytes() -> None:
    parameters = [torch.zeros(30), torch.zeros(20, dtype=torch.bfloat16)]
    link = Link(1e-3, 100.0)
    assert link_per_gradient_byte(link, parameters, None) == link
    halved = link_per_gradient_byte(link, parameters, torch.float16)
    assert (halved.alpha_s, halved.bytes_per_s) == (1e-3, 160.0)


def test_an_unknown_compression_is_refused_with_the_way_to_powersgd() -> None:
    with pytest.raises(
        ValueError, match=r"None, 'fp16' or 'bf16', got 'powersgd'; .*watch_buckets"
    ):
        wire_dtype("powersgd", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "is_type"), [("Invalid scalar type", True), ("Connection closed by peer", False)]
)
def test_a_backend_that_cannot_add_the_type_is_told_from_a_broken_link(
    monkeypatch: pytest.MonkeyPatch, message: str, is_type: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr("torch.distributed.all_reduce", fail)
    monkeypatch.setattr("torch.distributed.get_backend", lambda _: "some backend")
    expected = ValueError if is_type else RuntimeError
    with pytest.raises(expected, match="some backend does not" if is_type else message):
        wire_dtype("bf16", None)
