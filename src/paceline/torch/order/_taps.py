"""Which layers of a model are sketched, where in a row, and which are left out, and why."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from paceline.torch.order._conv import ConvSlot, ConvTap, padding_of
from paceline.torch.order._layers import (
    ChannelNormTap,
    EmbeddingTap,
    FeatureNormTap,
    LinearTap,
    Tap,
)
from paceline.torch.order._recurrent import Half, RecurrentTap, reason_against
from paceline.torch.order._slots import MatrixSlot, VectorSlot

Slot = MatrixSlot | VectorSlot | ConvSlot


class Layout:
    """The taps of a model and the columns of a row.

    Attributes:
        taps: For each sketched module, one tap for each tensor that it returns.
        left_out: Trained parameters, by name, that no row knows of, with the reason.
        skipped: Modules that are left out because they were named.
        dim: Columns of a row.
    """

    def __init__(self, model: nn.Module, dim: int, seed: int, skip: Collection[str] = ()) -> None:
        self.taps: dict[nn.Module, list[Tap]] = {}
        self.left_out: dict[str, str] = {}
        self._slots: dict[Tensor, Slot] = {}
        self._params = list(model.parameters())
        self.skipped = _inside(model, skip)
        self._refused = set(self.skipped)
        for name, module in model.named_modules():
            if module not in self._refused:
                self._visit(name, module)
        self.dim = self._place(dim, seed)
        self.relative_variance = max(
            (slot.relative_variance for slot in self._slots.values()), default=0.0
        )

    def _visit(self, name: str, module: nn.Module) -> None:
        trained = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        if isinstance(module, nn.MultiheadAttention):
            # Its projections are functional calls: no layer, no hook.
            self._refused.update(module.modules())
            trained = {key: p for key, p in module.named_parameters() if p.requires_grad}
        if not trained:
            return
        reason = _reason_against(module, set(trained))
        if reason is None:
            self.taps[module] = self._taps_of(module)
        else:
            prefix = f"{name}." if name else ""
            self.left_out.update({prefix + key: reason for key in trained})

    def _taps_of(self, module: Any) -> list[Tap]:
        if isinstance(module, nn.Linear):
            slot, bias = self._matrix(module.weight, module.bias)
            return [LinearTap(module, slot, bias)]
        if isinstance(module, nn.Embedding):
            return [EmbeddingTap(module, self._matrix(module.weight, None)[0])]
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            trains_bias = module.bias is not None and module.bias.requires_grad
            conv = self._slot(module.weight, lambda: ConvSlot(module.weight, trains_bias))
            return [ConvTap(module, conv)]
        if isinstance(module, nn.RNNBase):
            halves = list(self._halves(module))
            outputs = 3 if isinstance(module, nn.LSTM) else 2
            return [RecurrentTap(module, halves, output) for output in range(outputs)]
        return [self._norm_tap(module)]

    def _norm_tap(self, module: Any) -> Tap:
        num_params = sum(p.numel() for p in module.parameters())
        slot = self._slot(module.weight, lambda: VectorSlot(num_params))
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            return FeatureNormTap(module, slot)
        return ChannelNormTap(module, slot)

    def _halves(self, layer: nn.RNNBase) -> Iterator[tuple[Half, Half]]:
        for index in range(layer.num_layers):
            for ending in (f"_l{index}", f"_l{index}_reverse")[: 1 + layer.bidirectional]:
                ih, hh = (
                    self._matrix(getattr(layer, "weight" + key), getattr(layer, "bias" + key, None))
                    for key in (f"_ih{ending}", f"_hh{ending}")
                )
                yield ih, hh

    def _matrix(self, weight: Tensor, bias: Tensor | None) -> Half:
        slot = self._slot(weight, lambda: MatrixSlot(weight))
        if bias is None or not bias.requires_grad:
            return slot, None
        slot.add_bias(bias)
        return slot, bias

    def _slot(self, weight: Tensor, make: Callable[[], Slot]) -> Any:
        # Layers that share a weight share its columns: what they contribute adds up.
        if weight not in self._slots:
            self._slots[weight] = make()
        return self._slots[weight]

    def _place(self, dim: int, seed: int) -> int:
        slots = list(self._slots.values())
        if dim < len(slots):
            raise ValueError(f"dim must be at least the number of layers, {len(slots)}; got {dim}")
        for slot in slots:
            if isinstance(slot, ConvSlot):
                slot.is_exact = dim >= sum(p.numel() for p in self._params)
        generator = torch.Generator().manual_seed(seed)
        end = 0
        for slot, width in zip(slots, _widths(slots, dim), strict=True):
            end = slot.place(end, width, generator)
        return end


def _inside(model: nn.Module, names: Collection[str]) -> set[nn.Module]:
    """Return the modules of these names, with all that they hold."""
    named = dict(model.named_modules())
    if unknown := [name for name in names if name not in named]:
        raise ValueError(
            f"skip must name modules of the model, got {unknown[0]!r}; it has "
            f"{', '.join(sorted(filter(None, named))[:10])}"
        )
    return {part for name in names for part in named[name].modules()}


def _widths(slots: list[Slot], dim: int) -> list[int]:
    """Share columns evenly; what a small slot does not need goes to the others."""
    width: dict[int, int] = {}
    left, share = dim, sum(slot.share for slot in slots)
    for index in sorted(range(len(slots)), key=lambda i: slots[i].num_columns / slots[i].share):
        slot = slots[index]
        width[index] = max(1, min(slot.num_columns, int(left * slot.share / share)))
        left, share = left - width[index], share - slot.share
    return [width[index] for index in range(len(slots))]


def _reason_against(module: Any, trained: set[str]) -> str | None:
    if isinstance(module, nn.RNNBase):
        if len(trained) < len(list(module.parameters())):
            return "only a part of the layer is trained"
        return reason_against(module)
    if isinstance(module, nn.MultiheadAttention):
        return "its projections are functional calls that no hook sees"
    if "weight" not in trained and isinstance(module, _SKETCHED):
        return "its weight is not trained"
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return _reason_against_conv(module)
    if isinstance(module, _NORMS):
        frozen = [p for p in module.parameters() if not p.requires_grad]
        return "only a part of the layer is trained" if frozen else None
    if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
        return "scale_grad_by_freq depends on the other examples"
    return None if isinstance(module, _SKETCHED) else f"{type(module).__name__} is not sketched"


def _reason_against_conv(layer: nn.Conv1d | nn.Conv2d) -> str | None:
    if layer.groups != 1:
        return "convolutions of several groups are not sketched"
    if layer.padding_mode != "zeros" or padding_of(layer) is None:
        return "only symmetric padding with zeros is sketched"
    return None


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SKETCHED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, *_NORMS)
