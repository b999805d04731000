"""Sketches of all ranks, in the order of the examples, for an order that learns."""

import warnings
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from paceline.balance import EpochPlan, delivery_of
from paceline.order import OrderPolicy
from paceline.torch.balance import BalancedBatchSampler, BatchPass
from paceline.torch.order._gradient_sketch import GradientSketch, quantise_rows
from paceline.torch.ranks import device_of

SCALE_BYTES = 4
INT8_MAX = 127.0
# Parameters that a warning names.
NAMED = 3


class GradientOrder:
    """Tells a sampler's order what the gradients of its examples look like.

    Call `observe` once per step, after its last `backward()`. It gathers the sketches of all ranks'
    examples and passes them to the order, sorted by place in it. All ranks make the same plan,
    so no example numbers are sent: per step, one all-gather of `dim + 4` bytes for each example.
    Epochs that are not sketched need no communication.

    The loss must be the mean over the batch times `paceline.DataLoader.loss_weight`.

    Args:
        sketch: Of the model; a row per example. It learns from here which epoch it is.
        sampler: Made with `order="pair-balance"` or a policy that learns.

    Raises:
        ValueError: If the order learns nothing, or several ranks have no process group.

    Examples:
        >>> from paceline.torch import DataLoader
        >>> batches = BalancedBatchSampler([1] * 8, batch_size=4, order="pair-balance")
        >>> loader = DataLoader(torch.eye(8), batch_sampler=batches)
        >>> model = torch.nn.Linear(8, 1)
        >>> order = GradientOrder(GradientSketch(model), batches)
        >>> for x in loader:
        ...     (model(x).mean() * loader.loss_weight).backward()
        ...     order.observe()
        >>> batches.set_epoch(1)  # ends epoch 0: its rows make the new order
        >>> sorted(batches.plan.examples.tolist())
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(self, sketch: GradientSketch, sampler: BalancedBatchSampler) -> None:
        policy = sampler.order
        if policy is None or not policy.needs_rows:
            name = "shuffle" if policy is None else policy.name
            raise ValueError(
                f"the order {name!r} learns nothing from gradients; leave the sketches out, or "
                'make the sampler with order="pair-balance"'
            )
        group = sampler.process_group
        if group is None and sampler.num_replicas > 1:
            raise ValueError(
                f"the sketches of {sampler.num_replicas} ranks are gathered in a process group; "
                "call init_process_group first, and pass the sampler its process_group"
            )
        self._policy: OrderPolicy = policy
        self._sketch, self._rank, self._num_ranks = sketch, sampler.rank, sampler.num_replicas
        self._group = group
        self._run: BatchPass | None = None
        self._step = 0
        self._has_warned = False
        self._rows: _ExpectedRows | None = None
        sampler.on_begin(self._begin)

    def observe(self, *, loss_scale: float = 1.0) -> None:
        """Take the rows of the step whose last backward pass has just ended; on all ranks.

        Rows that are not finite are left out, and so are repeats that count nothing.

        Args:
            loss_scale: Factor of the loss beside `loss_weight`: `get_scale()` before `update()`.

        Raises:
            RuntimeError: If no step is under way.
            ValueError: If the model ran on more or fewer examples than the step has here.
        """
        run = self._current_run()
        step, self._step = self._step, self._step + 1
        if self._sketch.is_on:
            if self._rows is None:
                self._rows = _ExpectedRows(run.plan, self._policy.order(run.begin.epoch))
            self._learn(self._rows, step, loss_scale)

    def _begin(self, run: BatchPass) -> None:
        self._run, self._step, self._rows = run, run.begin.num_steps, None
        self._sketch.set_epoch(run.begin.epoch)

    def _current_run(self) -> BatchPass:
        run = self._run
        is_there = run is not None and self._step < run.plan.num_steps
        if run is None or not is_there or run.begin.epoch != self._policy.epoch:
            raise RuntimeError(
                "observe() belongs to a step of the sampler's pass, and none is under way; make "
                "the GradientOrder before the loop, and call it once per step, before set_epoch"
            )
        return run

    def _learn(self, expected: "_ExpectedRows", step: int, loss_scale: float) -> None:
        part = expected.parts[step]
        worker, weight = expected.worker[part], expected.loss_weight[part]
        packed = self._own_rows(step, int((worker == self._rank).sum()), loss_scale)
        self._warn_of_left_out()
        if self._num_ranks > 1:
            packed = self._all_gather(packed, np.bincount(worker, minlength=self._num_ranks))
        content = packed.cpu().numpy()
        values = content[:, :-SCALE_BYTES].view(np.int8)
        scales = np.ascontiguousarray(content[:, -SCALE_BYTES:]).view(np.float32)[:, 0]
        # Repeats that count nothing have a weight of 0: they become infinite, or 0 / 0.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scales = scales / weight
        # The sum over a row that is too long to be added up is not finite either.
        largest = np.finfo(np.float32).max / (INT8_MAX * values.shape[1])
        kept = expected.by_place[part]
        kept = kept[scales[kept] < largest]
        self._policy.observe(expected.examples[part][kept], values[kept], scales[kept])

    def _warn_of_left_out(self) -> None:
        """Say once, on rank 0 and after a step, what the order is learnt without."""
        left_out = self._sketch.left_out
        if left_out and self._rank == 0 and not self._has_warned:
            self._has_warned = True
            named = ", ".join(f"{name} ({why})" for name, why in list(left_out.items())[:NAMED])
            more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
            warnings.warn(
                f"rank 0: the order is learnt without {named}{more}, whose gradients are not "
                "sketched; the others decide. GradientSketch.left_out holds them all",
                stacklevel=4,
            )

    def _own_rows(self, step: int, num_expected: int, loss_scale: float) -> Tensor:
        """Return this rank's rows as bytes, each followed by its scale."""
        rows = self._sketch.take()
        if len(rows) != num_expected:
            raise ValueError(
                f"rank {self._rank} has {num_expected} examples in step {step}, but {len(rows)} "
                "rows; call observe() once per step, sketch with per=1, and run the model once "
                "on each micro-batch"
            )
        values, scale = quantise_rows(rows)
        scale = torch.where(rows.sum(1).isfinite(), scale / loss_scale, torch.nan)
        return torch.cat([values.view(torch.uint8), scale[:, None].view(torch.uint8)], 1)

    def _all_gather(self, own: Tensor, counts: NDArray[np.int64]) -> Tensor:
        """Return the rows of all ranks, rank after rank."""
        shape = (int(counts.max()), own.shape[1])
        sent = torch.zeros(shape, dtype=torch.uint8, device=device_of(self._group))
        sent[: len(own)] = own
        received = sent.new_empty(self._num_ranks * shape[0], shape[1])
        dist.all_gather_into_tensor(received, sent, group=self._group)
        parts = received.cpu().split(shape[0])
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _ExpectedRows:
    """Which examples the rows of each step are of; `by_place` sorts them as the order does."""

    def __init__(self, plan: EpochPlan, order: NDArray[np.int64]) -> None:
        found = delivery_of(plan)
        self.examples, self.worker = found.examples, found.worker
        self.loss_weight = found.loss_weight.astype(np.float32)
        self.parts = [slice(begin, end) for begin, end in pairwise(found.step_offsets.tolist())]
        step = np.repeat(np.arange(plan.num_steps), np.diff(found.step_offsets))
        by_place = np.lexsort((np.argsort(order)[found.examples], step))
        self.by_place = by_place - found.step_offsets[step]
