"""Watch one training step and write down every operator, layer and living tensor."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from paceline.predict.work import LayerWork, OperatorWork, Phase
from paceline.torch.model import tensors_in
from paceline.torch.predict._trace_gpu import as_on_a_gpu
from paceline.torch.predict._trace_memory import LiveMemory
from paceline.torch.predict._trace_operators import IGNORED_NAMESPACES, describe, with_workspace

# How a gradient comes from 16-bit ones, and from those of several uses of a parameter.
COPIES_AND_SUMS = frozenset({"_to_copy", "add"})


class Recorder(TorchDispatchMode):
    """Notes every operator of a step; with `timed`, how long each one took."""

    def __init__(
        self, model: torch.nn.Module, *, timed: bool = False, like_a_gpu: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase: Phase = "forward"  # part of the step that runs; `begin` sets it
        self.calls: list[OperatorWork] = []  # what ran, in order, views included
        self.seconds: list[float] = []  # of each call; zeros unless `timed`
        self.layer_of_call: list[str] = []  # that ran in the forward pass; empty elsewhere
        # Living tensors, without parameters that are trained.
        self.memory = LiveMemory(p for p in model.parameters() if p.requires_grad)
        self.memory.add([p for p in model.parameters() if not p.requires_grad], fixed=True)
        self.memory.add(list(model.buffers()), fixed=True)
        self.saved_bytes = 0  # kept for the backward pass; parameters and copies left out
        self.num_python_calls = 0  # of PyTorch in the forward pass
        self.like_a_gpu = like_a_gpu  # count attention and dropout as its kernels do
        self._timed = timed
        self._model = model
        self._layers: list[str] = [""]
        self._params = {p.untyped_storage()._cdata for p in model.parameters()}
        self._saved = set(self._params)
        self._gradients: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        begin = perf_counter() if self._timed else 0.0
        out = func(*args, **kwargs)
        seconds = perf_counter() - begin if self._timed else 0.0
        if func.namespace in IGNORED_NAMESPACES:  # Bookkeeping of the tracer or profiler.
            return out
        out = with_workspace(func, args, out)
        self.calls.append(describe(func, args, kwargs, out, self.phase))
        self.seconds.append(seconds)
        self.layer_of_call.append(self._layers[-1] if self.phase == "forward" else "")
        self._note_memory(func, args, out)
        return out

    def _note_memory(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """Count new tensors; autocast's copies of parameters do not grow with the batch."""
        self.memory.add(out)
        name = func._overloadpacket.__name__
        if name in COPIES_AND_SUMS:
            self.memory.note_sources(out, tensors_in(args))
        is_copy = self.phase == "forward" and name == "_to_copy"
        if is_copy and args[0].untyped_storage()._cdata in self._params:
            self._saved.add(out.untyped_storage()._cdata)
            self.memory.fix(out)
        if name == "add_" and self.phase == "backward" and _is_one_of(self._gradients, args[0]):
            # What is added to a gradient that is there already is of its size.
            for addend in tensors_in(args[1:]):
                self.memory.fix(addend)

    def note_gradients(self) -> None:
        """Note that the gradients that are there now do not grow with the batch."""
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                self.memory.add(parameter.grad)
                self.memory.fix(parameter.grad, gradient=True)
                self._gradients.add(parameter.grad.untyped_storage()._cdata)

    def begin(self, phase: Phase) -> None:
        self.phase = phase
        self.memory.begin(phase)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hook the layers and what autograd saves; hooks are gone on leaving."""
        handles = []
        for name, module in self._model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
        saved = torch.autograd.graph.saved_tensors_hooks(self._on_save, lambda tensor: tensor)
        try:
            with saved, _PythonCalls(self), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, *_: Any) -> None:
        self._layers.append(name)

    def _leave(self, *_: Any) -> None:
        self._layers.pop()

    def _on_save(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._saved:
            self._saved.add(storage._cdata)
            self.saved_bytes += storage.nbytes()
        return tensor

    def operators(self) -> tuple[OperatorWork, ...]:
        """Return what ran, equal calls as one."""
        return tuple(replace(work, num_calls=n) for work, n in Counter(self.calls).items())

    def layers(self) -> tuple[LayerWork, ...]:
        """Return the layers in the order of their first call."""
        owned = _owned_params(self._model)
        names = dict.fromkeys(name for name in self.layer_of_call if name)
        # Layers that are never called by themselves, such as those that a parent reads.
        names.update(dict.fromkeys(name for name in owned if owned[name]))
        work: dict[str, list[OperatorWork]] = {name: [] for name in names}
        for name, call in zip(self.layer_of_call, self.calls, strict=True):
            if name:
                work[name].append(call)
        return tuple(
            LayerWork(
                name=name,
                forward_flops=sum(call.flops for call in calls),
                moved_bytes=sum(call.read_bytes + call.written_bytes for call in calls),
                num_params=owned.get(name, 0),
                num_kernels=sum(call.operator_class != "view" for call in calls),
            )
            for name, calls in work.items()
        )


class _PythonCalls(TorchFunctionMode):
    """Counts calls of torch functions from Python while the forward pass runs.

    For a GPU, it calls what stands for the GPU's fused kernel.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._recorder.phase == "forward" and getattr(func, "__name__", "") != "__get__":
            self._recorder.num_python_calls += 1
        if self._recorder.like_a_gpu:
            func, args, kwargs = as_on_a_gpu(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _is_one_of(storages: set[int], tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage()._cdata in storages


def _owned_params(model: torch.nn.Module) -> dict[str, int]:
    seen: set[int] = set()
    owned: dict[str, int] = {}
    for name, module in model.named_modules():
        mine = [p for p in module.parameters(recurse=False) if p.requires_grad]
        owned[name] = sum(p.numel() for p in mine if id(p) not in seen)
        seen.update(map(id, mine))
    return owned
