"""Measure the first steps: who uses which parameter when, and when gradients are ready."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paceline.comm import WireProblem
from paceline.cost import Link
from paceline.torch.model import ParamUse, clock_of, is_compiled

MAX_WATCHED = 3
# A link that shows no cost per byte would break divisions.
MAX_BYTES_PER_S = 1e12


@dataclass(frozen=True, slots=True, eq=False)
class StepCost:
    """Medians over the measured steps of one rank, in seconds, and who got gradients.

    Attributes:
        forward_s: Idle time between steps, the model's own start, then each layer in the
            order of first use, up to the backward pass.
        backward_s: The backward pass.
        ready_s: Per parameter, when its gradient exists; the end where none came.
        layer: Per parameter, the entry of `forward_s` that needs it.
        place: Per parameter, its place in the order of first use.
    """

    forward_s: NDArray[np.float64]
    backward_s: float
    ready_s: NDArray[np.float64]
    layer: NDArray[np.int64]
    place: NDArray[np.int64]

    def to_bytes(self) -> bytes:
        """Return plain numbers, to be sent."""
        head = [len(self.ready_s), self.backward_s]
        return np.concatenate(
            [head, self.ready_s, self.layer, self.place, self.forward_s]
        ).tobytes()

    @classmethod
    def from_bytes(cls, blob: bytes) -> "StepCost":
        """Read what `to_bytes` wrote."""
        numbers = np.frombuffer(blob)
        count = int(numbers[0])
        ready_s, layer, place = numbers[2 : 2 + 3 * count].reshape(3, count)
        return cls(
            numbers[2 + 3 * count :],
            float(numbers[1]),
            ready_s,
            layer.astype(np.int64),
            place.astype(np.int64),
        )

    def order(self, used: Sequence[bool]) -> list[int]:
        """Return the parameters with gradients as the forward pass needs them."""
        order = np.lexsort((self.place, self.layer))
        return [int(tensor) for tensor in order if used[tensor]]

    def problem(
        self, parameters: Sequence[torch.Tensor], order: list[int], link: Link, num_in_flight: int
    ) -> WireProblem:
        """Return the step as the planners see it, with one tensor per entry of `order`."""
        return WireProblem(
            forward_s=self.forward_s,
            layer=self.layer[order],
            num_bytes=np.array([float(parameters[tensor].nbytes) for tensor in order]),
            ready_s=self.ready_s[order],
            backward_s=self.backward_s,
            link=Link(link.alpha_s, min(link.bytes_per_s, MAX_BYTES_PER_S)),
            num_in_flight=num_in_flight,
        )


class StepProbe:
    """Watches the uses of parameters for a few steps, and takes times in those after.

    Watching makes each torch function slower, so both are not done at once. Compiled modules
    are not watched: its hooks would be compiled with them, and they cannot wait anyway.
    """

    def __init__(
        self, module: torch.nn.Module, parameters: Sequence[torch.Tensor], num_steps: int
    ) -> None:
        self._module, self._parameters = module, parameters
        self._can_watch = not is_compiled(module)
        self._num_watched = max(1, min(MAX_WATCHED, num_steps // 2))
        self._clock = clock_of(module)
        self._uses = ParamUse(module)
        self._steps: list[dict[object, float]] = []
        self._marks: dict[object, object] = {"end": self._clock.mark()}
        self.got_gradient = [False] * len(parameters)
        self.always_got = [True] * len(parameters)
        self.num_steps = 0

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watch or time one forward pass."""
        if self.num_steps < self._num_watched:
            with self._uses.recording() if self._can_watch else nullcontext():
                yield
            return
        self._marks.setdefault("start", self._clock.mark())
        handles = [module.register_forward_pre_hook(self._on_call) for module in self._owners()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def mark_backward(self) -> None:
        """Note that the backward pass begins."""
        self._marks["backward"] = self._clock.mark()

    def mark_gradient(self, tensor: int) -> None:
        """Note that a gradient is ready."""
        self.got_gradient[tensor] = True
        self._marks[tensor] = self._clock.mark()

    def mark_backward_end(self) -> None:
        """Note that all gradients are."""
        self._marks["backward end"] = self._clock.mark()

    def end_step(self) -> None:
        """Note the end of `step()`; another step begins."""
        self.num_steps += 1
        for tensor, always in enumerate(self.always_got):
            self.always_got[tensor] = always and tensor in self._marks
        keys = list(self._marks)
        times_s = self._clock.seconds([self._marks[key] for key in keys])
        if self.num_steps > self._num_watched and {"start", "backward end"} <= self._marks.keys():
            self._steps.append(dict(zip(keys, times_s, strict=True)))
        self._marks = {"end": self._clock.mark()}

    @property
    def has_times(self) -> bool:
        """Whether a step was timed."""
        return bool(self._steps)

    def waits(self) -> dict[torch.nn.Module, list[int]]:
        """Return the parameters that each module was seen to use, whoever used them first."""
        waits: dict[torch.nn.Module, list[int]] = {}
        for tensor, parameter in enumerate(self._parameters):
            # What no torch function was seen to use is waited for before anything runs.
            for module in self._uses.users.get(parameter, {self._module: None}):
                waits.setdefault(module, []).append(tensor)
        return waits

    def cost(self) -> StepCost:
        """Return medians of the timed steps."""
        owners = self._owners()
        layer_of = {module: 2 + index for index, module in enumerate(owners)}
        place_of = {parameter: place for place, parameter in enumerate(self._uses.order)}
        layer = [
            layer_of[next(iter(self._uses.users[parameter]))] if parameter in place_of else 1
            for parameter in self._parameters
        ]
        place = [place_of.get(parameter, -1) for parameter in self._parameters]
        times = np.median([self._numbers(step, owners) for step in self._steps], axis=0)
        num_layers = len(owners) + 2
        return StepCost(
            np.maximum(times[:num_layers], 0.0),
            float(times[num_layers]),
            np.clip(times[num_layers + 1 :], 0.0, times[num_layers]),
            np.array(layer, dtype=np.int64),
            np.array(place, dtype=np.int64),
        )

    def _owners(self) -> list[torch.nn.Module]:
        """Modules in the order in which each first needs a parameter that none needed before."""
        return list(dict.fromkeys(next(iter(users)) for users in self._uses.users.values()))

    def _numbers(self, step: dict[object, float], owners: list[torch.nn.Module]) -> list[float]:
        needs_s = [step["end"], step["start"], *(step.get(owner, 0.0) for owner in owners)]
        # A layer that was not called in this step takes no time.
        needs = np.maximum.accumulate([*needs_s, step["backward"]])
        ready_s = [
            step.get(tensor, step["backward end"]) - step["backward"]
            for tensor in range(len(self._parameters))
        ]
        backward_s = step["backward end"] - step["backward"]
        return [*np.diff(needs).tolist(), backward_s, *ready_s]

    def _on_call(self, module: torch.nn.Module, _args: Any) -> None:
        self._marks.setdefault(module, self._clock.mark())
