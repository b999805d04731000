"""What is seen of the first batches, before anything is changed."""

from typing import Any, NamedTuple

import torch

from paceline.torch.model import tensors_in
from paceline.torch.run.apply._independence import Call
from paceline.torch.run.apply._loss_form import LossForm, Unfit, read_loss

# Relative spread of terms per example that is rounding.
SAME = 1e-6
# One step warms up, and one is slow from counting operations, also those that read a loss.
NUM_WARM_UP = 3


class Agreed(NamedTuple):
    """What the loss of every batch has in common.

    Attributes:
        signature: As `LossForm.signature`.
        terms_per_example: Terms of the mean that each example adds; None if they differ.
    """

    signature: tuple[str, ...]
    terms_per_example: float | None


class FirstBatches:
    """The first batches of this rank.

    Attributes:
        rows: Examples of each batch, with the number of the step that it was for.
        call: What the model was called with last.
        called_for: The examples of that call.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, list[int]]] = []
        self.call: Call | None = None
        self.called_for: list[int] = []
        self._outputs: set[Any] = set()
        self._signatures: set[tuple[str, ...]] = set()
        self._terms: list[float] = []
        self._reason = ""
        self._model: torch.nn.Module | None = None
        self._handles: list[Any] = []

    def look_at(self, model: torch.nn.Module) -> None:
        """Look at what `model` is called with and returns, unless it is looked at."""
        if model is not self._model:
            self.remove()
            self._model = model
            self._handles = [
                model.register_forward_pre_hook(self._before, with_kwargs=True),
                model.register_forward_hook(self._after),
            ]

    def remove(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._model = [], None

    def forget_call(self) -> None:
        """What was captured is needed no longer."""
        self.call = None

    def read(self, loss: torch.Tensor) -> LossForm:
        """Read a loss that comes from the model's last output.

        Raises:
            Unfit: If it cannot be read.
        """
        return read_loss(loss, self._outputs)

    def add(self, loss: torch.Tensor, step: int, rows: list[int], batch: Any) -> None:
        """Take the loss of a batch, as `backward()` is called."""
        self.rows.append((step, rows))
        self.called_for = rows
        if self._model is None or self._reason or step < NUM_WARM_UP:
            return
        try:
            self._check_first_axis(batch, len(rows))
            form = self.read(loss)
            if form.has_targets:
                _check_targets(form.terms(len(rows)), form.node._saved_target, batch)
            self._signatures.add(form.signature)
            self._terms.append(form.num_terms / len(rows))
        except Unfit as error:
            self._reason = str(error)

    def agreed(self) -> Agreed:
        """Return what all losses have in common.

        Raises:
            Unfit: If one could not be read, or they differ.
        """
        if self._reason:
            raise Unfit(self._reason)
        if len(self._signatures) != 1:
            raise Unfit(
                f"the loss is computed in {len(self._signatures)} ways, or scaled by a number that "
                "depends on the batch"
            )
        (signature,) = self._signatures
        least, most = min(self._terms), max(self._terms)
        if most - least <= SAME * most:
            return Agreed(signature, most)
        if not any(name.startswith("NllLoss") for name in signature):
            raise Unfit("the loss is a mean over padding as well, so other batches are other means")
        return Agreed(signature, None)

    def _before(self, model: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled() and model.training:
            self.call = Call(args, kwargs)

    def _after(self, model: torch.nn.Module, _args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            found = (one.grad_fn for one in tensors_in(output))
            self._outputs = {node for node in found if node is not None}

    def _check_first_axis(self, batch: Any, num_examples: int) -> None:
        for tensor in tensors_in(batch):
            if tensor.dim() and len(tensor) != num_examples:
                raise Unfit(
                    f"a batch of {num_examples} examples holds a tensor of shape "
                    f"{tuple(tensor.shape)}: its first axis is not the examples"
                )


def _check_targets(terms: torch.Tensor, target: torch.Tensor, batch: Any) -> None:
    """Check that the targets of each example are found in its own row of the batch."""
    if (terms == terms[0, 0]).all():
        return  # Whose is whose does not matter.
    counted, targets = terms.cpu() > 0, target.reshape(terms.shape).cpu()
    tables = [one.cpu() for one in tensors_in(batch) if one.dim() and not one.is_floating_point()]
    for table in tables:
        rows = zip(targets, counted, table, strict=True)
        if all(torch.isin(row[keep], values).all() for row, keep, values in rows):
            return
    raise Unfit("the targets of the loss are not found row by row in the batch")
