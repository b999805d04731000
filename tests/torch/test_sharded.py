"""The pieces of sharded training that need no second process."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paceline.torch.comm.sharded._layout import Segment, ShardLayout
from paceline.torch.comm.sharded._round import ShardRoute
from paceline.torch.comm.sharded._rows import from_rows, to_rows
from paceline.torch.comm.sharded._update import ELEMENTWISE, ShardedUpdate, check_elementwise
from paceline.torch.comm.transfer import Payload, Piece, Route


@given(
    numel=st.integers(1, 60),
    length=st.integers(1, 25),
    num_ranks=st.integers(1, 7),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_every_element_has_one_owner_and_one_place_whatever_the_plan(
    numel: int, length: int, num_ranks: int, cuts: list[int]
) -> None:
    weight = torch.arange(1.0, numel + 1)
    layout = ShardLayout([weight], num_ranks, segment_elements=length)
    borders = sorted({0, numel, *(cut for cut in cuts if cut < numel)})
    pieces = [Piece(0, *pair) for pair in pairwise(borders)]
    payloads = layout.payloads([Payload.of(block, [one]) for block, one in enumerate(pieces)])
    planned = [segment for payload in payloads for segment in payload.segments]
    assert planned == layout.segments_of(0)
    owned = [range(*one.part(rank)) for one in planned for rank in range(num_ranks)]
    assert [index for part in owned for index in part] == list(range(numel))
    for payload in payloads:
        rows = torch.full((num_ranks, payload.width), torch.nan)
        begin = 0
        for segment in payload.segments:
            flat = weight[segment.begin : segment.end]
            to_rows(rows, begin, segment, flat)
            assert torch.equal(from_rows(rows, begin, segment), flat)
            for rank in range(num_ranks):
                low, high = segment.part(rank)
                part = rows[rank, begin : begin + segment.width]
                assert torch.equal(part[: high - low], weight[low:high])
                assert not part[high - low :].any()
            begin += segment.width


def test_blocks_come_back_as_they_are_needed_and_the_rest_is_kept_ready() -> None:
    weights = [torch.zeros(4), torch.zeros(6), torch.zeros(2)]
    route = Route([Payload.of(0, [Piece(1, 0, 6)]), Payload.of(1, [Piece(0, 0, 4)])], weights)
    shards = ShardRoute(route, ShardLayout(weights, 2), weights, [-2, -1, 0])
    assert shards.num_planned == 2
    assert [payload.tensors for payload in shards.payloads] == [[1], [0], [2]]
    assert shards.by_need == [1, 0, 2]


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_parts_of_all_ranks_make_up_the_plain_update(kind: type[torch.optim.Optimizer]) -> None:
    """Both ranks' parts, updated one after the other in one process, state moved in half way."""
    torch.manual_seed(0)
    whole = [
        nn.Parameter(torch.randn(5, 7)),
        nn.Parameter(torch.randn(3)),
        nn.Parameter(torch.randn(())),
    ]
    # Channels last: its elements do not lie in a row.
    whole.append(nn.Parameter(torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)))
    parted = [nn.Parameter(one.detach().clone()) for one in whole]
    reference = kind([{"params": whole[:2], "lr": 0.01}, {"params": whole[2:]}], lr=0.02)
    optimizer = kind([{"params": parted[:2], "lr": 0.01}, {"params": parted[2:]}], lr=0.02)
    layout = ShardLayout(parted, 2, segment_elements=16)
    updates: list[ShardedUpdate] = []
    for step in range(6):
        gradients = [torch.randn(one.shape) for one in whole]
        for one, gradient in zip(whole, gradients, strict=True):
            one.grad = gradient
        reference.step()
        if step == 3:  # The state of the first three steps is cut up now.
            optimizer.load_state_dict(optimizer.state_dict())
            kept = {one: dict(state) for one, state in optimizer.state.items()}
            for rank in range(2):
                optimizer.state.update({one: dict(state) for one, state in kept.items()})
                updates.append(ShardedUpdate(optimizer, parted, layout, rank))
                assert not optimizer.state
        if step < 3:
            for one, gradient in zip(parted, gradients, strict=True):
                one.grad = gradient
            optimizer.step()
        for update in updates:
            step_parts(update, parted, gradients)
    for one, other in zip(whole, parted, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def step_parts(
    update: ShardedUpdate, parameters: list[nn.Parameter], gradients: list[torch.Tensor]
) -> None:
    update.begin()
    own = list(update.part_of)
    cuts = [segment.part(update._rank) for segment in own]
    flat = [gradient.reshape(-1) for gradient in gradients]
    parts = [flat[one.tensor][slice(*cut)] for one, cut in zip(own, cuts, strict=True)]
    update.apply(own, parts)
    for segment, (low, high) in zip(own, cuts, strict=True):
        where = torch.arange(low, high)
        parameters[segment.tensor].detach().put_(where, update.part_of[segment].clone())


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.LBFGS])
def test_an_optimizer_that_needs_whole_tensors_is_refused(
    kind: type[torch.optim.Optimizer],
) -> None:
    optimizer = kind([nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match=f"{kind.__name__} is not known to update each element"):
        check_elementwise(optimizer)


def test_a_segment_of_fewer_elements_than_ranks_leaves_some_with_nothing() -> None:
    segment = Segment(0, 0, 2, 1)
    assert [segment.part(rank) for rank in range(4)] == [(0, 1), (1, 2), (2, 2), (2, 2)]
