"""Turn a live model into a `Job`: what each layer costs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline.cost import Job, LayerCost, Worker
from paceline.errors import MeasurementError
from paceline.torch.measure._layer_marks import LayerMarks
from paceline.torch.measure._link import measure_link
from paceline.torch.measure._unchanged import unchanged
from paceline.torch.model import call_model, clock_of, mean_square
from paceline.torch.ranks import Group, from_rank_0, process_group_of

NUM_WARMUP = 3
Loss = Callable[[Any], torch.Tensor]


def measure_job(
    model: torch.nn.Module,
    batch: Any,
    *,
    loss: Loss | None = None,
    num_steps: int = 20,
    process_group: Group | None = None,
) -> Job:
    """Measure what a step of `model` on `batch` costs, layer by layer, and the link.

    Takes medians over `num_steps` forward and backward passes; the first three only warm up. A
    layer is a module that owns parameters. The time since the layer before it ended counts as its
    own, so the layers add up to the step, and activations count to the next layer. A layer that is
    called twice gets the sum, one without use zeros. Shared parameters count at the first owner.

    Gradients, buffers and random state are put back. In a process group the link is measured too,
    and all ranks get rank 0's numbers.

    Args:
        model: What the training loop calls; DDP is measured without its all-reduces.
        batch: Passed as `model(**batch)` if a mapping, `model(*batch)` if a tuple, or as it is.
        loss: Turns the model's output into a scalar; unset for the mean square of all floating
            outputs, which takes about as long as any.
        num_steps: Passes in all, at least 4.
        process_group: Ranks that train together, or an axis of a mesh; unset for the default group.

    Returns:
        A measured job with one worker per rank.

    Raises:
        ValueError: If `num_steps` is below 4.
        MeasurementError: If the model has no parameter that gets a gradient.

    Examples:
        >>> linear, head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
        >>> model = torch.nn.Sequential(linear, torch.nn.ReLU(), head)
        >>> job = measure_job(model, torch.ones(2, 4), num_steps=4)
        >>> [(layer.name, layer.gradient_bytes) for layer in job.layers]
        [('0', 160), ('2', 36)]
    """
    if num_steps <= NUM_WARMUP:
        raise ValueError(f"num_steps must be at least {NUM_WARMUP + 1}, got {num_steps}")
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    probe = _Probe(bare)
    with unchanged(bare), probe.hooks():
        steps = [probe.run_step(batch, loss or mean_square) for _ in range(num_steps)]
    seconds = np.median(np.stack(steps[NUM_WARMUP:]), axis=0)
    num_workers, link = 1, None
    if dist.is_available() and dist.is_initialized():
        group = process_group_of(process_group)
        num_workers = dist.get_world_size(group)
        seconds = from_rank_0(seconds, group)
        link = measure_link(group) if num_workers > 1 else None
    layers = probe.layer_costs(seconds)
    return Job(source="measured", layers=layers, link=link, workers=(Worker(),) * num_workers)


class _Probe:
    """Hooks that mark when each layer's forward pass ends and its gradients are ready."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._clock = clock_of(model)
        self._layers = LayerMarks(model, self._clock, self._on_call)
        self.hooks = self._layers.hooks
        self._first_call: dict[int, int] = {}
        self._bytes = np.zeros(len(self._layers.names), np.int64)

    def run_step(self, batch: Any, loss: Loss) -> NDArray[np.float64]:
        """Run one step; return forward and backward seconds, shape `(2, num_layers)`."""
        taken = self._layers.taken
        taken.clear()
        self._model.zero_grad(set_to_none=True)
        begin = self._clock.mark()
        value = loss(call_model(self._model, batch))
        num_forward, forward_end = len(taken), self._clock.mark()
        if value.requires_grad:
            value.backward()
        backward_end = self._clock.mark()
        layers = [one.layer for one in taken]
        marks = [one.mark for one in taken]
        self._bytes[:] = 0
        np.add.at(self._bytes, layers, [one.gradient_bytes for one in taken])
        if not self._bytes.any():
            raise MeasurementError("no parameter gets a gradient: is the whole model frozen?")
        times = self._clock.seconds([begin, *marks[:num_forward], forward_end])
        forward_s = self._attribute(layers[:num_forward], times)
        times = self._clock.seconds([forward_end, *marks[num_forward:], backward_end])
        return np.stack([forward_s, self._attribute(layers[num_forward:], times)])

    def layer_costs(self, seconds: NDArray[np.float64]) -> tuple[LayerCost, ...]:
        """Return the layers in the order of their first call."""
        position, key = -1, []
        for layer in range(len(self._bytes)):
            # A layer whose parameters are used without calling it stays with the one before.
            position = self._first_call.get(layer, position)
            key.append((position, layer))
        costs = []
        for _, layer in sorted(key):
            forward_s, backward_s = seconds[:, layer].tolist()
            costs.append(
                LayerCost(
                    name=self._layers.names[layer],
                    forward_s=forward_s,
                    backward_s=backward_s,
                    gradient_bytes=int(self._bytes[layer]),
                )
            )
        return tuple(costs)

    def _attribute(self, layers: list[int], times_s: list[float]) -> NDArray[np.float64]:
        """Give each mark the time since the mark before, and the rest to the last."""
        seconds = np.zeros(len(self._bytes))
        np.add.at(seconds, layers, np.diff(times_s[:-1]))
        if layers:
            seconds[layers[-1]] += times_s[-1] - times_s[-2]
        return seconds

    def _on_call(self, layer: int) -> None:
        self._first_call.setdefault(layer, len(self._first_call))
