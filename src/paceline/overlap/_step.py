"""One training step as tasks on lanes, with some weight gradients deferred."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.cost import checked_column
from paceline.overlap._graph import Task, lane_graph
from paceline.timeline import Kind, TaskGraph

LANES = ("main", "assist", "comm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Intra-op threads per phase.

    Attributes:
        forward: Of the main lane in the forward pass.
        backward: Of the main lane in the backward pass.
        assist: Of the assist lane.
    """

    forward: int = 1
    backward: int = 1
    assist: int = 1

    def __post_init__(self) -> None:
        for name in ("forward", "backward", "assist"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 thread, got {getattr(self, name)}")

    def __str__(self) -> str:
        return f"{self.forward} forward, {self.backward} backward, {self.assist} assist"


@dataclass(frozen=True, slots=True, eq=False)
class SplitCost:
    """What a step costs, in the parts that can be put on lanes.

    Attributes:
        forward_s: Seconds from the begin of the step to the begin of the backward pass.
        input_s: Seconds of the backward pass on main from the layer before (in backward
            order) to this layer's input gradient, weight gradients left out. Shape
            `(num_layers,)`, in the order of the backward pass.
        weight_s: Seconds of its weight gradients on main, same shape.
        assist_s: The same on assist.
        tail_s: Seconds of main after the last layer.
        wire_s: Seconds that its gradients take on the wire, same shape; empty for no wire.
        names: Of the layers; a layer that is called twice is there twice.
    """

    forward_s: float
    input_s: NDArray[np.float64]
    weight_s: NDArray[np.float64]
    assist_s: NDArray[np.float64]
    tail_s: float
    wire_s: NDArray[np.float64]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        *,
        forward_s: float,
        input_s: ArrayLike,
        weight_s: ArrayLike,
        assist_s: ArrayLike | None = None,
        tail_s: float = 0.0,
        wire_s: ArrayLike = (),
        names: Sequence[str] | None = None,
    ) -> "SplitCost":
        """Check and build; `assist_s` is `weight_s` unless given, names are numbers.

        Raises:
            ValueError: If shapes disagree or a time is negative or not finite.

        Examples:
            >>> SplitCost.of(forward_s=2.0, input_s=[1.0, 1.0], weight_s=[1.0, 1.0]).total_s
            6.0
        """
        columns = {
            "input_s": input_s,
            "weight_s": weight_s,
            "assist_s": weight_s if assist_s is None else assist_s,
            "wire_s": wire_s,
        }
        checked = {name: checked_column(name, values) for name, values in columns.items()}
        num_layers = len(checked["input_s"])
        for name, values in checked.items():
            if len(values) != num_layers and not (name == "wire_s" and not len(values)):
                raise ValueError(
                    f"{name} must have shape ({num_layers},) like input_s, got {values.shape}"
                )
        ends = checked_column("forward_s and tail_s", [forward_s, tail_s])
        numbered = names or [str(layer) for layer in range(num_layers)]
        if len(numbered) != num_layers:
            raise ValueError(f"names must hold {num_layers} names, got {len(numbered)}")
        return cls(float(ends[0]), tail_s=float(ends[1]), names=tuple(numbered), **checked)

    @property
    def num_layers(self) -> int:
        """Layers with weight gradients."""
        return len(self.input_s)

    @property
    def total_s(self) -> float:
        """Seconds of all compute on main, one thing after the other."""
        return float(self.forward_s + self.input_s.sum() + self.weight_s.sum() + self.tail_s)


def step_graph(
    cost: SplitCost,
    deferred: Sequence[bool],
    *,
    overhead_s: float = 0.0,
    max_pending: int | None = None,
    layers_per_task: int = 1,
) -> TaskGraph:
    """Lay out one step: what is deferred runs on assist, all else on main.

    A layer's weight gradients can begin when its input gradient exists, those of a task when
    that of its last layer does. (The executor hands them over just before that gradient, so it
    may be ahead of this by one layer.) They are sent, if there is a wire, on comm in the order of
    the backward pass. What is left for a task at the end of the backward pass, main does itself.

    Args:
        cost: Seconds of the parts.
        deferred: Per layer, in the order of the backward pass.
        overhead_s: Seconds that handing one task over costs main, and running it assist.
        max_pending: Tasks that assist may hold; None for no bound.
        layers_per_task: Deferred layers whose weight gradients make one task.

    Raises:
        ValueError: If `deferred` has another length than the layers.

    Examples:
        >>> from paceline.timeline import simulate
        >>> cost = SplitCost.of(forward_s=2.0, input_s=[1.0, 1.0], weight_s=[1.0, 1.0])
        >>> simulate(step_graph(cost, [True, False])).makespan_s
        5.0
    """
    if len(deferred) != cost.num_layers:
        raise ValueError(
            f"deferred must hold one value per layer ({cost.num_layers}), got {len(deferred)}"
        )
    tasks = [Task(name="forward", lane="main", duration_s=cost.forward_s, kind=Kind.FORWARD)]
    batch: list[int] = []
    for layer, is_deferred in enumerate(deferred):
        handover_s = overhead_s if is_deferred and len(batch) == layers_per_task - 1 else 0.0
        tasks.append(_input(cost, layer, handover_s))
        if not is_deferred:
            tasks += _weights(cost, [layer], "main", 0.0)
            continue
        batch.append(layer)
        if len(batch) == layers_per_task:
            tasks += _weights(cost, batch, "assist", overhead_s)
            batch = []
    tasks += _weights(cost, batch, "main", 0.0)
    tasks.append(Task(name="rest", lane="main", duration_s=cost.tail_s, kind=Kind.BACKWARD))
    bound = {"assist": max_pending} if max_pending else None
    return lane_graph(tasks, lanes=LANES, max_pending=bound)


def _input(cost: SplitCost, layer: int, handover_s: float) -> Task:
    return Task(
        name=f"input {cost.names[layer]}",
        lane="main",
        duration_s=float(cost.input_s[layer]) + handover_s,
        kind=Kind.BACKWARD,
        writes=(f"g{layer}",),
    )


def _weights(cost: SplitCost, layers: Sequence[int], lane: str, overhead_s: float) -> list[Task]:
    """Return the weight gradients of `layers` as one task, and their collectives."""
    if not layers:
        return []
    seconds = cost.assist_s if lane == "assist" else cost.weight_s
    tasks = [
        Task(
            name=f"weight {cost.names[layers[0]]}",
            lane=lane,
            duration_s=float(seconds[list(layers)].sum()) + overhead_s,
            kind=Kind.BACKWARD,
            reads=tuple(f"g{layer}" for layer in layers),
            writes=tuple(f"w{layer}" for layer in layers),
        )
    ]
    return tasks + [_wire(cost, layer) for layer in layers if len(cost.wire_s)]


def _wire(cost: SplitCost, layer: int) -> Task:
    return Task(
        name=f"all-reduce {cost.names[layer]}",
        lane="comm",
        duration_s=float(cost.wire_s[layer]),
        kind=Kind.COLLECTIVE,
        reads=(f"w{layer}",),
        collective=layer,
    )
