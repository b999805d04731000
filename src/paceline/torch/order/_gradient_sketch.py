"""Short vectors whose inner products are those of per-example gradients."""

from collections.abc import Collection
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from paceline.torch.model import ParamUse, tensors_in
from paceline.torch.order._layers import Tap
from paceline.torch.order._slots import NotByExampleError, SketchedBatch
from paceline.torch.order._taps import Layout


class GradientSketch:
    """Sketch each example's gradient while an ordinary `loss.backward()` runs.

    Hooks see every layer's input `a` and output gradient `b`. The gradient of an example with
    respect to a linear layer's weight is `Σ b aᵀ` over its positions; its sketch is `Σ (L b)(R a)ᵀ`
    with random sign matrices `L` and `R`: the gradient itself is never formed [1]. A row holds the
    sketches of all layers. Inner products of rows are, on average over seeds, those of gradients;
    their variance is at most `relative_variance * |g|² |h|²`: each factor of k rows keeps them
    within `2 / k` [2]. Where `dim` has room for all parameters, rows hold the gradients exactly.

    Linear, Embedding, Conv1d, Conv2d, LayerNorm, RMSNorm, BatchNorm, GroupNorm, LSTM and GRU layers
    are sketched (recurrent layers by running them a second time). Other parameters are named in
    `left_out`. Gradients, outputs and random states stay as they are, bit for bit.

    Args:
        model: The module that the loop calls, or what it wraps.
        dim: Most columns that a row may have; at least the number of layers.
        every: Sketch epochs 0, `every`, 2 `every`, ...; there are no hooks in others.
        per: Consecutive examples of a batch whose mean gradient makes one row.
        reduction: Of the loss over a batch. After "mean", rows are multiplied by its size.
        batch_dim: Axis of the examples if several come before the features: 1 for sequence-first.
        seed: Fixes the projections; the same on every rank and after a restart.
        skip: Names of modules whose parameters are left out, with those inside them: the first
            layers see the largest inputs, so they cost most of the time.

    Attributes:
        dim: Columns of a row.
        left_out: Trained parameters outside `skip` that rows lack, or lack a part of, and why;
            may still grow.
        relative_variance: The worst layer's bound, over seeds; see above.

    Raises:
        ValueError: If `dim`, `every` or `per` is too small, `skip` names what the model does not
            have, or nothing can be sketched.

    Examples:
        >>> model = torch.nn.Linear(4, 1)
        >>> sketch = GradientSketch(model, dim=1024)
        >>> model(torch.eye(4)[:3]).mean().backward()
        >>> rows = sketch.take()
        >>> (rows @ rows.T).tolist()  # the gradients of example 0 and 1 share only the bias
        [[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]

    References:
        [1] I. Goodfellow, "Efficient per-example gradient computations", 2015
        (arXiv:1510.01799), for the sum over `b aᵀ`.

        [2] T. D. Ahle et al., "Oblivious sketching of high-degree polynomial kernels", SODA 2020,
        for products of factors; the bound holds for every vector, so for sums over positions too.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dim: int = 1024,
        every: int = 1,
        per: int = 1,
        reduction: str = "mean",
        batch_dim: int = 0,
        seed: int = 0,
        skip: Collection[str] = (),
    ) -> None:
        if every < 1 or per < 1:
            raise ValueError(f"every and per must be at least 1, got {every} and {per}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        layout = Layout(model, dim, seed, skip)
        if not layout.taps:
            raise ValueError(f"no layer of the model can be sketched: {layout.left_out}")
        self._model, self._every, self._per = model, every, per
        self._is_mean, self._batch_dim = reduction == "mean", batch_dim
        self._taps, self._skipped = layout.taps, layout.skipped
        self.dim, self.left_out = layout.dim, layout.left_out
        self.relative_variance = layout.relative_variance
        self._batches: list[SketchedBatch] = []
        self._uses = ParamUse(model)
        self._is_first = True
        self._handles: list[Any] = []
        self.set_epoch(0)

    @property
    def is_on(self) -> bool:
        """Whether the passes of this epoch are sketched."""
        return bool(self._handles)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: add the hooks, or remove them where the epoch is not sketched."""
        self._batches.clear()
        if epoch % self._every:
            self.remove_hooks()
        elif not self._handles:
            self._handles.append(
                self._model.register_forward_pre_hook(self._on_batch, with_kwargs=True)
            )
            for module, taps in self._taps.items():
                hook = partial(self._on_layer, taps)
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def take(self, *, loss_scale: float = 1.0) -> Tensor:
        """Return the rows since the last call, and forget them.

        Args:
            loss_scale: What the loss was multiplied by before `backward()`: a gradient
                scaler's `get_scale()`, or one over the number of accumulated passes.
                Passes of an overflowed step have rows that are not finite.

        Returns:
            Rows of examples (or of groups of `per` examples of one pass, the last of them
            smaller) in the order of the forward passes. Shape `(num, dim)`, float32, on
            the device of the model. Passes without a backward pass have none.
        """
        done = [batch.rows for batch in self._batches if batch.rows is not None]
        self._batches.clear()
        if self._per > 1:
            done = [torch.stack([g.mean(0) for g in rows.split(self._per)]) for rows in done]
        rows = done[0] if len(done) == 1 else torch.cat(done or [torch.zeros(0, self.dim)])
        return rows if loss_scale == 1.0 else rows / loss_scale

    def remove_hooks(self) -> None:
        """Stop sketching; the model is as it was."""
        self._batches.clear()
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove_hooks()

    def _on_batch(self, _model: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        first = next(tensors_in((args, kwargs)))
        num_examples = first.shape[self._batch_dim if first.ndim > 1 else 0]
        scale = float(num_examples) if self._is_mean else 1.0
        self._batches.append(SketchedBatch(num_examples, self.dim, self._batch_dim, scale))
        if self._is_first:
            self._is_first = False
            # Parameters may work outside of the layers that own them.
            self._uses.record_pass(self._name_other_users)

    def _on_layer(
        self, taps: list[Tap], module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        # A pass that a checkpoint repeats belongs to the batch whose gradients come.
        is_repeated = torch._C._current_graph_task_id() != -1
        batch = None if is_repeated or not self._batches else self._batches[-1]
        inputs = (*args, *kwargs.values()) if kwargs else args
        outputs = (output,) if isinstance(output, Tensor) else tensors_in(output)
        for tap, tensor in zip(taps, outputs, strict=True):
            if tensor.requires_grad:
                kept = tap.keep(inputs)
                tensor.register_hook(partial(self._on_grad, module, tap, batch, kept))

    def _on_grad(
        self, module: nn.Module, tap: Tap, batch: SketchedBatch | None, kept: Any, grad: Tensor
    ) -> None:
        if module not in self._taps or not self._handles:
            return
        try:
            tap.add(batch or self._waiting(), kept, grad.detach() if grad.requires_grad else grad)
        except NotByExampleError as error:
            self._leave_out(module, str(error))

    def _waiting(self) -> SketchedBatch:
        """Return the batch that a repeated pass belongs to."""
        without = [batch for batch in self._batches[:-1] if batch.rows is None]
        if without or not self._batches:
            raise RuntimeError(
                f"{len(without) + 1} forward passes wait for their gradients, and a checkpoint "
                "does not say which of them it repeats; use checkpoint(use_reentrant=False)"
            )
        return self._batches[-1]

    def _leave_out(self, module: nn.Module, reason: str) -> None:
        del self._taps[module]
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if id(parameter) in own:
                self.left_out[name] = reason

    def _name_other_users(self) -> None:
        names = {id(p): name for name, p in self._model.named_parameters() if p.requires_grad}
        for parameter, users in self._uses.users.items():
            others = [user for user in users if user not in {*self._taps, *self._skipped}]
            name = names.get(id(parameter))
            if others and name is not None and name not in self.left_out:
                kinds = ", ".join(sorted({type(user).__name__ for user in others}))
                self.left_out[name] = f"also used directly in {kinds}, where no hook sees it"


def quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Store rows in a quarter of the space: int8 values, and one float32 scale for each row.

    `values * scale[:, None]` is within half a scale of `rows`; a scale is the row's
    largest absolute value over 127. A row that is not finite has a scale that is not.

    Examples:
        >>> values, scale = quantise_rows(torch.tensor([[1.0, -127.0]]))
        >>> values.tolist(), scale.tolist()
        ([[1, -127]], [1.0])
    """
    largest = rows.abs().amax(1)
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / 127)
    values = (rows / scale[:, None]).round().nan_to_num(0.0, 0.0, 0.0).to(torch.int8)
    return values, scale
