"""Pack gradients into the buffer of one collective, and take the means out again."""

from collections.abc import Sequence

import torch

from paceline.torch.comm.transfer import Payload
from paceline.torch.comm.whole._compression import dtype_on_wire
from paceline.torch.comm.whole._round import Flight, Round


def pack(
    payload: Payload,
    parameters: Sequence[torch.Tensor],
    sources: list[torch.Tensor | None],
    share: float,
    controls: Sequence[float],
    wire: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the pieces times `share`, then a flag per piece, then `controls`.

    Gradients are scaled before they are summed, by the inverse of the number of ranks, as
    DistributedDataParallel does: two ranks get the same bits. A missing gradient is zero,
    and its flag too. Wider gradients are cast to `wire` first; flags and controls are only
    asked whether they are positive, so a narrow type may round their sums.
    """
    first = parameters[payload.pieces[0].tensor]
    dtype = dtype_on_wire(first.dtype, wire)
    flags = [float(sources[piece.tensor] is not None) for piece in payload.pieces]
    tail = torch.tensor([*flags, *controls], dtype=dtype, device=first.device)
    buffer = first.new_empty(payload.num_elements + len(tail), dtype=dtype)
    buffer[payload.num_elements :] = tail
    fill(buffer, payload, sources, share)
    return buffer


def fill(
    buffer: torch.Tensor,
    payload: Payload,
    sources: list[torch.Tensor | None],
    share: float,
) -> None:
    """Write the pieces times `share` to the front of `buffer`."""
    begin = 0
    for piece in payload.pieces:
        target = buffer[begin : begin + piece.end - piece.begin]
        begin += piece.end - piece.begin
        source = sources[piece.tensor]
        if source is None:
            target.zero_()
            continue
        if source.dim() != 1 or not source.is_contiguous():
            # Flattened once, also where its parts are sent apart.
            source = sources[piece.tensor] = source.detach().reshape(-1)
        if buffer.dtype == source.dtype:
            torch.mul(source[piece.begin : piece.end], share, out=target)
        else:
            # Cast, then divided, as torch's `fp16_compress_hook` does: the same bits.
            target.copy_(source[piece.begin : piece.end]).div_(round(1 / share))


def unpack(
    flight: Flight, current: Round, parameters: Sequence[torch.Tensor]
) -> tuple[list[int], list[float]]:
    """Put the means into `current.reduced`; return the tensors that are complete, and controls.

    A gradient that was sent whole stays in the buffer, like DDP's bucket views; one that
    was sent in another dtype is cast back first.
    """
    payload, buffer = flight.payload, flight.buffer
    tail = buffer[payload.num_elements :].tolist()
    means = buffer.to(parameters[payload.pieces[0].tensor].dtype)
    landed, begin = [], 0
    for number, piece in enumerate(payload.pieces):
        part = means[begin : begin + piece.end - piece.begin]
        begin += piece.end - piece.begin
        if tail[number] > 0:
            _store(current, parameters[piece.tensor], piece.tensor, piece.begin, part)
        current.pieces_left[piece.tensor] -= 1
        if current.pieces_left[piece.tensor] == 0:
            current.sources[piece.tensor] = None
            landed.append(piece.tensor)
    return landed, tail[len(payload.pieces) :]


def _store(
    current: Round, parameter: torch.Tensor, tensor: int, begin: int, part: torch.Tensor
) -> None:
    if part.numel() == parameter.numel():
        mean = part.view(parameter.shape)
        strides = parameter.stride()
        current.reduced[tensor] = mean if mean.stride() == strides else _like(parameter, mean)
        return
    reduced = current.reduced[tensor]
    if reduced is None:
        reduced = current.reduced[tensor] = torch.empty_like(parameter)
    if reduced.is_contiguous():
        reduced.view(-1)[begin : begin + part.numel()] = part
    else:
        indices = torch.arange(begin, begin + part.numel(), device=part.device)
        reduced.put_(indices, part)


def _like(parameter: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Lay the mean out as the parameter is, so that optimizers run the same loops as without."""
    return torch.empty_like(parameter).copy_(mean)
