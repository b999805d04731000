"""Weigh the gradients of examples that changed ranks, so that nothing else changes.

Plain data-parallel training averages the means of all ranks. An example that rank `p` was dealt
counts `1 / D_p` in its rank's mean, where `D_p` are the terms of that mean: examples, or targets
that are not ignored. Computed on rank `r`, in a mean of `D_r` terms, its gradient is multiplied by
`D_r / D_p`. The average over ranks is then what it was, however the examples are spread.
"""

from typing import Any

import numpy as np
import torch

from paceline.torch.run.apply._deal import Dealt
from paceline.torch.run.apply._first_batches import SAME, Agreed
from paceline.torch.run.apply._loss_form import LossForm, Unfit
from paceline.torch.run.apply._talk import Talk


class Weights:
    """Weighs batches; ranks talk where targets must be counted.

    Args:
        agreed: How the script's loss is made.
        batch_size: Examples that each rank is dealt.
        talk: All ranks.
    """

    def __init__(self, agreed: Agreed, batch_size: int, talk: Talk) -> None:
        self._agreed, self._batch_size, self._talk = agreed, batch_size, talk

    def weigh(self, form: LossForm, batch: Dealt) -> float:
        """Weigh a divided batch; return what its whole loss is to be multiplied by.

        Raises:
            Unfit: If its loss is made in another way than those seen before.
        """
        per_example = self._agreed.terms_per_example
        if form.signature != self._agreed.signature:
            raise Unfit("the loss is computed in another way than in the first steps")
        if per_example is None:
            self._weigh_targets(form, batch)
            return 1.0
        if abs(form.num_terms / len(batch.rows) - per_example) > SAME * per_example:
            raise Unfit(
                f"the loss is a mean over {form.num_terms / len(batch.rows):g} terms per example, "
                f"{per_example:g} in the first steps"
            )
        return len(batch.rows) / self._batch_size

    def _weigh_targets(self, form: LossForm, batch: Dealt) -> None:
        assert batch.dealt_to is not None, "a divided batch knows where it came from"
        terms = form.terms(len(batch.rows))
        per_row = terms.sum(1).cpu().numpy()
        own = np.bincount(batch.dealt_to, per_row, self._talk.num_ranks).astype(np.float64)
        of_rank = self._talk.sum(own)[batch.dealt_to]
        weight = np.divide(per_row.sum(), of_rank, out=np.zeros(len(of_rank)), where=of_rank > 0)
        factor = torch.from_numpy(weight).to(terms.device)[:, None].expand_as(terms)
        _scale_input_gradient(form.node, factor.reshape(form.node._saved_target.shape))


def _scale_input_gradient(node: Any, factor: torch.Tensor) -> None:
    """Multiply the gradient that `node` passes on; its second axis are the classes."""

    def scale(inputs: tuple[torch.Tensor | None, ...], _outputs: Any) -> Any:
        first = inputs[0]
        assert first is not None, "the model's output needs a gradient"
        return (first * factor.unsqueeze(1).to(first.dtype), *inputs[1:])

    node.register_hook(scale)
