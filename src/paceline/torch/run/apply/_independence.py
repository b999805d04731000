"""Whether a model's output for an example depends on what it is batched with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from paceline.torch.measure import unchanged
from paceline.torch.model import tensors_in
from paceline.torch.run.apply._loss_form import Unfit

# Times the precision of its numbers: other shapes are summed in another order.
TOLERANCE = 200.0


class Call(Mapping[str, Any]):
    """What the model was called with; tensors by place or name."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._values = {**{str(place): one for place, one in enumerate(args)}, **kwargs}
        self._num_args = len(args)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def part(self, rows: torch.Tensor, num_rows: int, cut: int) -> "Call":
        """Return the call with these rows alone, and `cut` less of what is padded."""
        taken = {name: _rows_of(one, rows, num_rows, cut) for name, one in self.items()}
        args = [taken.pop(str(place)) for place in range(self._num_args)]
        return Call(tuple(args), taken)

    def on(self, model: torch.nn.Module) -> list[torch.Tensor]:
        """Call the model, and return the tensors that it returns."""
        args = [self[str(place)] for place in range(self._num_args)]
        named = {name: one for name, one in self.items() if not name.isdigit()}
        return [one for one in tensors_in(model(*args, **named)) if one.is_floating_point()]


def check_independent(model: torch.nn.Module, call: Call, lengths: torch.Tensor) -> None:
    """Call `model` with a part of a batch that it saw, and compare.

    Args:
        model: Without its data-parallel wrapper.
        call: What it was called with.
        lengths: Of each example of the batch, along the axis that is padded.

    Raises:
        Unfit: If an example's output is another one in other company.
    """
    norms = [one for one in model.modules() if isinstance(one, _NormBase)]
    if any(one.training for one in norms):
        raise Unfit(
            f"{type(norms[0]).__name__} mixes the examples of a batch, so other batches are "
            "other gradients"
        )
    num = len(lengths)
    rows = torch.argsort(lengths, stable=True)[: max(num // 2, 1)]
    cut = int(lengths.max()) - int(lengths[rows].max())
    try:
        with _quiet(model):
            whole, part = call.on(model), call.part(rows, num, cut).on(model)
    except Exception as error:
        raise Unfit(
            f"the model cannot be asked for a part of a batch ({type(error).__name__})"
        ) from error
    for before, after in zip(whole, part, strict=True):
        _check_equal(before, after, rows, num)


@contextmanager
def _quiet(model: torch.nn.Module) -> Iterator[None]:
    """Call it without a trace, and without dropout."""
    modes = [(one, one.training) for one in model.modules()]
    with unchanged(model), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _rows_of(value: Any, rows: torch.Tensor, num_rows: int, cut: int) -> Any:
    if isinstance(value, Mapping):
        return {name: _rows_of(one, rows, num_rows, cut) for name, one in value.items()}
    if not isinstance(value, torch.Tensor) or not value.dim() or len(value) != num_rows:
        return value
    taken = value[rows.to(value.device)]
    return taken[:, : taken.shape[1] - cut] if taken.dim() > 1 and taken.shape[1] > cut else taken


def _check_equal(
    before: torch.Tensor, after: torch.Tensor, rows: torch.Tensor, num_rows: int
) -> None:
    if not before.dim() or len(before) != num_rows:
        return  # A loss, such as models of transformers return beside their logits.
    kept = before[rows.to(before.device)][tuple(slice(extent) for extent in after.shape)]
    if kept.shape != after.shape:
        raise Unfit("the model's output has another shape in other company")
    largest = float(before.abs().max())
    if float((kept - after).abs().max()) > TOLERANCE * torch.finfo(before.dtype).eps * largest:
        raise Unfit(
            "the model's output for an example depends on what it is batched with (padding counts "
            "in it?), so other batches are other gradients"
        )
