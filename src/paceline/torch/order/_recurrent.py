"""The sketch of LSTM and GRU layers: their gates' gradients, found by running them once more.

Torch runs a recurrent layer as one operation and does not show the gradients inside it. So the
layer is run again, step by step, from its kept input, and differentiated from the gradient of
its output: exact, and about as expensive as the layer itself.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paceline.torch.order._batch import NotByExampleError, SketchedBatch
from paceline.torch.order._slots import MatrixSlot

# The input's weight and the state's weight, each with its bias.
Half = tuple[MatrixSlot, Tensor | None]


def reason_against(layer: nn.RNNBase) -> str | None:
    """Say why a recurrent layer cannot be run again, or return None."""
    if not isinstance(layer, (nn.LSTM, nn.GRU)):
        return f"{type(layer).__name__} layers are not sketched"
    if getattr(layer, "proj_size", 0):
        return "recurrent layers with projections are not sketched"
    if layer.dropout and layer.num_layers > 1:
        return "dropout between recurrent layers cannot be repeated"
    return None


class RecurrentTap:
    """One output of an `nn.LSTM` or `nn.GRU`: the sequence, or a last state."""

    def __init__(self, layer: nn.RNNBase, halves: list[tuple[Half, Half]], output: int) -> None:
        self._layer, self._halves, self._output = layer, halves, output

    def keep(self, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
        """The input is kept by the layer itself, unless it is checkpointed."""
        return inputs[0], inputs[1] if len(inputs) > 1 else None

    def add(self, batch: SketchedBatch, kept: tuple[Any, Any], grad: Tensor) -> None:
        """Add the sums over time of the gates' gradients times the inputs and the states."""
        x, state = kept
        axis = 0 if self._layer.batch_first else 1
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[axis] != batch.num_examples:
            raise NotByExampleError("its input is not a padded batch of the examples")
        x = x.detach() if axis == 0 else x.detach().transpose(0, 1)
        if self._output == 0 and axis == 1:
            grad = grad.transpose(0, 1)
        with torch.enable_grad():
            outputs, uses = _run(self._layer, x, state)
        probes = [probe for use in uses for probe in (use.input_probe, use.state_probe)]
        gates = torch.autograd.grad(
            outputs[self._output], probes, grad.to(outputs[0]), allow_unused=True
        )
        for index, (use, halves) in enumerate(zip(uses, self._halves, strict=True)):
            for side, (slot, bias) in enumerate(halves):
                gate = gates[2 * index + side]
                if gate is not None:
                    _add(batch, slot, bias, (use.inputs, use.states)[side], gate)


class _Use:
    """One direction of one layer: what went in, and zeros added to its gates."""

    def __init__(self, inputs: Tensor, num_gates: int) -> None:
        shape = (*inputs.shape[:2], num_gates)
        self.inputs = inputs.detach()
        self.input_probe = inputs.new_zeros(shape, requires_grad=True)
        self.state_probe = inputs.new_zeros(shape, requires_grad=True)
        self.states = inputs.new_zeros(())


def _add(
    batch: SketchedBatch, slot: MatrixSlot, bias: Tensor | None, x: Tensor, gate: Tensor
) -> None:
    left = slot.outputs(gate.reshape(-1, gate.shape[2]))
    right = slot.inputs(x.reshape(-1, x.shape[2]), bias)
    num = len(x)
    outs = left.view(-1, num, x.shape[1]).transpose(0, 1)
    ins = right.view(-1, num, x.shape[1]).transpose(0, 1)
    batch.add_block(slot.start, (outs @ ins.mT).flatten(1))


def _run(layer: nn.RNNBase, x: Tensor, state: Any) -> tuple[list[Tensor], list[_Use]]:
    """Return the outputs, `(batch, time, ...)` and `(layers, batch, hidden)`, and the uses."""
    num_directions = 2 if layer.bidirectional else 1
    uses: list[_Use] = []
    lasts: list[list[Tensor]] = []
    for index in range(layer.num_layers):
        outputs = []
        for direction in range(num_directions):
            start = _start(layer, x, state, index * num_directions + direction)
            output, last, use = _run_one(layer, x, start, index, direction)
            outputs.append(output)
            lasts.append(last)
            uses.append(use)
        x = torch.cat(outputs, 2)
    return [x, *(torch.stack(parts) for parts in zip(*lasts, strict=True))], uses


def _start(layer: nn.RNNBase, x: Tensor, state: Any, index: int) -> list[Tensor]:
    num_states = 2 if isinstance(layer, nn.LSTM) else 1
    if state is None:
        return [x.new_zeros(len(x), layer.hidden_size) for _ in range(num_states)]
    states = state if isinstance(state, (tuple, list)) else (state,)
    return [part.detach()[index] for part in states]


def _run_one(
    layer: nn.RNNBase, x: Tensor, start: list[Tensor], index: int, direction: int
) -> tuple[Tensor, list[Tensor], _Use]:
    suffix = f"_l{index}" + ("_reverse" if direction else "")
    weight = partial(_weight, layer, suffix)
    use = _Use(x, weight("weight_ih").shape[0])
    times = range(x.shape[1] - 1, -1, -1) if direction else range(x.shape[1])
    from_input = torch.nn.functional.linear(x, weight("weight_ih"), weight("bias_ih"))
    from_input = from_input + use.input_probe
    state, hidden, before = start, {}, {}
    for time in times:
        before[time] = state[0].detach()
        from_state = torch.nn.functional.linear(state[0], weight("weight_hh"), weight("bias_hh"))
        from_state = from_state + use.state_probe[:, time]
        state = _cell(from_input[:, time], from_state, state)
        hidden[time] = state[0]
    order = range(x.shape[1])
    use.states = torch.stack([before[time] for time in order], 1)
    return torch.stack([hidden[time] for time in order], 1), state, use


def _weight(layer: nn.RNNBase, suffix: str, name: str) -> Any:
    value = getattr(layer, name + suffix) if layer.bias or name.startswith("weight") else None
    return None if value is None else value.detach()


def _cell(x: Tensor, h: Tensor, state: list[Tensor]) -> list[Tensor]:
    if len(state) == 2:
        i, f, g, o = (x + h).chunk(4, 1)
        memory = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return [o.sigmoid() * memory.tanh(), memory]
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), h.chunk(3, 1)
    update = (xz + hz).sigmoid()
    return [(1 - update) * (xn + (xr + hr).sigmoid() * hn).tanh() + update * state[0]]
